"Data sets in their exact formats, and a benchmark that survives being killed, spread, and given bad files."

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from tune_a_video_nbs.benchmark import (
    METRICS,
    append_result,
    check_folder,
    claim,
    job_seed,
    mean_table,
    merge_results,
    model_metrics,
    processes,
    read_results,
    run_benchmark,
    shown_means,
    write_summary,
)
from tune_a_video_nbs.clips import read_clip, write_clip
from tune_a_video_nbs.datasets import FORMATS, Entry, read_dataset, read_entry
from tune_a_video_nbs.metrics import text_alignment
from tune_a_video_nbs.sprites import draw_clip

RED, BLUE, NIGHT = (
    f"a {s} is bouncing {p}"
    for s, p in (("red star", "on the grass"), ("blue star", "on the grass"), ("red star", "on a night sky"))
)
RING, SNOW = "an orange ring is sliding on a night sky", "an orange ring is sliding in the snow"
QUICK = dict(tune_steps=2, num_inference_steps=2)


@pytest.fixture
def video(tmp_path):
    "Write a small real clip below the folder `videos`."

    def write(name, frames=4, fps=8, words=RED):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".webm":
            return webm(path, draw_clip(words, frames), fps)
        if path.suffix == ".jpgs":
            from PIL import Image

            path.with_suffix("").mkdir(parents=True)
            for i, f in enumerate(draw_clip(words, frames)):
                Image.fromarray(f).save(path.with_suffix("") / f"{i:05d}.jpg")
            return path.with_suffix("")
        return write_clip(path, draw_clip(words, frames), fps)

    return write


def webm(path, clip, fps):
    f, h, w, _ = clip.shape
    cmd = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{w}x{h}",
        "-r",
        str(fps),
        "-i",
        "-",
        "-c:v",
        "libvpx-vp9",
        "-crf",
        "10",
        "-b:v",
        "0",
        str(path),
    ]
    if subprocess.run(cmd, input=clip.tobytes()).returncode:
        pytest.skip("this ffmpeg writes no webm")
    return path


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")
        return path

    return write


def near(clip, words, frames):
    return np.abs(clip.astype(int) - draw_clip(words, frames)).mean() < 12  # lossy files


# ------------------------------------------------------------------ readers

CONFIG = """pretrained_model_path: ./checkpoints/stable-diffusion-v1-4
output_dir: ./outputs/loveu-tgve-2023/DAVIS_480p/gold-fish
train_data:
  video_path: ./data/loveu-tgve-2023/DAVIS_480p/480p_frames/gold-fish
  prompt: Several goldfish swim in a tank.
  height: 480
  width: 480
  num_frames: 4
  frame_rate: 1
validation_data:
  prompts:
    style: Several goldfish swim in a tank, impressionist style.
    object: Several sharks swim in a tank.
    background: Several goldfish swim in a pond.
    multiple: Several koi fish swim in a pond, rainbow color scheme.
  num_inference_steps: 50
learning_rate: 3.0e-05
trainable_modules:
- attn1.to_q
"""


@pytest.mark.parametrize("below", ["", "data/loveu-tgve-2023/", "loveu-tgve-2023/"])
def test_tgve_configs(write, video, tmp_path, below):
    "One YAML per video, read from a folder, whatever part of its path your folder holds."
    write("configs/loveu/DAVIS_480p/gold-fish.yaml", CONFIG)
    write("configs/template.yaml", "train_data: {video_path: data/xxx.mp4}")
    video(f"{below}DAVIS_480p/480p_frames/gold-fish.jpgs")
    (e,), missing = read_dataset(tmp_path / "configs" / "loveu", "tgve", tmp_path / "videos")
    assert (e.name, e.caption, e.frames, e.start, e.stride, missing) == (
        "DAVIS_480p/gold-fish",
        "Several goldfish swim in a tank.",
        4,
        0,
        1,
        [],
    )
    assert (
        list(e.prompts) == ["style", "object", "background", "multiple"]
        and e.prompts["object"] == "Several sharks swim in a tank."
    )
    assert near(read_entry(e), RED, 4)
    assert (
        read_dataset(tmp_path / "configs", "tgve", tmp_path / "videos")[0][0].prompts == e.prompts
    )  # the template is no video
    assert (
        read_dataset(tmp_path / "configs/loveu/DAVIS_480p/gold-fish.yaml", "tgve", tmp_path / "videos")[0][
            0
        ].name
        == "gold-fish"
    )


