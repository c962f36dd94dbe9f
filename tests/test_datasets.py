"Six kinds of annotations in their exact formats, and what is said of broken ones."

import json
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from tune_a_video_nbs.annotations import read_table
from tune_a_video_nbs.clips import read_clip, write_clip
from tune_a_video_nbs.datasets import read_dataset, read_entry
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.footage import fill_template, make_prompts
from tune_a_video_nbs.sprites import draw_clip

RED = "a red star is bouncing on the grass"
BLUE = "a blue star is bouncing on the grass"
NIGHT = "a red star is bouncing on a night sky"


@pytest.fixture
def video(tmp_path):
    "Write a small real clip below the folder `videos`: mp4, webm, or a folder of pictures."

    def write(name, frames=4, fps=8):
        path, clip = tmp_path / "videos" / name, draw_clip(RED, frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".webm":
            write_webm(path, clip, fps)
        elif path.suffix:
            write_clip(path, clip, fps)
        else:
            path.mkdir()
            for i, frame in enumerate(clip):
                Image.fromarray(frame).save(path / f"{i:05d}.jpg")
        return path

    return write


def write_webm(path, clip, fps):
    _, h, w, _ = clip.shape
    raw = f"-f rawvideo -pix_fmt rgb24 -s {w}x{h} -r {fps} -i -".split()
    vp9 = ["-c:v", "libvpx-vp9", "-crf", "10", "-b:v", "0"]
    program = shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    if subprocess.run([program, "-v", "error", *raw, *vp9, path], input=clip.tobytes()).returncode:
        pytest.skip("this ffmpeg writes no webm")


@pytest.fixture
def write(tmp_path):
    "Write annotations: text as it is, anything else as JSON."

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return path

    return write


def is_near(clip, frames):
    "Lossy files differ a little."
    return np.abs(clip.astype(int) - draw_clip(RED, frames)).mean() < 12


def names_of(missing):
    return [line.split(":")[0] for line in missing]


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
    file = write("configs/loveu/DAVIS_480p/gold-fish.yaml", CONFIG)
    write("configs/template.yaml", "train_data: {video_path: data/xxx.mp4}")  # is no video
    video(f"{below}DAVIS_480p/480p_frames/gold-fish")
    (entry,), missing = read_dataset(tmp_path / "configs" / "loveu", "tgve", tmp_path / "videos")
    assert entry.name == "DAVIS_480p/gold-fish"
    assert entry.caption == "Several goldfish swim in a tank."
    assert (entry.frames, entry.start, entry.stride) == (4, 0, 1)
    assert missing == []
    assert list(entry.prompts) == ["style", "object", "background", "multiple"]
    assert entry.prompts["object"] == "Several sharks swim in a tank."
    assert is_near(read_entry(entry), 4)
    (same,), _ = read_dataset(tmp_path / "configs", "tgve", tmp_path / "videos")
    assert same.prompts == entry.prompts
    (alone,), _ = read_dataset(file, "tgve", tmp_path / "videos")
    assert alone.name == "gold-fish"


def test_tune_a_video_config(write, video, tmp_path):
    "The authors' own configs: other names for the span, a plain list of prompts."
    video("data/car-turn.mp4", 12)
    text = """
train_data:
  video_path: "data/car-turn.mp4"
  prompt: "a jeep car is moving on the road"
  n_sample_frames: 4
  sample_start_idx: 2
  sample_frame_rate: 3
validation_data:
  prompts:
    - "a jeep car is moving on the beach"
    - "a sports car is moving on the road"
"""
    (entry,), _ = read_dataset(write("car-turn.yaml", text), "tgve", tmp_path / "videos")
    assert (entry.frames, entry.start, entry.stride) == (4, 2, 3)
    assert list(entry.prompts) == ["01", "02"]
    assert (read_entry(entry) == read_clip(entry.video, 4, start=2, stride=3)).all()


def test_a_folder_without_configs(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no .yaml"):
        read_dataset(tmp_path, "tgve")


def test_tgve_csv(write, video, tmp_path):
    "The archive's own table: sections, empty lines, more columns at the end."
    kinds = "Style Change Caption,Object Change Caption,Background Change Caption,Multiple Changes Caption"
    lines = [
        f"Video name,Our GT caption,{kinds},,",
        "DAVIS Videos:,,,,,,,",
        'stunt,A man.,"A man, anime.",A bear.,A man on ice.,"A bear on ice, anime.",,',
        ",,,,,,,",
        "Youtube Videos:,,,,,,,",
        "volleyball,Women play.,s,o,b,m,,",
        "salsa,They dance.,s,o,b,m,,",
    ]
    path = write("LOVEU-TGVE-2023_Dataset.csv", "\n".join(lines) + "\n")
    video("DAVIS_480p/480p_frames/stunt")
    video("youtube_480p/480p_videos/volleyball.mp4")
    entries, missing = read_dataset(path, "tgve", tmp_path / "videos")
    assert [e.name for e in entries] == ["DAVIS_480p/stunt", "youtube_480p/volleyball"]
    assert entries[0].prompts["style"] == "A man, anime."
    assert len(missing) == 1
    assert missing[0].startswith("youtube_480p/salsa: no ")
    assert all(len(read_entry(e, 4)) == 4 for e in entries)


def test_davis(write, video, tmp_path):
    text = f"""
blackswan:
  prompt: {RED}
  prompts: [{BLUE}, {NIGHT}]
bear:
  prompt: a bear
  prompts: {{style: a bear in ink}}
"""
    path = write("prompts.yaml", text)
    video("JPEGImages/480p/blackswan")
    (tmp_path / "videos/JPEGImages/480p/bear").mkdir()  # a folder without a picture
    (entry,), missing = read_dataset(path, "davis", tmp_path / "videos")
    assert (entry.name, entry.caption) == ("blackswan", RED)
    assert entry.prompts == {"01": BLUE, "02": NIGHT}
    assert is_near(read_entry(entry, 4), 4)
    assert names_of(missing) == ["bear"]


KINETICS = """label,youtube_id,time_start,time_end,split
testifying,---QUuC4vJs,84,94,validate
air drumming,_dbcJuKJQNs,1,2,validate
"playing rock, paper",gone0000000,0,10,validate
yoga,test0000000,0,10,test
"""


def test_kinetics(write, video, tmp_path):
    "Clips cut and named by the second, in any folder; or the whole film, of which only the span is read."
    path = write("validate.csv", KINETICS)
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
    assert (cut.name, cut.start_time) == ("---QUuC4vJs_000084_000094", None)
    assert cut.caption == "a person is testifying"
    assert cut.prompts == {"01": "a person is testifying on the moon", "02": "testifying, in ink"}
    assert is_near(read_entry(cut, 4), 4)
    assert (whole.start_time, whole.end_time) == (1, 2)
    assert (read_entry(whole, 8) == read_clip(film, 8, start=8)).all()
    with pytest.raises(ValueError, match="lasts 1 s: at 8 frames a second that is 8; 9 were asked"):
        read_entry(whole, 9)
    assert len(read_entry(whole, 16, fps=16)) == 16
    assert names_of(missing) == ["gone0000000_000000_000010"]


def test_something_something(write, video, tmp_path):
    records = [
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
    ]
    path = write("something-something-v2-validation.json", records)
    video("20bn-something-something-v2/78687.webm", 6, fps=12)

    def swap(caption, facts):
        return {"object": caption.replace(facts["placeholders"][0], "banana")}

    (entry,), missing = read_dataset(path, "ssv2", tmp_path / "videos", prompts=swap)
    assert entry.name == "78687"
    assert entry.prompts == {"object": "holding banana next to vicks vaporub bottle"}
    assert entry.video.suffix == ".webm"
    assert is_near(read_entry(entry, 6), 6)
    assert len(missing) == 1


def test_youcook2(write, video, tmp_path):
    bacon = {"segment": [0, 1], "id": 0, "sentence": "place the bacon slices on a baking pan"}
    tomatoes = {"segment": [1, 3], "id": 1, "sentence": "cut the tomatoes"}
    trained = dict(subset="training", recipe_type="101", duration=311.77, annotations=[bacon, tomatoes])
    mix = {"segment": [0, 5], "id": 0, "sentence": "mix"}
    lost = dict(subset="validation", recipe_type="101", duration=10, annotations=[mix])
    database = {"xHr8X2Wpmno": trained, "-vLd3Rmkfro": lost}
    path = write("youcookii_annotations_trainval.json", {"database": database})
    film = video("raw_videos/training/101/xHr8X2Wpmno.mp4", 24)
    prompts = "{caption}, drawn in crayon"
    entries, missing = read_dataset(path, "youcook2", tmp_path / "videos", prompts=prompts)
    spans = [(e.name, e.start_time, e.end_time) for e in entries]
    assert spans == [("xHr8X2Wpmno_00", 0, 1), ("xHr8X2Wpmno_01", 1, 3)]
    assert entries[1].prompts == {"01": "cut the tomatoes, drawn in crayon"}
    assert (read_entry(entries[1]) == read_clip(film, 16, start=8)).all()
    assert names_of(missing) == ["-vLd3Rmkfro_00"]
    training, _ = read_dataset(path, "youcook2", tmp_path / "videos", prompts="x", split="training")
    assert len(training) == 2


def test_plain_csv(write, video, tmp_path):
    lines = [
        "\ufeffclip, caption,prompt,start,notes",
        f"a.mp4,{RED},{BLUE},,fine",
        f"a.mp4,,{NIGHT},,",
        "",
        f'a.mp4,{RED},"{BLUE}",2,',
        "b.mp4,x,y,,",
    ]
    path = write("mine.csv", "\n".join(lines) + "\n")
    video("a.mp4", 8)
    (whole, later), missing = read_dataset(path, "csv", tmp_path / "videos")
    assert whole.prompts == {"01": BLUE, "02": NIGHT}
    assert (later.name, later.start) == ("a@2", 2)
    assert later.prompts == {"01": BLUE}
    assert (read_entry(later, 4) == read_clip(later.video, 4, start=2)).all()
    assert len(missing) == 1


def test_limit_counts_what_is_there(write, video, tmp_path):
    path = write("mine.csv", "clip,caption,prompt\n" + "".join(f"{name}.mp4,c,p\n" for name in "abcd"))
    for name in "bcd":
        video(f"{name}.mp4")
    entries, missing = read_dataset(path, "csv", tmp_path / "videos", limit=2)
    assert [e.name for e in entries] == ["b", "c"]
    assert len(missing) == 1


def youcook2(**changed):
    annotation = {"segment": [0, 1], "id": 0, "sentence": "s"} | changed
    film = {"subset": "training", "recipe_type": "101", "annotations": [annotation]}
    return {"database": {"ID": film}}


def ssv2(**changed):
    return [{"id": "1", "label": "l", "template": "t", "placeholders": ["p"]} | changed]


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
        ("csv", "a.csv", "clip,caption,prompt\na.mp4,,x\n", "a.csv, line 2, caption: is empty"),
        ("csv", "a.csv", "clip,caption,prompt\na.mp4,c,\n", "a.csv, line 2, prompt: is empty"),
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
        ("ssv2", "a.json", ssv2(id=1), "a.json, [0].id: is 1; it should be text"),
        ("ssv2", "a.json", ssv2(placeholders="p"), "a.json, [0].placeholders: is 'p'; it should be a list"),
        ("youcook2", "a.json", {"data": {}}, "a.json, database: is missing"),
        (
            "youcook2",
            "a.json",
            youcook2(segment=None),
            "a.json, database.ID.annotations[0].segment: is missing",
        ),
        (
            "youcook2",
            "a.json",
            youcook2(segment=[1]),
            "a.json, database.ID.annotations[0].segment: is [1]; it should be [start, end]",
        ),
        ("youcook2", "a.json", youcook2(segment=[3, 1]), "it ends before it starts"),
        (
            "youcook2",
            "a.json",
            youcook2(sentence=" "),
            "a.json, database.ID.annotations[0].sentence: is empty",
        ),
    ],
)
def test_malformed_says_where(write, tmp_path, format, name, text, said):
    options = dict(prompts="{caption}!") if format in ("kinetics", "ssv2", "youcook2") else {}
    with pytest.raises(InputError) as caught:
        read_dataset(write(name, text), format, tmp_path, **options)
    assert said in str(caught.value)


