"Clips that a chapter cannot hold: every container, turned and uneven files, files that lie, full disks."

import os
import subprocess
import tempfile
import warnings
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from tune_a_video_nbs import films
from tune_a_video_nbs.clips import clip_facts, mp4_bytes, read_clip, write_clip
from tune_a_video_nbs.oracle import psnr
from tune_a_video_nbs.sprites import draw_clip

CLIP = draw_clip("a red star is sliding to the right on a night sky", 8)
WIDE = np.pad(CLIP, ((0, 0), (0, 0), (16, 16), (0, 0)), mode="edge")


def ffmpeg(*args):
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, args)],
        check=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A folder with `star.mp4`, the clip at 8 frames a second."
    folder = tmp_path_factory.mktemp("files")
    write_clip(folder / "star.mp4", WIDE, fps=8)
    return folder


def in_order(clip):
    "Frame by frame, nearest to the same frame of the drawn clip."
    return len(clip) == 8 and all(
        max(range(8), key=lambda j: psnr(f, WIDE[j])) == i for i, f in enumerate(clip)
    )


@pytest.mark.parametrize(
    "suffix, codec",
    [
        ("mp4", "libx264"),
        ("mov", "libx265"),
        ("mkv", "ffv1"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("gif", "gif"),
        ("ts", "libx264"),
        ("flv", "libx264"),
        ("ogv", "libtheora"),
        ("wmv", "wmv2"),
        ("m4v", "libx264"),
        ("apng", "apng"),
        ("webp", "libwebp_anim"),
        ("nut", "ffv1"),
    ],
)
def test_any_container(files, tmp_path, suffix, codec):
    file = tmp_path / f"clip.{suffix}"
    ffmpeg(
        "-i", files / "star.mp4", "-c:v", codec, *(("-qscale:v", "6") if codec == "libtheora" else ()), file
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a sound file is read without a word
        assert in_order(read_clip(file, None)) and in_order(read_clip(file))
        assert in_order(
            read_clip(file, None, fps=8)
        )  # and each frame once, however the container rounds its times


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_is_honoured(files, tmp_path, angle, mirrored):
    stored, file = read_clip(files / "star.mp4"), tmp_path / "phone.mp4"
    ffmpeg(
        "-display_rotation",
        angle,
        *(("-display_hflip",) if mirrored else ()),
        "-i",
        files / "star.mp4",
        "-c",
        "copy",
        file,
    )
    want = np.rot90(stored, angle // 90, axes=(1, 2))
    want = (want[:, :, ::-1] if mirrored else want).copy()
    assert read_clip(file).shape == want.shape and psnr(read_clip(file), want) > 40


@pytest.mark.parametrize("aspect, shape", [("3:1", (64, 192)), ("3:4", (64, 48))])
def test_pixels_that_are_not_square(files, tmp_path, aspect, shape):
    ffmpeg("-i", files / "star.mp4", "-c", "copy", "-aspect", aspect, tmp_path / "wide.mp4")
    assert read_clip(tmp_path / "wide.mp4").shape == (8, *shape, 3)


def test_the_crop_is_the_middle_and_never_squashed(files):
    circle = np.zeros((1, 60, 200, 3), np.uint8)
    y, x = np.mgrid[:60, :200]
    circle[0, (y - 29.5) ** 2 + (x - 99.5) ** 2 < 12**2] = 255
    write_clip(files / "circle", circle)
    for size in (30, 60, 90, (40, 80), (80, 40)):
        lit = read_clip(files / "circle", 1, size=size)[0, ..., 0] > 127
        assert abs(int(lit.any(1).sum()) - int(lit.any(0).sum())) <= 1, size  # as high as it is wide
        assert abs(np.argwhere(lit).mean(0) - (np.array(lit.shape) - 1) / 2).max() < 0.6, size


def test_by_time_a_pause_is_a_pause(files, tmp_path):
    ffmpeg(
        "-i",
        files / "star.mp4",
        "-vf",
        "select=not(between(n\\,2\\,5))",
        "-fps_mode",
        "vfr",
        "-bf",
        0,
        "-crf",
        1,
        tmp_path / "held.mp4",
    )  # 0, 1, 6, 7
    four = read_clip(tmp_path / "held.mp4", None)
    for fps, seen in ((8, [0, 1, 1, 1, 1, 1, 2, 3]), (4, [0, 1, 1, 2]), (2, [0, 1])):
        assert (read_clip(tmp_path / "held.mp4", None, fps=fps) == four[seen]).all()
    assert (read_clip(tmp_path / "held.mp4", 2, fps=8, start_time=0.7) == four[[1, 2]]).all()
    assert (read_clip(tmp_path / "held.mp4", 1, fps=8, start_time=0.95) == four[[3]]).all()


def test_uneven_times_are_read_as_they_are(tmp_path):
    "To the hundredth of a second, and not rounded to an even rate."
    last, pictures = [70, 130, 290, 30, 480], [Image.fromarray(p) for p in CLIP[:5]]
    pictures[0].save(tmp_path / "held.gif", save_all=True, append_images=pictures[1:], duration=last)
    frames, shown = read_clip(tmp_path / "held.gif", None), np.repeat(np.arange(5), np.array(last) // 10)
    assert (read_clip(tmp_path / "held.gif", None, fps=100) == frames[shown]).all()


@pytest.mark.parametrize(
    "suffix, rate", [("webm", "24"), ("mkv", "30"), ("gif", "30"), ("mp4", "30000/1001")]
)
def test_times_that_were_rounded(tmp_path, suffix, rate):
    file = tmp_path / f"long.{suffix}"
    ffmpeg("-f", "lavfi", "-i", f"testsrc=size=64x64:rate={rate}:duration=2", file)
    frames = read_clip(file, None)
    assert (read_clip(file, None, fps=Fraction(rate))[: len(frames)] == frames).all()


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(fps=0), "fps is 0"),
        (dict(fps=-1), "fps is -1"),
        (dict(fps=float("nan")), "fps is nan"),
        (dict(fps="8"), "fps is '8'"),
        (dict(fps=True), "fps is True"),
        (dict(fps=float("inf")), "fps is inf"),
        (dict(fps=8, start_time=-1), "start_time is -1"),
        (dict(start_time=1), "give fps too"),
        (dict(fps=8, stride=2), "one kind"),
        (dict(fps=8, start=1), "one kind"),
        (dict(fps=8, start_time=2), "ask for a smaller start_time"),
        (
            dict(fps=4),
            "lasts 1.00 s: from 0 s on it has 4 frames at 4 a second; 8 were asked: ask for at most 4",
        ),
        (dict(num_frames=0), "num_frames is 0"),
        (dict(num_frames=2.5), "num_frames is 2.5"),
        (dict(start=-1), "start is -1"),
        (dict(start=8), "ask for a smaller start"),
        (dict(stride=0), "stride is 0"),
        (dict(size=0), "size is 0"),
        (dict(size=(8, 8, 8)), "(height, width)"),
        (dict(size="64"), "size is '64'"),
    ],
)
def test_bad_requests(files, bad, words):
    with pytest.raises(ValueError) as e:
        read_clip(files / "star.mp4", **bad)
    assert words in str(e.value) and "\n" not in str(e.value)


TEST_CARD = "-f", "lavfi", "-i", "testsrc=size=96x64:rate=8:duration=1", "-pix_fmt", "yuv420p"


@pytest.fixture
def bad(files, tmp_path):
    "Makes the file or folder that each test of bad input is about."
    whole = (files / "star.mp4").read_bytes()

    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    def mkdir(name, **pictures):
        (tmp_path / name).mkdir()
        for k, (suffix, p) in pictures.items():
            Image.fromarray(p).save(tmp_path / name / f"{k}.{suffix}")
        return tmp_path / name

    def of_ffmpeg(name, *args):
        ffmpeg(*args, tmp_path / name)
        return tmp_path / name

    def broken(name, keep):
        data = (mkdir(name, a=("png", CLIP[0]), b=("png", CLIP[1])) / "b.png").read_bytes()
        (tmp_path / name / "b.png").write_bytes(keep(data))
        return tmp_path / name

    def fifo():
        os.mkfifo(tmp_path / "pipe.mp4")
        return tmp_path / "pipe.mp4"

    def sizes():
        for i, side in enumerate((64, 96)):
            ffmpeg(
                "-f",
                "lavfi",
                "-i",
                f"testsrc=size={side}x64:rate=8:duration=1",
                "-pix_fmt",
                "yuv420p",
                tmp_path / f"{i}.h264",
            )
        return write("grows.h264", (tmp_path / "0.h264").read_bytes() + (tmp_path / "1.h264").read_bytes())

    def cut_off():
        data = of_ffmpeg("all.mp4", *TEST_CARD, "-g", 1, "-movflags", "+faststart").read_bytes()
        return write("cut.mp4", data[: len(data) * 3 // 4])

    def playlist():
        (tmp_path / "inner.mp4").write_bytes(whole)
        return write("list.mp4", f"ffconcat version 1.0\nfile '{tmp_path / 'inner.mp4'}'\n".encode())

    return {
        "nothing": lambda: tmp_path / "nowhere.mp4",
        "a text": lambda: write("notes.mp4", b"not a film at all\n" * 50),
        "zero bytes": lambda: write("void.mp4", b""),
        "a playlist": playlist,
        "a web playlist": lambda: write("live.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/x.ts\n"),
        "zero frames": lambda: of_ffmpeg("zero.mp4", "-i", files / "star.mp4", "-t", 0),
        "zero frames, avi": lambda: of_ffmpeg("zero.avi", "-i", files / "star.mp4", "-t", 0),
        "a sound": lambda: of_ffmpeg("song.mp4", "-f", "lavfi", "-i", "sine=duration=1"),
        "one frame": lambda: of_ffmpeg("one.mp4", "-i", files / "star.mp4", "-frames:v", 1),
        "fewer frames": lambda: of_ffmpeg("five.mp4", "-i", files / "star.mp4", "-frames:v", 5),
        "cut off": cut_off,
        "no beginning": lambda: write("tail.mp4", whole[len(whole) // 2 :]),
        "no index": lambda: write("head.mp4", whole[:100]),
        "a picture": lambda: mkdir("p", a=("png", CLIP[0])) / "a.png",
        "an empty folder": lambda: mkdir("empty"),
        "no pictures": lambda: write(mkdir("texts") / "readme.txt", b"hello").parent,
        "two sizes": lambda: mkdir("odd", frame2=("png", CLIP[0]), frame10=("png", WIDE[0])),
        "it grows": sizes,
        "a broken picture": lambda: broken("torn", lambda d: d[: len(d) // 2]),
        "no picture": lambda: broken("fake", lambda d: b"hello"),
        "sixteen bits": lambda: mkdir("deep", a=("png", np.full((8, 8), 40_000, np.uint16))),
        "a pipe": fifo,
    }


@pytest.mark.parametrize(
    "what, error, words",
    [
        ("nothing", FileNotFoundError, ["no such file", "nowhere.mp4"]),
        ("a text", ValueError, ["notes.mp4 is not a video"]),
        ("zero bytes", ValueError, ["void.mp4 is empty"]),
        ("a playlist", ValueError, ["list.mp4 is not a video", "not on whitelist"]),
        ("a web playlist", ValueError, ["live.mp4 is not a video"]),
        ("zero frames", ValueError, ["zero.mp4 holds no frames"]),
        ("zero frames, avi", ValueError, ["zero.avi holds no frames"]),
        ("a sound", ValueError, ["song.mp4 holds no frames"]),
        ("one frame", ValueError, ["one.mp4 has 1 frame;", "ask for at most 1"]),
        ("fewer frames", ValueError, ["five.mp4 has 5 frames", "ask for at most 5"]),
        ("cut off", ValueError, ["cut.mp4 is damaged or cut off", "could be read"]),
        ("no beginning", ValueError, ["tail.mp4 is not a video", "part of it is missing"]),
        ("no index", ValueError, ["head.mp4 holds no frames"]),
        ("a picture", ValueError, ["a.png is not a video"]),
        ("an empty folder", ValueError, ["empty holds no frames", ".png"]),
        ("no pictures", ValueError, ["texts holds no frames", ".png"]),
        ("two sizes", ValueError, ["frame10.png is 64x96; the frames before it are 64x64"]),
        ("it grows", ValueError, ["frame 8 of grows.h264 is 64x96; the frames before it are 64x64"]),
        ("a broken picture", ValueError, ["b.png is not a picture that can be read"]),
        ("no picture", ValueError, ["b.png is not a picture that can be read"]),
        ("sixteen bits", ValueError, ["a.png has more than 8 bits"]),
        ("a pipe", ValueError, ["neither a file nor a folder"]),
    ],
)
def test_bad_input(bad, what, error, words):
    path = bad[what]()
    for ask in (dict(num_frames=9), dict(num_frames=16, size=32)):
        with pytest.raises(error) as e:
            read_clip(path, **ask)
        assert "\n" not in str(e.value) and len(str(e.value)) < 300
        for w in words:
            assert w in str(e.value), e.value


def test_a_cut_file_gives_what_came_before_with_a_warning(bad):
    with pytest.warns(UserWarning, match="cut.mp4 is damaged or cut off"):
        two = read_clip(bad["cut off"](), 2)
    assert (two == read_clip(bad["cut off"]().with_name("all.mp4"), 2)).all()


def test_a_change_of_size_is_no_matter_if_it_comes_later(bad):
    "And ffmpeg by itself would squash the later frames into the first one's size."
    assert read_clip(bad["it grows"](), 8).shape == (8, 64, 64, 3)


def test_one_frame_is_a_clip_when_one_is_asked(bad):
    for ask in (1, None):
        assert read_clip(bad["one frame"](), ask).shape == (1, 64, 96, 3)


def test_by_time_finds_the_same_faults(bad):
    for what, words in (
        ("a text", "not a video"),
        ("zero frames", "holds no frames"),
        ("an empty folder", "is a folder"),
        ("it grows", "the frames before it"),
    ):
        with pytest.raises(ValueError, match=words):
            read_clip(bad[what](), 12, fps=8)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("kind", ["file", "folder", "picture"])
def test_no_permission(kind, files):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_clip(folder / "star.mp4", CLIP)
        write_clip(folder / "frames", CLIP)
        (folder / "frames").chmod(0o755)
        target, locked = {
            "file": ("star.mp4", "star.mp4"),
            "folder": ("frames", "frames"),
            "picture": ("frames", "frames/frame_00003.png"),
        }[kind]
        (folder / locked).chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may read all, so be nobody for a moment
        try:
            with pytest.raises(PermissionError) as e:
                read_clip(folder / target)
            assert Path(locked).name in str(e.value)
        finally:
            if root:
                os.seteuid(0)
            (folder / locked).chmod(0o755)


def test_a_cameras_note_turns_pictures_in_a_folder(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.fromarray(WIDE[0]).save(tmp_path / "a.png", exif=exif)
    assert (read_clip(tmp_path, 1)[0] == np.rot90(WIDE[0], -1)).all()


def test_natural_order_and_hidden_files(tmp_path):
    for i in (10, 9, 1):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "._frame0.png").write_bytes(b"what a Mac leaves behind")
    (tmp_path / "notes.txt").write_text("no frame")
    assert read_clip(tmp_path, None)[:, 0, 0, 0].tolist() == [1, 9, 10]


@pytest.mark.parametrize("name", ["-star.mp4", "a:b %03d 'c'.mp4", "été ★.mp4", "concat:x.gif", "UPPER.MP4"])
def test_odd_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_clip(name, CLIP)
    assert read_clip(name).shape == CLIP.shape and psnr(read_clip(name), CLIP) > 30


@pytest.mark.parametrize("name, shape", [("a.mp4", (8, 64, 64)), ("a.gif", (8, 63, 63)), ("a", (8, 63, 63))])
def test_odd_sizes(tmp_path, name, shape):
    "h264 wants even sides: the last row and column come twice; a GIF and a folder keep what they are given."
    got = read_clip(write_clip(tmp_path / name, CLIP[:, 1:, 1:]), None)
    assert got.shape == (*shape, 3) and psnr(got[:, :63, :63], CLIP[:, 1:, 1:].copy()) > 30


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
def test_one_frame_there_and_back(tmp_path, name):
    assert psnr(read_clip(write_clip(tmp_path / name, CLIP[:1]), None), CLIP[:1]) > 30


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_the_rate_is_kept(tmp_path, name):
    write_clip(tmp_path / name, CLIP, fps=4)
    assert (read_clip(tmp_path / name, None, fps=4) == read_clip(tmp_path / name, None)).all() and len(
        read_clip(tmp_path / name, None, fps=8)
    ) == 16


# ---- seeking


LONG = "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=20", "-pix_fmt", "yuv420p"


@pytest.fixture(scope="module")
def decoded():
    "A list that grows by one for each frame that is decoded."
    count, usual = [], films._decode

    def counted(*args):
        for frame in usual(*args):
            count.append(frame.pts)
            yield frame

    films._decode = counted
    yield count
    films._decode = usual


@pytest.fixture(scope="module")
def long_films(tmp_path_factory):
    "Twenty seconds, a key frame every two, in the containers that people have."
    folder = tmp_path_factory.mktemp("long")
    kinds = {
        "plain.mp4": ("-g", 50),
        "open.mp4": ("-g", 50, "-x264-params", "open-gop=1:bframes=3"),
        "hevc.mkv": ("-c:v", "libx265", "-x265-params", "keyint=50:log-level=none"),
        "vp9.webm": ("-c:v", "libvpx-vp9", "-g", 50, "-deadline", "realtime", "-cpu-used", 8),
        "mpeg4.avi": ("-c:v", "mpeg4", "-bf", 2, "-g", 50),
        "late.ts": ("-g", 50),
        "raw.h264": ("-g", 50),
        "held.gif": (),
    }
    for name, how in kinds.items():
        ffmpeg(*LONG, *how, folder / name)
    return folder


SEEKABLE = ["plain.mp4", "open.mp4", "hevc.mkv", "vp9.webm", "mpeg4.avi"]


@pytest.mark.parametrize("name", [*SEEKABLE, "late.ts", "raw.h264", "held.gif"])
def test_by_time_the_same_frames_from_any_start(long_films, name):
    whole = read_clip(long_films / name, None, fps=5)
    for start in (1, 23, 50, 77, 96):
        assert (
            read_clip(long_films / name, 4, fps=5, start_time=start / 5) == whole[start : start + 4]
        ).all()


@pytest.mark.parametrize("name", SEEKABLE)
def test_by_time_only_what_is_near_is_decoded(long_films, decoded, name):
    decoded.clear()
    read_clip(long_films / name, 4, fps=5, start_time=15)
    assert 0 < len(decoded) < 140  # 2 s to the key frame, .8 s of clip, and what the decoder has in hand


@pytest.mark.parametrize("name", ["plain.mp4", "open.mp4", "hevc.mkv"])
def test_by_number_a_far_start_is_exact_and_near(long_films, decoded, name):
    whole = read_clip(long_films / name, None)
    for start in (99, 100, 149, 150, 151, 333, 498):
        decoded.clear()
        assert (read_clip(long_films / name, 2, start=start) == whole[start : start + 2]).all()
        assert len(decoded) < 160
    with pytest.raises(ValueError, match="has 500 frames; 3 were asked with start 498.*at most 2"):
        read_clip(long_films / name, 3, start=498)
    with pytest.raises(ValueError, match="ask for a smaller start"):
        read_clip(long_films / name, 3, start=900)


@pytest.mark.parametrize("name", ["vp9.webm", "mpeg4.avi", "late.ts", "raw.h264", "held.gif"])
def test_by_number_a_far_start_where_packets_do_not_tell(long_films, name):
    whole = read_clip(long_films / name, None)
    assert (read_clip(long_films / name, 2, start=333) == whole[333:335]).all()


def test_no_other_program_reads(files, monkeypatch):
    "No version of an ffmpeg somewhere on the machine matters."
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setenv("PATH", "")
    assert in_order(read_clip(files / "star.mp4"))
    assert in_order(read_clip(files / "star.mp4", fps=8))


# ---- colours, depths, covers


BARS = "-f", "lavfi", "-i", "smptebars=size=64x48:rate=8:duration=1"
RED = np.full((2, 48, 64, 3), (219, 26, 31), np.uint8)


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020nc"])
@pytest.mark.parametrize("kind", ["tv", "pc"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le"])
def test_every_formula_gives_the_red_that_was_meant(tmp_path, matrix, kind, pixels):
    write_clip(tmp_path / "red", RED)
    named = {"bt601": "smpte170m"}.get(matrix, matrix)
    how = f"scale=out_color_matrix={matrix}:out_range={kind},format={pixels}"
    how += f",setparams=range={kind}:colorspace={named}"
    ffmpeg(
        *("-i", tmp_path / "red" / "frame_%05d.png", "-vf", how, "-c:v", "ffv1"),
        *("-colorspace", named, "-color_range", kind, tmp_path / "red.mkv"),
    )
    assert abs(read_clip(tmp_path / "red.mkv", None).astype(int) - RED).max() <= 3


def test_what_is_written_says_its_colours(tmp_path):
    (tmp_path / "red.mp4").write_bytes(mp4_bytes(RED))
    with films.open_film(tmp_path / "red.mp4") as container:
        context = films.video_stream(container, tmp_path / "red.mp4").codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)  # BT.709
        assert (context.color_range, context.has_b_frames, context.pix_fmt) == (1, False, "yuv420p")
    data = (tmp_path / "red.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index in front
    assert abs(read_clip(tmp_path / "red.mp4", 1).astype(int) - RED[:1]).max() <= 3


def test_alpha_is_left_out(tmp_path):
    clear = np.concatenate([RED, np.zeros_like(RED[..., :1])], axis=-1)
    for i, picture in enumerate(clear):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    ffmpeg("-i", tmp_path / "%d.png", "-c:v", "png", tmp_path / "clear.mov")
    assert (read_clip(tmp_path / "clear.mov", 2) == RED).all()


def test_the_cover_of_a_song_is_no_film(tmp_path, files):
    Image.fromarray(CLIP[0]).save(tmp_path / "cover.png")
    song = "-f", "lavfi", "-i", "sine=duration=1"
    cover = "-disposition:v:0", "attached_pic"
    ffmpeg(
        *song,
        "-i",
        tmp_path / "cover.png",
        "-map",
        0,
        "-map",
        1,
        "-c:v",
        "copy",
        *cover,
        tmp_path / "song.m4a",
    )
    with pytest.raises(ValueError, match="song.m4a holds no frames"):
        read_clip(tmp_path / "song.m4a", 1)
    both = "-map", 0, "-map", 1, "-c:v:0", "png", "-c:v:1", "copy", *cover
    ffmpeg("-i", tmp_path / "cover.png", "-i", files / "star.mp4", *both, tmp_path / "film.mp4")
    assert in_order(read_clip(tmp_path / "film.mp4"))


def test_damage_in_the_middle_is_found_and_named(tmp_path):
    ffmpeg(*TEST_CARD, "-g", 1, "-bf", 0, tmp_path / "all.mp4")
    data = bytearray((tmp_path / "all.mp4").read_bytes())
    with films.open_film(tmp_path / "all.mp4") as container:
        entry = container.streams.video[0].index_entries[5]
    middle = entry.pos + entry.size // 2
    data[middle : middle + 200] = bytes(200)
    (tmp_path / "torn.mp4").write_bytes(data)
    with pytest.raises(ValueError, match="torn.mp4 is damaged or cut off.*; 5 frames could be read"):
        read_clip(tmp_path / "torn.mp4", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_clip(tmp_path / "torn.mp4", 3)) == 3


def test_the_warning_points_at_the_caller(bad):
    with pytest.warns(UserWarning) as said:
        read_clip(bad["cut off"](), 2)
    assert said[0].filename == __file__


# ---- facts


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "apng", "webp"])
def test_facts(files, tmp_path, suffix):
    ffmpeg("-i", files / "star.mp4", tmp_path / f"a.{suffix}")
    facts = clip_facts(tmp_path / f"a.{suffix}")
    assert (facts.width, facts.height) == (96, 64)
    if suffix != "apng":  # it says neither
        assert facts.frames == 8 and abs(facts.duration - 1) < 0.02 and abs(facts.fps - 8) < 0.5


def test_facts_of_a_turned_film_and_of_a_folder(files, tmp_path):
    ffmpeg("-display_rotation", 90, "-i", files / "star.mp4", "-c", "copy", tmp_path / "phone.mp4")
    facts = clip_facts(tmp_path / "phone.mp4")
    assert (facts.width, facts.height, facts.frames) == (64, 96, 8)
    write_clip(tmp_path / "frames", CLIP)
    facts = clip_facts(tmp_path / "frames")
    assert (facts.width, facts.frames, facts.fps, facts.duration) == (64, 8, None, None)
    with pytest.raises(FileNotFoundError):
        clip_facts(tmp_path / "nowhere.mp4")


# ---- writing


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("stop", [FULL, KeyboardInterrupt()], ids=["full", "ctrl-c"])
@pytest.mark.parametrize("name", ["star.mp4", "star.gif"])
def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch, name, stop):
    before = write_clip(tmp_path / name, CLIP).read_bytes()

    def half(part, data):
        with part.open("wb") as f:
            f.write(data[: len(data) // 2])
        raise stop

    monkeypatch.setattr(Path, "write_bytes", half)
    for target in (name, "new" + Path(name).suffix):
        with pytest.raises(type(stop)):
            write_clip(tmp_path / target, CLIP[::-1])
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("stop", [FULL, KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch, stop):
    save, calls = Image.Image.save, []

    def third(image, fp, *args, **kwargs):
        calls.append(fp)
        if len(calls) == 3:
            raise stop
        return save(image, fp, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", third)
    with pytest.raises(type(stop)):
        write_clip(tmp_path / "star", CLIP)
    assert len(calls) == 3 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, clip, fps, error, words",
    [
        ("a.avi", CLIP, 8, ValueError, "cannot write .avi"),
        ("a.mp4", CLIP[0], 8, ValueError, "a clip is (f, h, w, 3)"),
        ("a.mp4", CLIP, 0, ValueError, "fps is 0"),
        ("a.gif", CLIP, 60, ValueError, "fps is 60"),
        ("a.mp4", CLIP[:0], 8, ValueError, "empty"),
        ("a.mp4", np.full((2, 8, 8, 3), np.nan), 8, ValueError, "nan"),
        ("taken", CLIP, 8, FileExistsError, "name a new folder"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, clip, fps, error, words):
    write_clip(tmp_path / "taken", CLIP[:1])
    with pytest.raises(error) as e:
        write_clip(tmp_path / name, clip, fps)
    assert words in str(e.value) and "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"] and len(
        list((tmp_path / "taken").iterdir())
    ) == 1