def test_tune_a_video_config(write, video, tmp_path):
    "The authors' own configs: other names for the span, a plain list of prompts."
    video("data/car-turn.mp4", 12)
    path = write(
        "car-turn.yaml",
        'train_data:\n  video_path: "data/car-turn.mp4"\n  prompt: "a jeep car is moving on the road"\n  n_sample_frames: 4\n'
        '  sample_start_idx: 2\n  sample_frame_rate: 3\nvalidation_data:\n  prompts:\n    - "a jeep car is moving on the beach"\n    - "a sports car is moving on the road"\n',
    )
    (e,), _ = read_dataset(path, "tgve", tmp_path / "videos")
    assert (e.frames, e.start, e.stride, list(e.prompts)) == (4, 2, 3, ["01", "02"])
    assert (read_entry(e) == read_clip(e.video, 4, start=2, stride=3)).all()


def test_tgve_csv(write, video, tmp_path):
    "The archive's own table: sections, empty lines, more columns at the end."
    path = write(
        "LOVEU-TGVE-2023_Dataset.csv",
        "Video name,Our GT caption,Style Change Caption,Object Change Caption,Background Change Caption,Multiple Changes Caption,,\n"
        'DAVIS Videos:,,,,,,,\nstunt,A man.,"A man, anime.",A bear.,A man on ice.,"A bear on ice, anime.",,\n,,,,,,,\nYoutube Videos:,,,,,,,\n'
        "volleyball,Women play.,s,o,b,m,,\nsalsa,They dance.,s,o,b,m,,\n",
    )
    video("DAVIS_480p/480p_frames/stunt.jpgs")
    video("youtube_480p/480p_videos/volleyball.mp4")
    entries, missing = read_dataset(path, "tgve", tmp_path / "videos")
    assert [e.name for e in entries] == ["DAVIS_480p/stunt", "youtube_480p/volleyball"] and entries[
        0
    ].prompts["style"] == "A man, anime."
    assert (
        len(missing) == 1
        and missing[0].startswith("youtube_480p/salsa: no ")
        and all(len(read_entry(e, 4)) == 4 for e in entries)
    )


def test_davis(write, video, tmp_path):
    path = write(
        "prompts.yaml",
        f"blackswan:\n  prompt: {RED}\n  prompts: [{BLUE}, {NIGHT}]\nbear:\n  prompt: a bear\n  prompts: {{style: a bear in ink}}\n",
    )
    video("JPEGImages/480p/blackswan.jpgs")
    (tmp_path / "videos/JPEGImages/480p/bear").mkdir()  # a folder without a picture
    (e,), missing = read_dataset(path, "davis", tmp_path / "videos")
    assert (e.name, e.caption, e.prompts) == ("blackswan", RED, {"01": BLUE, "02": NIGHT}) and near(
        read_entry(e, 4), RED, 4
    )
    assert [m.split(":")[0] for m in missing] == ["bear"]


def test_kinetics(write, video, tmp_path):
    "Clips cut and named by the second, in any folder; or the whole film, of which only the span is read."
    path = write(
        "validate.csv",
        "label,youtube_id,time_start,time_end,split\ntestifying,---QUuC4vJs,84,94,validate\nair drumming,_dbcJuKJQNs,1,2,validate\n"
        '"playing rock, paper",gone0000000,0,10,validate\nyoga,test0000000,0,10,test\n',
    )
    video("testifying/---QUuC4vJs_000084_000094.mp4")
    film = video("_dbcJuKJQNs.mp4", 24)
    (cut, whole), missing = read_dataset(
        path,
        "kinetics",
        tmp_path / "videos",
        prompts=["{caption} on the moon", "{label}, in ink"],
        caption="a person is {label}",
        split="validate",
    )
    assert (cut.name, cut.start_time, cut.caption) == (
        "---QUuC4vJs_000084_000094",
        None,
        "a person is testifying",
    )
    assert cut.prompts == {"01": "a person is testifying on the moon", "02": "testifying, in ink"} and near(
        read_entry(cut, 4), RED, 4
    )
    assert (whole.start_time, whole.end_time) == (1, 2) and (
        read_entry(whole, 8) == read_clip(film, 8, start=8)
    ).all()
    with pytest.raises(ValueError, match="lasts 1 s: at 8 frames a second that is 8; 9 were asked"):
        read_entry(whole, 9)
    assert len(read_entry(whole, 16, fps=16)) == 16
    assert [m.split(":")[0] for m in missing] == ["gone0000000_000000_000010"]


def test_something_something(write, video, tmp_path):
    path = write(
        "something-something-v2-validation.json",
        [
            {
                "id": "78687",
                "label": "holding potato next to vicks vaporub bottle",
                "template": "Holding [something] next to [something]",
                "placeholders": ["potato", "vicks vaporub bottle"],
            },
            {
                "id": "42326",
                "label": "spreading margarine onto bread",
                "template": "Spreading [something] onto [something]",
                "placeholders": ["margarine", "bread"],
            },
        ],
    )
    video("20bn-something-something-v2/78687.webm", 6, fps=12)

    def swap(caption, facts):
        return {"object": caption.replace(facts["placeholders"][0], "banana")}

    (e,), missing = read_dataset(path, "ssv2", tmp_path / "videos", prompts=swap)
    assert (e.name, e.prompts) == (
        "78687",
        {"object": "holding banana next to vicks vaporub bottle"},
    ) and e.video.suffix == ".webm"
    assert near(read_entry(e, 6), RED, 6) and len(missing) == 1