def test_columns_of_one_name_are_counted_once(write):
    "A sheet may end in empty columns."
    path = write("a.csv", "clip,,\na,,\nb,x\n")
    rows = read_table(path, ["clip"])
    assert next(rows).values == {"clip": "a", "": ""}
    with pytest.raises(InputError, match="a.csv, line 3: has"):
        next(rows)


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
    with pytest.raises(ValueError, match="a file for each split"):
        read_dataset(write("s.json", ssv2()), "ssv2", tmp_path, prompts="x", split="test")
    with pytest.raises(ValueError, match="lists no clips"):
        read_dataset(write("empty.csv", "clip,caption,prompt\n"), "csv", tmp_path)


BAD_TEMPLATES = (
    "{caption.__class__}",
    "{caption[0]}",
    "{0}",
    "{}",
    "{caption",
    "{colour}",
    "{caption!r}",
    "{caption:{label.__class__}}",  # `str.format` would read the attribute, for the width
    "{caption:{label.__class__.__mro__}}",
)


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_a_template_fills_in_and_does_no_more(write, tmp_path, template):
    names = write("k.csv", "label,youtube_id,time_start,time_end,split\nyoga,x,0,1,test\n")
    with pytest.raises(InputError, match="the template"):
        read_dataset(names, "kinetics", tmp_path, prompts=template)
    with pytest.raises(InputError, match="the template"):
        read_dataset(names, "kinetics", tmp_path, prompts="x", caption=template)


def test_prompts_are_needed(write, tmp_path):
    names = write("k.csv", "label,youtube_id,time_start,time_end,split\nyoga,x,0,1,test\n")
    with pytest.raises(InputError, match="no edit prompts: give some"):
        read_dataset(names, "kinetics", tmp_path)


def test_what_is_filled_in_is_not_read_as_a_template():
    assert fill_template("{label} {{{label}}}", dict(label="{caption}", n=1)) == "{caption} {{caption}}"
    assert make_prompts("{caption}", "{label}", dict(label="x")) == {"01": "{label}"}


def test_yaml_that_asks_for_code_runs_nothing(write, tmp_path):
    path = write("evil.yaml", f"!!python/object/apply:os.system ['touch {tmp_path}/pwned']")
    with pytest.raises(InputError, match="evil.yaml, line 1: is not plain YAML"):
        read_dataset(path, "tgve", tmp_path)
    assert not Path(tmp_path / "pwned").exists()