def test_youcook2(write, video, tmp_path):
    path = write(
        "youcookii_annotations_trainval.json",
        {
            "database": {
                "xHr8X2Wpmno": {
                    "duration": 311.77,
                    "subset": "training",
                    "recipe_type": "101",
                    "video_url": "https://www.youtube.com/watch?v=xHr8X2Wpmno",
                    "annotations": [
                        {"segment": [0, 1], "id": 0, "sentence": "place the bacon slices on a baking pan"},
                        {"segment": [1, 3], "id": 1, "sentence": "cut the tomatoes"},
                    ],
                },
                "-vLd3Rmkfro": {
                    "duration": 10,
                    "subset": "validation",
                    "recipe_type": "101",
                    "video_url": "",
                    "annotations": [{"segment": [0, 5], "id": 0, "sentence": "mix"}],
                },
            }
        },
    )
    film = video("raw_videos/training/101/xHr8X2Wpmno.mp4", 24)
    entries, missing = read_dataset(
        path, "youcook2", tmp_path / "videos", prompts="{caption}, drawn in crayon"
    )
    assert [(e.name, e.start_time, e.end_time) for e in entries] == [
        ("xHr8X2Wpmno_00", 0, 1),
        ("xHr8X2Wpmno_01", 1, 3),
    ]
    assert (
        entries[1].prompts == {"01": "cut the tomatoes, drawn in crayon"}
        and (read_entry(entries[1]) == read_clip(film, 16, start=8)).all()
    )
    assert [m.split(":")[0] for m in missing] == ["-vLd3Rmkfro_00"]
    assert len(read_dataset(path, "youcook2", tmp_path / "videos", prompts="x", split="training")[0]) == 2


def test_plain_csv(write, video, tmp_path):
    path = write(
        "mine.csv",
        f'\ufeffclip, caption,prompt,start,notes\na.mp4,{RED},{BLUE},,fine\na.mp4,,{NIGHT},,\n\na.mp4,{RED},"{BLUE}",2,\nb.mp4,x,y,,\n',
    )
    video("a.mp4", 8)
    (one, two), missing = read_dataset(path, "csv", tmp_path / "videos")
    assert one.prompts == {"01": BLUE, "02": NIGHT} and (two.name, two.start, two.prompts) == (
        "a@2",
        2,
        {"01": BLUE},
    )
    assert (read_entry(two, 4) == read_clip(two.video, 4, start=2)).all() and len(missing) == 1


def test_limit_counts_what_is_there(write, video, tmp_path):
    path = write("mine.csv", "clip,caption,prompt\n" + "".join(f"{n}.mp4,c,p\n" for n in "abcd"))
    video("b.mp4")
    video("c.mp4")
    video("d.mp4")
    entries, missing = read_dataset(path, "csv", tmp_path / "videos", limit=2)
    assert [e.name for e in entries] == ["b", "c"] and len(missing) == 1


def YC(**a):
    return {
        "database": {
            "ID": {
                "subset": "training",
                "recipe_type": "101",
                "annotations": [{"segment": [0, 1], "id": 0, "sentence": "s"} | a],
            }
        }
    }


def SS(**a):
    return [{"id": "1", "label": "l", "template": "t", "placeholders": ["p"]} | a]


@pytest.mark.parametrize(
    "format, name, text, said",
    [
        ("csv", "a.csv", "clip,prompt\na,b\n", "a.csv, line 1: has no column caption; it is 'clip,prompt'"),
        ("csv", "a.csv", "", "a.csv, line 1: has no column clip, caption, prompt"),
        (
            "csv",
            "a.csv",
            "clip,caption,prompt\na.mp4,a cat, and a dog,x\n",
            "a.csv, line 2: has 4 fields and the header 3; a comma within a sentence needs quotes",
        ),
        ("csv", "a.csv", "clip,caption,prompt\na.mp4,a cat\n", "a.csv, line 2: has 2 fields"),
        ("csv", "a.csv", 'clip,caption,prompt\na.mp4,"a cat,x\n', "a.csv, line 2: is not CSV"),
        ("csv", "a.csv", "clip,caption,prompt\na.mp4,,x\n", "a.csv, line 2.caption: is empty"),
        ("csv", "a.csv", "clip,caption,prompt\na.mp4,c,\n", "a.csv, line 2.prompt: is empty"),
        (
            "csv",
            "a.csv",
            "clip,caption,prompt\na.mp4,c,x\na.mp4,d,y\n",
            "a.csv, line 3: a.mp4 was captioned 'c' above",
        ),
        (
            "csv",
            "a.csv",
            "clip,caption,prompt,kind\na.mp4,c,x,k\na.mp4,c,y,k\n",
            "a.csv, line 3: a.mp4 has an edit of kind 'k' already",
        ),
        (
            "csv",
            "a.csv",
            "clip,caption,prompt,start\na.mp4,c,x,-1\n",
            "a.csv, line 2, start: is '-1'; it should be a number from 0 up",
        ),
        ("csv", "a.csv", "clip,caption,prompt,start_time\na.mp4,c,x,nan\n", "start_time: is 'nan'"),
        ("tgve", "a.yaml", "train_data: {video_path: a, prompt: [", "a.yaml, line 1: is not plain YAML"),
        ("tgve", "a.yaml", "just a sentence", "a.yaml, train_data: is missing"),
        (
            "tgve",
            "a.yaml",
            "train_data: {video_path: a}\nvalidation_data: {prompts: [x]}",
            "a.yaml, train_data.prompt: is missing",
        ),
        (
            "tgve",
            "a.yaml",
            "train_data: {video_path: a, prompt: 1984}\nvalidation_data: {prompts: [x]}",
            "a.yaml, train_data.prompt: is 1984; it should be text: put quotes around it",
        ),
        (
            "tgve",
            "a.yaml",
            "train_data: {video_path: a, prompt: b}\nvalidation_data: {prompts: {style: no}}",
            "a.yaml, validation_data.prompts.style: is False; it should be text",
        ),
        (
            "tgve",
            "a.yaml",
            "train_data: {video_path: a, prompt: b}\nvalidation_data: {prompts: []}",
            "a.yaml, validation_data.prompts: is empty",
        ),
        (
            "tgve",
            "a.yaml",
            "train_data: {video_path: a, prompt: b, num_frames: many}\nvalidation_data: {prompts: [x]}",
            "a.yaml, train_data.num_frames: is 'many'",
        ),
        (
            "tgve",
            "a.yaml",
            "!!python/object/apply:os.system ['echo pwned']",
            "a.yaml, line 1: is not plain YAML",
        ),
        ("tgve", "a.csv", "Video name,Our GT caption\n", "a.csv, line 1: has no column Style Change Caption"),
        ("davis", "a.yaml", "- bear\n", "a.yaml, line 1: should be a mapping"),
        ("davis", "a.yaml", "bear: {prompt: a bear}", "a.yaml, bear.prompts: is missing"),
        (
            "kinetics",
            "a.csv",
            "youtube_id,time_start,time_end,split\nx,0,1,test\n",
            "a.csv, line 1: has no column label",
        ),
        (
            "kinetics",
            "a.csv",
            "label,youtube_id,time_start,time_end,split\nyoga,x,zero,1,test\n",
            "a.csv, line 2, time_start: is 'zero'",
        ),
        (
            "kinetics",
            "a.csv",
            "label,youtube_id,time_start,time_end,split\nyoga,x,5,5,test\n",
            "a.csv, line 2: ends at 5 s and starts at 5 s",
        ),
        ("ssv2", "a.json", '[{"id": "1",\n"label": }]', "a.json, line 2: is not JSON"),
        ("ssv2", "a.json", '{"1": "x"}', "a.json, line 1: should be a list"),
        ("ssv2", "a.json", '[{"id": "1"}]', "a.json, [0].label: is missing"),
        ("ssv2", "a.json", SS(id=1), "a.json, [0].id: is 1; it should be text"),
        ("ssv2", "a.json", SS(placeholders="p"), "a.json, [0].placeholders: is 'p'; it should be a list"),
        ("youcook2", "a.json", {"data": {}}, "a.json, database: is missing"),
        ("youcook2", "a.json", YC(segment=None), "a.json, database.ID.annotations[0].segment: is missing"),
        (
            "youcook2",
            "a.json",
            YC(segment=[1]),
            "a.json, database.ID.annotations[0].segment: is [1]; it should be [start, end]",
        ),
        ("youcook2", "a.json", YC(segment=[3, 1]), "it ends before it starts"),
        ("youcook2", "a.json", YC(sentence=" "), "a.json, database.ID.annotations[0].sentence: is empty"),
    ],
)
def test_malformed_says_where(write, tmp_path, format, name, text, said):
    options = dict(prompts="{caption}!") if format in ("kinetics", "ssv2", "youcook2") else {}
    with pytest.raises(ValueError) as e:
        read_dataset(write(name, text), format, tmp_path, **options)
    assert said in str(e.value)


def test_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes("clip,caption,prompt\na.mp4,caf\u00e9,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match="a.csv, byte 29: is not UTF-8"):
        read_dataset(tmp_path / "a.csv", "csv")


def test_wrong_folder_and_wrong_options(write, tmp_path):
    path = write("mine.csv", "clip,caption,prompt\na.mp4,c,p\nb.mp4,c,p\n")
    (tmp_path / "a.mp4").touch()  # a download that failed
    with pytest.raises(FileNotFoundError, match="none of the 2 videos of mine.csv is there"):
        read_dataset(path, "csv")
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nowhere"):
        read_dataset(path, "csv", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="format is 'sql'; use one of csv, tgve"):
        read_dataset(path, "sql")
    with pytest.raises(ValueError, match="csv brings its own prompts and captions: leave out prompts"):
        read_dataset(path, "csv", prompts="x")
    names = write("k.csv", "label,youtube_id,time_start,time_end,split\nyoga,x,0,1,test\n")
    with pytest.raises(ValueError, match="no edit prompts: give some"):
        read_dataset(names, "kinetics", tmp_path)
    for bad in ("{caption.__class__}", "{0}", "{caption", "{colour}"):
        with pytest.raises(ValueError, match="the template"):
            read_dataset(names, "kinetics", tmp_path, prompts=bad)


# ------------------------------------------------------------------ results


def row(clip="a", kind="k", when=1.0, **more):
    return (
        dict(
            clip=clip,
            kind=kind,
            when=when,
            caption="c",
            prompt="p",
            file=None,
            scores={},
            error=None,
            seconds=1.0,
        )
        | more
    )


def test_the_latest_row_counts_whichever_file_it_is_in(tmp_path):
    append_result(tmp_path / "results.jsonl", row(error="OSError: once"))
    append_result(tmp_path / "results-1.jsonl", row(when=2.0))
    assert read_results(tmp_path)["a", "k"]["error"] is None
    merge_results(tmp_path, [])
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"] and len(
        (tmp_path / "results.jsonl").read_text().splitlines()
    ) == 1


def test_merging_sorts_by_the_data_set(tmp_path):
    for when, (clip, kind) in enumerate([("b", "1"), ("a", "2"), ("old", "x"), ("a", "1")]):
        append_result(tmp_path / "results.jsonl", row(clip, kind, when))
    merged = merge_results(
        tmp_path, [Entry("a", Path(), "", {"1": "", "2": ""}), Entry("b", Path(), "", {"1": ""})]
    )
    assert [(r["clip"], r["kind"]) for r in merged] == [("a", "1"), ("a", "2"), ("b", "1"), ("old", "x")]


@pytest.mark.parametrize("junk", [b"\x00\x00\x00", b"[1, 2]\n", b"null\n", b'{"clip": "a"}\n', b"\xff\xfe\n"])
def test_junk_is_no_result(tmp_path, junk):
    (tmp_path / "results.jsonl").write_bytes(junk)
    append_result(tmp_path / "results.jsonl", row())
    assert list(read_results(tmp_path)) == [("a", "k")]


def test_seeds_are_apart_and_fixed():
    assert (
        len({job_seed(s, n) for s in range(3) for n in "abc"}) == 9
        and job_seed(0, "star") == job_seed(0, "star") < 2**63
    )


def test_a_page_cannot_be_broken_by_words(tmp_path):
    "What people write into captions is text, on the page and in the tables."
    claim(tmp_path, dict(model="<b>"))
    append_result(
        tmp_path / "results.jsonl",
        row("<script>x", prompt='"><img src=x onerror=1> a | b\nc', error="E: </div><script>"),
    )
    page = write_summary(tmp_path, ["<i>: no x"]).read_text()
    assert "<script>x" not in page and "<img" not in page and "<i>" not in page and '<b>"' not in page
    table = (tmp_path / "summary.md").read_text().split("Every edit:")[1].strip().splitlines()
    assert len(table) == 3 and "a \\| b c" in table[2]


# ------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def pipe():
    from tune_a_video_nbs.ldm import quiet
    from tune_a_video_nbs.pipeline import TuneAVideoPipeline

    quiet()
    return TuneAVideoPipeline.from_pretrained("sprites")


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    "A folder with two clips of four frames and a table of four edits."
    home = tmp_path_factory.mktemp("mine")
    for name, words in (("star", RED), ("ring", RING)):
        write_clip(home / f"{name}.mp4", draw_clip(words, 4))
    (home / "mine.csv").write_text(
        f"clip,caption,prompt,kind\nstar.mp4,{RED},{BLUE},colour\nstar.mp4,,{NIGHT},place\nring.mp4,{RING},{SNOW},place\nring.mp4,,a panda on the moon,other\n"
    )
    return home


def test_a_run(mine, pipe, tmp_path, monkeypatch):
    "Tuned once per clip; exact scores where there are any; files for eyes and spreadsheets; the pipeline is left as it was."
    tuned, weights, settings = (
        [],
        {k: v.clone() for k, v in pipe.unet.state_dict().items()},
        dict(pipe.settings),
    )
    tune = type(pipe).tune
    monkeypatch.setattr(
        type(pipe),
        "tune",
        lambda self, clip, caption, **k: (tuned.append(caption), tune(self, clip, caption, **k))[1],
    )
    entries, _ = read_dataset(mine / "mine.csv", "csv")
    rows = run_benchmark(entries, tmp_path / "out", pipe=pipe, frames=4, settings=QUICK, progress=False)
    assert tuned == [RED, RING] and [(r["clip"], r["kind"]) for r in rows] == [
        ("star", "colour"),
        ("star", "place"),
        ("ring", "place"),
        ("ring", "other"),
    ]
    assert [sorted(r["scores"]) for r in rows] == [
        ["all", "edited", "kept", "path_error", "psnr_to_source"]
    ] * 3 + [["psnr_to_source"]]
    assert (
        not any(r["error"] for r in rows)
        and mean_table(rows)[-1]["all_n"] == 3
        and shown_means(rows)[-1]["all"].endswith(" (3)")
    )
    assert all(weights[k].equal(v) for k, v in pipe.unet.state_dict().items()) and pipe.settings == settings
    out = tmp_path / "out"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == sorted(
        [
            "index.html",
            "results.jsonl",
            "settings.json",
            "summary.csv",
            "summary.md",
            "clips/star/source.mp4",
            "clips/star/colour.mp4",
            "clips/star/place.mp4",
            "clips/ring/source.mp4",
            "clips/ring/place.mp4",
            "clips/ring/other.mp4",
        ]
    )
    page = (out / "index.html").read_text()
    assert re.findall(r'<video src="([^"]+)"', page) == [
        "clips/star/source.mp4",
        "clips/star/colour.mp4",
        "clips/star/place.mp4",
        "clips/ring/source.mp4",
        "clips/ring/place.mp4",
        "clips/ring/other.mp4",
    ]
    assert not re.search(
        r"""https?:|<link|@import|url\(|src="//""", page
    )  # it loads nothing from the network
    assert (
        run_benchmark(entries, out, pipe=pipe, frames=4, settings=QUICK, progress=False) == rows
        and len(tuned) == 2
    )  # nothing left to do
    with pytest.raises(ValueError, match="num_inference_steps is 3 and was 2"):
        run_benchmark(
            entries,
            out,
            pipe=pipe,
            frames=4,
            settings=QUICK | dict(num_inference_steps=3),
            missing=["x: no y"],
        )
    assert not (out / "missing.txt").exists()  # a refused run touches nothing
    entries[0].prompts["colour"] = "a green star is bouncing on the grass"  # another sentence is another job
    new = run_benchmark(entries, out, pipe=pipe, frames=4, settings=QUICK, progress=False)
    assert [a == b for a, b in zip(rows, new)] == [False, True, True, True]


def test_one_failure_stops_nothing(mine, pipe, tmp_path):
    "A clip that cannot be read, a score that is not a number, a score that raises: told in the row, tried again, and alone."
    (tmp_path / "bad.mp4").write_bytes((mine / "star.mp4").read_bytes()[:900])
    entries = [
        Entry("bad", tmp_path / "bad.mp4", RED, {"a": BLUE, "b": NIGHT}),
        Entry("star", mine / "star.mp4", RED, {"a": BLUE, "b": NIGHT}),
    ]
    odd = dict(odd=lambda clip, source, prompt, caption: float("nan") if prompt == BLUE else 1.0)

    def run(metrics):
        return run_benchmark(
            entries, tmp_path / "out", pipe=pipe, frames=4, settings=QUICK, metrics=metrics, progress=False
        )

    rows = run(odd)
    assert (
        [bool(r["error"]) for r in rows] == [True, True, True, False]
        and "bad.mp4" in rows[0]["error"]
        and "odd is not a finite number" in rows[2]["error"]
    )
    assert (
        "ValueError: odd is not" in (tmp_path / "out" / "index.html").read_text()
        and mean_table(rows)[-1]["failed"] == 3
    )
    assert (
        len(list((tmp_path / "out" / ".tuned").iterdir())) == 1
    )  # what star learned waits for its second try

    def boom(*_):
        raise RuntimeError("CUDA out of memory")

    again = run(dict(odd=boom))
    assert (
        again[3] == rows[3] and "RuntimeError: CUDA out of memory" in again[2]["error"]
    )  # what was done is not done again
    entries[0].video = mine / "ring.mp4"
    assert (
        not any(r["error"] for r in run(dict(odd=lambda *_: 2.0)))
        and not (tmp_path / "out" / ".tuned").exists()
    )


def test_no_tuning_is_a_baseline(mine, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(type(pipe), "tune", lambda *_, **__: pytest.fail("it tuned"))
    (r,) = run_benchmark(
        [Entry("star", mine / "star.mp4", RED, {"a": BLUE})],
        tmp_path / "out",
        pipe=pipe,
        frames=4,
        settings=QUICK | dict(tune_steps=0),
        progress=False,
    )
    assert r["error"] is None


def test_ctrl_c_keeps_what_is_done(mine, pipe, tmp_path):
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1.0

    entries, _ = read_dataset(mine / "mine.csv", "csv")
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(
            entries, tmp_path, pipe=pipe, frames=4, settings=QUICK, metrics=dict(s=stop), progress=False
        )
    assert (
        list(read_results(tmp_path)) == [("star", "colour")]
        and 'src="clips/star/colour.mp4"' in (tmp_path / "index.html").read_text()
    )


def test_a_full_disk_is_not_a_failed_edit(mine, pipe, tmp_path, monkeypatch):
    "If results cannot be kept, going on would be for nothing."
    from tune_a_video_nbs import benchmark

    def full(file, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(benchmark, "append_result", full)
    with pytest.raises(OSError, match="No space"):
        run_benchmark(
            read_dataset(mine / "mine.csv", "csv")[0],
            tmp_path,
            pipe=pipe,
            frames=4,
            settings=QUICK,
            progress=False,
        )


def test_strange_requests(mine, pipe, tmp_path):
    def entry(**a):
        return Entry(**dict(name="a", video=mine / "star.mp4", caption=RED, prompts={"k": BLUE}) | a)

    with pytest.raises(ValueError, match="no setting called stesp"):
        run_benchmark([entry()], tmp_path / "o", pipe=pipe, settings=dict(stesp=1))
    with pytest.raises(ValueError, match="'source'"):
        run_benchmark([entry(prompts={"source": BLUE})], tmp_path / "o", pipe=pipe)
    with pytest.raises(ValueError, match="one file"):
        run_benchmark([entry(), entry(name="A")], tmp_path / "o", pipe=pipe)
    with pytest.raises(FileExistsError, match="holds something else"):
        run_benchmark([entry()], mine, pipe=pipe)
    assert not (tmp_path / "o").exists() and not (mine / "settings.json").exists()


def test_networks_that_are_asked_stand_in_the_table(mine, pipe, tmp_path):
    "By name: so that another run with another judge is another folder, and a judge that is not there is missed before anything is tuned."
    metrics = METRICS | model_metrics(clip="sprites", warp="block")
    rows = run_benchmark(
        read_dataset(mine / "mine.csv", "csv")[0][:1],
        tmp_path / "out",
        pipe=pipe,
        frames=4,
        settings=QUICK,
        metrics=metrics,
        progress=False,
    )
    clip = read_clip(tmp_path / "out" / rows[0]["file"], 4)
    assert (
        abs(rows[0]["scores"]["text"] - text_alignment(clip, BLUE)) < 2
        and -1 <= rows[0]["scores"]["adjacent"] <= 1
    )  # the file is compressed
    assert all(k in (tmp_path / "out" / "summary.md").read_text() for k in ("all_pairs", "warp_error"))
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["metrics"][-2:] == [
        "clip sprites",
        "warp block",
    ]
    with pytest.raises(ValueError, match="use one of block, opencv"):
        model_metrics(warp="blcok")
    with pytest.raises(FileNotFoundError, match="no CLIP called|no model called"):
        model_metrics(clip="nosuch")


# ------------------------------------------------------------------ the terminal, killed and spread

WORDS = ("--format", "csv", "--frames", 4, "--tune-steps", 2, "--steps", 2)
ENV = os.environ | dict(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""
)  # one order of sums, wherever a job runs


def script(tmp_path):
    (tmp_path / "run.py").write_text("from tune_a_video_nbs.cli import main\nmain()\n")
    return [sys.executable, tmp_path / "run.py"]


def words(mine, out, *more):
    return [str(w) for w in ("benchmark", mine / "mine.csv", "--out", out, *WORDS, *more)]


@pytest.fixture(scope="module")
def calm(mine, tmp_path_factory):
    "The folder of a run that nobody disturbed, in one process, and what it said."
    out = tmp_path_factory.mktemp("calm")
    done = subprocess.run(
        [*script(out), *words(mine, out / "out", "--json")],
        capture_output=True,
        text=True,
        env=ENV,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return out / "out", done


def test_terminal(calm):
    out, done = calm
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert (told["jobs"], told["failed"], told["missing"], told["page"]) == (
        4,
        0,
        0,
        str(out / "index.html"),
    ) and [r["kind"] for r in told["table"]] == ["colour", "place", "other", "every kind"]
    assert "edits" in done.stderr and not re.search("Traceback|torchvision|Loading", done.stderr)


def test_killed_and_resumed_gives_the_same_table(mine, calm, tmp_path):
    p = subprocess.Popen(
        [*script(tmp_path), *words(mine, tmp_path / "out")],
        env=ENV,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.time() + 300
        while not read_results(tmp_path / "out") and p.poll() is None and time.time() < until:
            time.sleep(0.02)
    finally:
        p.kill()
        p.wait()
    before = read_results(tmp_path / "out")
    assert p.returncode == -signal.SIGKILL and 1 <= len(before) < 4
    with open(tmp_path / "out" / "results.jsonl", "ab") as f:
        f.write(b'{"clip": "ring", "kind": "pla')  # and a torn line
    done = subprocess.run(
        [*script(tmp_path), *words(mine, tmp_path / "out")],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0 and "open:" in done.stdout, done.stderr
    after = read_results(tmp_path / "out")
    assert len(after) == 4 and all(after[k] == r for k, r in before.items())
    assert (tmp_path / "out" / "summary.csv").read_text() == (calm[0] / "summary.csv").read_text()
    assert not [q for q in (tmp_path / "out").rglob("*") if q.name.endswith(".part") or q.name == ".tuned"]


def test_a_folder_that_is_being_claimed_is_free(tmp_path):
    "One process writes its settings, under a temporary name first, while another looks."
    (tmp_path / ".settings.json.1.part").touch()
    check_folder(tmp_path)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match="something else"):
        check_folder(tmp_path)


def test_two_processes_give_the_same_table(mine, calm, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    console = Path(sys.executable).with_name("tune-a-video")  # as the help says, where it is installed
    program = ["--no_python", str(console)] if console.exists() else map(str, script(tmp_path)[1:])
    done = subprocess.run(
        [*launch, *program, *words(mine, tmp_path / "out", "--json")],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1
    )  # one process reports
    assert (tmp_path / "out" / "summary.csv").read_text() == (calm[0] / "summary.csv").read_text()
    assert [p.name for p in (tmp_path / "out").glob("results*")] == ["results.jsonl"]
    assert {r["process"] for r in read_results(tmp_path / "out").values()} == {0, 1}  # both had a share
    assert [json.loads(x)["clip"] for x in (tmp_path / "out" / "results.jsonl").read_text().splitlines()] == [
        "star",
        "star",
        "ring",
        "ring",
    ]


def test_one_process_in_place_of_two_is_told(monkeypatch):
    "accelerate launch --cpu --num_processes 2 starts one and says nothing; these are the marks it leaves."
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.warns(UserWarning, match="started one process only"):
        processes()


def test_help_explains_itself(call):
    code, out, _ = call("benchmark", "--help")
    assert (
        code == 0
        and all(f in out for f in FORMATS)
        and "Examples:" in out
        and "accelerate launch" in out
        and "Exit code:" in out
    )


def test_terminal_says_what_is_wrong_in_one_line(call, mine, tmp_path, write):
    for args, code, said in (
        (("nowhere.csv", "--format", "csv"), 1, "no such file or folder: nowhere.csv"),
        ((mine / "mine.csv",), 2, "--format"),
        ((mine / "mine.csv", "--format", "sql"), 2, "sql"),
        ((mine / "mine.csv", "--format", "csv", "--prompt", "x"), 1, "csv brings its own prompts"),
        ((mine / "mine.csv", "--format", "csv", "--out", mine), 1, "holds something else"),
        ((mine / "mine.csv", "--format", "csv", "--metrics", "nothing:M"), 1, "No module named 'nothing'"),
        ((write("bad.csv", "clip,caption\n"), "--format", "csv"), 1, "bad.csv, line 1: has no column prompt"),
    ):
        got, out, err = call("benchmark", *args)
        assert (
            got == code and out == "" and said in err and (code == 2 or len(err.strip().splitlines()) == 1)
        ), err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.csv"]


def test_terminal_with_losses_and_scores_of_your_own(call, mine, write, tmp_path):
    write(
        "scores.py",
        "def length(clip, source, prompt, caption):\n    if 'blue' in prompt: raise KeyError('x')\n    return len(clip)\nMINE = dict(length=length)\n",
    )
    path = write("some.csv", f"clip,caption,prompt\nstar.mp4,{RED},{BLUE}\nstar.mp4,,{NIGHT}\ngone.mp4,c,p\n")
    code, out, err = call("benchmark", path, "--videos", mine, "--metrics", "scores:MINE", *WORDS)
    assert (
        code == 3
        and "1 missing, skipped: gone" in err
        and "failed: star, 01: KeyError" in err
        and "length" in out
    )
    assert (tmp_path / "benchmarks" / "some" / "missing.txt").read_text().startswith("gone: no ")
    code, _, err = call("benchmark", path, "--videos", mine, "--metrics", "scores:MINE", *WORDS, "--seed", 1)
    assert code == 1 and "seed is 1 and was 0" in err
