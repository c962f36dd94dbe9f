"The terminal: what it makes, what it says when something is wrong, and that nothing half-written is left."

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest

from tune_a_video_nbs.cli import app
from tune_a_video_nbs.files import check_free, whole_folder
from tune_a_video_nbs.report import text_table

RED, BLUE, NIGHT = (
    f"a {s} is bouncing {p}"
    for s, p in (("red star", "on the grass"), ("blue star", "on the grass"), ("red star", "on a night sky"))
)
FAST = ("--steps", 2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    "An mp4 of four frames."
    from tune_a_video_nbs.clips import write_clip
    from tune_a_video_nbs.sprites import draw_clip

    return write_clip(tmp_path_factory.mktemp("clips") / "star.mp4", draw_clip(RED, 4))


@pytest.fixture(scope="module")
def tuned(clip, tmp_path_factory):
    "A run, tuned for two steps; copy it before you change it."
    from tune_a_video_nbs.runs import run_tune

    out = tmp_path_factory.mktemp("runs") / "star"
    run_tune(clip, RED, out, frames=4, steps=2)
    return out


@pytest.fixture
def run(tuned, tmp_path):
    return Path(shutil.copytree(tuned, tmp_path / "star"))


def one_line(err, *words):
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("tune-a-video: "), err
    for w in words:
        assert w in lines[0], err


def everything(folder):
    return sorted(str(p) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    "args, words",
    [
        (("tune", "nowhere.mp4", RED), ["no such file", "nowhere.mp4"]),
        (("tune", "notes.mp4", RED), ["notes.mp4 is not a video"]),
        (("tune", "CLIP", RED), ["star.mp4 has 4 frames", "16 were asked"]),
        (("tune", "CLIP", RED, "--frames", 2, "--start", 3), ["star.mp4 has 4 frames", "start 3"]),
        (("tune", "CLIP", "  "), ["caption is empty"]),
        (
            ("tune", "CLIP", RED, "--frames", 4, "--out", "taken"),
            ["taken holds another run", "--out", "remove it"],
        ),
        (("tune", "CLIP", RED, "--frames", 4, "--out", "notes.mp4"), ["notes.mp4 is a file"]),
        (("tune", "CLIP", RED, "--frames", 4, "--out", "."), ["--out"]),
        (
            ("tune", "CLIP", RED, "--frames", 4, "--model", "spirtes"),
            ["no model called 'spirtes'", "'sprites'"],
        ),
        (("demo", "--out", "taken"), ["taken holds another run"]),
        (("edit", "nowhere", BLUE), ["nowhere is no run"]),
        (("edit", "taken", " "), ["prompt is empty"]),
        (("train-miniature", "taken"), ["taken holds something else"]),
        (("evaluate", "--out", "taken"), ["taken is a folder"]),
    ],
)
def test_bad_input_is_one_line(call, clip, tmp_path, args, words):
    (tmp_path / "notes.mp4").write_text("not a film at all")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").write_text("{}")
    before = everything(tmp_path)
    code, out, err = call(*(clip if a == "CLIP" else a for a in args))
    assert code == 1 and out == ""
    one_line(err, *words)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "args",
    [
        ("tune",),
        ("fly",),
        ("tune", "a.mp4", RED, "--frames", 0),
        ("tune", "a.mp4", RED, "--steps", "many"),
        ("edit", "run"),
    ],
)
def test_misused_options_exit_with_two(call, tmp_path, args):
    code, out, err = call(*args)
    assert code == 2 and "Error" in err and everything(tmp_path) == []


def test_a_size_that_does_not_fit_the_model(call, clip, tmp_path):
    code, _, err = call("tune", clip, RED, "--frames", 4, "--size", 60)
    assert code == 1 and everything(tmp_path) == []
    one_line(err, "size is 60", "multiples of 8", "56")


def test_tune_then_edit_then_edit_again(call, clip, tmp_path):
    code, out, err = call("tune", clip, RED, "--frames", 4, *FAST)
    run = tmp_path / "runs" / "star"
    assert code == 0 and "tune-a-video edit runs/star" in out, err
    assert not re.search("warning|torchvision|Loading", err), err
    assert sorted(p.name for p in run.iterdir()) == ["frames", "run.json", "source.mp4", "tuned.safetensors"]
    about = json.loads((run / "run.json").read_text())
    assert (about["caption"], about["frames"], about["size"], about["settings"]["tune_steps"]) == (
        RED,
        4,
        64,
        2,
    )

    code, out, err = call("edit", "runs/star", BLUE, NIGHT, *FAST, "--guidance", 3, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (
        len(out.splitlines()) == 1
        and told["run"] == "runs/star"
        and [e["prompt"] for e in told["edits"]] == [BLUE, NIGHT]
    )
    code, out, err = call("edit", "runs/star", BLUE, *FAST)
    assert code == 0 and "index.html" in out and "path_error" in out

    scores = json.loads((run / "scores.json").read_text())
    assert [e["file"] for e in scores] == [
        f"edits/{n}-{p.replace(' ', '-')}.mp4" for n, p in (("01", BLUE), ("02", NIGHT), ("03", BLUE))
    ]
    assert (
        scores[:2] == told["edits"]
        and scores[0]["settings"]["guidance_scale"] == 3
        and scores[0]["settings"]["num_inference_steps"] == 2
    )
    for e in scores:
        assert (
            0 <= e["score"]["all"] <= 1
            and e["reconstruction_psnr"] > 5
            and (run / e["file"]).stat().st_size > 500
        )
    page = (run / "index.html").read_text()
    assert page.count("<video") == 4 and RED in page and NIGHT in page
    assert not re.search(r"""https?:|src=(?!["']data:)|<link|@import|url\(""", page)  # it loads nothing
    assert not [p for p in tmp_path.rglob("*") if ".part" in p.name]


def test_a_run_keeps_its_frames(run, clip):
    from tune_a_video_nbs.clips import read_clip

    assert (read_clip(run / "frames", None) == read_clip(clip, None)).all()


def test_unknown_words_are_told_with_the_known(call, run):
    code, _, err = call("edit", run, "a blue dragon is bouncing on the grass", *FAST)
    said = [line for line in err.splitlines() if "warning" in line]
    assert code == 0 and len(said) == 1 and said[0].startswith("tune-a-video: warning: ")
    assert "'dragon'" in said[0] and "star" in said[0] and "bouncing" in said[0]
    assert json.loads((run / "scores.json").read_text())[0]["score"] is None  # no exact answer


@pytest.mark.parametrize(
    "error, code, word",
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(28, "No space left on device", "tuned.safetensors"), 1, "No space left"),
    ],
)
def test_a_stopped_tuning_leaves_nothing(call, clip, tmp_path, monkeypatch, error, code, word):
    from tune_a_video_nbs.pipeline import TuneAVideoPipeline

    def stop(self, path):
        assert (Path(path).parent / "frames").is_dir()  # it was half-written
        raise error

    monkeypatch.setattr(TuneAVideoPipeline, "save_tuned", stop)
    got, out, err = call("tune", clip, RED, "--frames", 4, *FAST)
    assert got == code and out == "" and everything(tmp_path) == []
    one_line(err.splitlines()[-1], word)


def test_a_stopped_edit_keeps_what_is_whole(call, run, monkeypatch):
    from tune_a_video_nbs import video

    write, calls = video.write_clip, []

    def stop_at_the_second(path, clip):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(path, clip)

    monkeypatch.setattr(video, "write_clip", stop_at_the_second)
    code, _, err = call("edit", run, BLUE, NIGHT, *FAST)
    assert code == 130 and err.splitlines()[-1] == "tune-a-video: stopped"
    assert [e["prompt"] for e in json.loads((run / "scores.json").read_text())] == [BLUE]
    assert len(list((run / "edits").iterdir())) == 1 and NIGHT not in (run / "index.html").read_text()


def test_a_damaged_run_is_one_line(call, run):
    (run / "tuned.safetensors").write_bytes(b"half a file")
    code, _, err = call("edit", run, BLUE, *FAST)
    assert code == 1 and not (run / "edits").exists() and not (run / "scores.json").exists()
    one_line(err.splitlines()[-1], "tuned.safetensors", "no whole safetensors file")


def test_a_bug_still_shows_where(call, clip, monkeypatch, tmp_path):
    from tune_a_video_nbs.pipeline import TuneAVideoPipeline

    monkeypatch.setattr(TuneAVideoPipeline, "tune", lambda *_, **__: [][0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IndexError):
        app(["tune", str(clip), RED, "--frames", "4"], prog_name="tune-a-video")
    assert everything(tmp_path) == []


def test_models_lists_words(call):
    code, out, _ = call("models")
    assert code == 0 and re.search(r"^sprites .*knows: .*\bbouncing\b.*\bstar\b", out, re.M)


def test_a_demo_that_stops_leaves_nothing(call, tmp_path, monkeypatch):
    from tune_a_video_nbs import cli

    def stop(clip, caption, out, **_):
        out.mkdir(exist_ok=True)
        (out / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_tune", stop)
    code, _, err = call("demo", "--out", "deep/demo")
    assert code == 130 and everything(tmp_path) == []


def test_whole_folder_replaces_an_empty_one(tmp_path):
    (tmp_path / "run").mkdir()
    with whole_folder(tmp_path / "run") as part:
        (part / "a").write_text("a")
        assert not (tmp_path / "run" / "a").exists()
    assert everything(tmp_path) == [str(tmp_path / "run"), str(tmp_path / "run" / "a")]
    with pytest.raises(FileExistsError):
        check_free(tmp_path / "run")


def test_a_table_has_all_columns():
    assert text_table([dict(a="x", b=0.12345), dict(a="y", c=None, d=2)]).splitlines() == [
        "a  b      c  d",
        "x  0.123",
        "y            2",
    ]


def script(*args, **kwargs):
    return [sys.executable, "-c", "from tune_a_video_nbs.cli import main; main()", *map(str, args)]


def test_help_does_not_wait_for_torch():
    code = "import sys; from tune_a_video_nbs.cli import app\ntry: app(['--help'])\nexcept SystemExit: print(sorted({'torch', 'diffusers', 'matplotlib'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.splitlines()[-1] == "[]" and "evaluate" in out.stdout, out.stderr


@pytest.mark.parametrize("kill, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_true_ctrl_c_or_kill_leaves_nothing(clip, tmp_path, kill, code):
    p = subprocess.Popen(
        script("tune", clip, RED, "--frames", 4, "--steps", 100_000),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a shell's background job ignores it
    try:
        until = time.time() + 300
        while (
            not list(tmp_path.glob("runs/.star.part-*/frames")) and p.poll() is None and time.time() < until
        ):
            time.sleep(0.2)
        p.send_signal(kill)
        err = p.communicate(timeout=120)[1]
    finally:
        p.kill()
    assert p.returncode == code and "Traceback" not in err, err
    assert everything(tmp_path) == []


def test_version_tells_all_that_a_report_needs(call):
    code, out, err = call("--version")
    assert (
        code == 0
        and re.fullmatch(
            r"python \S+, tune_a_video_nbs \S+, torch \S+, diffusers \S+, transformers \S+\n", out
        )
        and not err
    )


COMMANDS = ("demo", "tune", "edit", "plan", "models", "draw", "train-miniature", "evaluate", "benchmark")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_names_it(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0 and re.search(rf"Examples?:\s+tune-a-video {name}\b", out)


def test_all_commands_are_looked_at_and_exit_codes_are_told(call):
    assert {c.name for c in app.registered_commands} == set(COMMANDS)
    code, out, _ = call("--help")
    for number in (0, 1, 2, 3, 130, 143):
        assert re.search(rf"\b{number}\b", " ".join(out.split()).split("Exit codes:")[1])


def test_plan(call, tmp_path):
    code, out, _ = call("plan", "sprites", "--frames", 8, "--size", 64, "--gpu", 15, "--json")
    told = json.loads(out)
    assert (
        code == 0
        and told["precision"] == "float32"
        and set(told["jobs"]) == {"tune", "sample"}
        and told["jobs"]["tune"]["fits"]
    )
    code, out, _ = call("plan", "sprites", "--frames", 400, "--size", 256, "--gpu", 2, "--json")
    tight = json.loads(out)["jobs"]["tune"]
    assert (
        code == 0 and not tight["fits"] and 0 < tight["frames_that_fit"] < 400 and tight["switches"] is None
    )
    code, out, _ = call("plan", "sprites", "--frames", 400, "--size", 256, "--gpu", 2)
    assert code == 0 and f"{tight['frames_that_fit']} frames would fit" in out
    for args, words in (
        (("sd3",), ["no model called 'sd3'"]),
        (("sprites", "--size", 60), ["multiples of 8"]),
        (("sprites", "--gpu", 0), ["must be positive"]),
    ):
        code, out, err = call("plan", *args)
        assert code == 1 and out == ""
        one_line(err, *words)
    assert everything(tmp_path) == []


def test_draw_makes_a_clip_of_the_world(call, tmp_path):
    from tune_a_video_nbs.clips import read_clip
    from tune_a_video_nbs.oracle import psnr
    from tune_a_video_nbs.sprites import draw_clip

    code, out, _ = call("draw", "my.mp4", RED, "--frames", 6)
    assert code == 0 and f"tune-a-video tune my.mp4 '{RED}' --frames 6" in out
    assert psnr(read_clip(tmp_path / "my.mp4", None), draw_clip(RED, 6)) > 30
    for args, words in (
        (("my.mp4", RED), ["is there already"]),
        (("a.gif", RED), ["no .mp4"]),
        (("b.mp4", "a dragon"), ["cannot read 'a dragon'"]),
    ):
        code, out, err = call("draw", *args)
        assert code == 1
        one_line(err, *words)
    assert everything(tmp_path) == [str(tmp_path / "my.mp4")]


def test_models_as_json(call):
    told = json.loads(call("models", "--json")[1])
    assert {"star", "bouncing"} <= set(told["sprites"]["words"]) and told["sprites"]["megabytes"] < 12


def test_a_clip_of_another_world_is_told_before_the_wait(call, tmp_path):
    "A ball on a lawn, 30 frames a second: what a stranger brings first."
    import numpy as np

    from tune_a_video_nbs.clips import write_clip

    y, x = np.mgrid[:90, :160]
    ball = [
        np.where(
            ((x - 20 - 3 * t) ** 2 + (y - 45) ** 2 < 15**2)[..., None], (230, 120, 20), (58, 125, 58)
        ).astype(np.uint8)
        for t in range(30)
    ]
    write_clip(tmp_path / "my.mp4", np.stack(ball), fps=30)
    code, out, err = call("tune", "my.mp4", "an orange circle is sliding on the grass", "--frames", 4, *FAST)
    said = [line for line in err.splitlines() if line.startswith("tune-a-video: warning: ")]
    assert code == 0 and len(said) == 2, err
    assert (
        "4 frames are the first 0.1 of 1.0 seconds of my.mp4: --stride 7" in said[0]
        and "--model" in said[1]
        and "tune-a-video draw" in said[1]
    )
    code, out, err = call(
        "tune",
        "my.mp4",
        "an orange circle is sliding on the grass",
        "--frames",
        4,
        "--stride",
        7,
        "--out",
        "again",
        *FAST,
    )
    assert code == 0 and err.count("warning") == 1  # the step it proposed is a step that works
    code, out, err = call("edit", "again", "a blue circle is sliding on the grass", *FAST)
    assert (
        code == 0
        and json.loads((tmp_path / "again" / "scores.json").read_text())[0]["score"] is None
        and "path_error" not in out
    )


def test_a_stopped_tuning_goes_on_from_its_checkpoint(call, clip, tmp_path, monkeypatch):
    from tune_a_video_nbs.pipeline import TuneAVideoPipeline

    assert call("tune", clip, RED, "--frames", 4, "--steps", 4, "--out", "whole")[0] == 0
    tune = TuneAVideoPipeline.tune

    def stopped(self, *args, **kwargs):
        def stop(step, *_):
            if step == 2:
                raise KeyboardInterrupt

        return tune(self, *args, callback=stop, every=2, **kwargs)

    monkeypatch.setattr(TuneAVideoPipeline, "tune", stopped)
    words = ("tune", clip, RED, "--frames", 4, "--steps", 4, "--out", "run", "--checkpoint", "run.ckpt")
    code, _, err = call(*words)
    assert code == 130 and (tmp_path / "run.ckpt").is_file() and not (tmp_path / "run").exists()
    monkeypatch.setattr(TuneAVideoPipeline, "tune", tune)
    assert call(*words)[0] == 0 and not (tmp_path / "run.ckpt").exists()
    from safetensors.torch import load_file

    one, other = (load_file(tmp_path / k / "tuned.safetensors") for k in ("whole", "run"))
    assert all(
        (one[k] - other[k]).abs().max() < 1e-5 for k in one
    )  # the bytes are equal on one thread: tests/test_tune.py
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["tune_steps"] == 4


def test_a_model_that_the_hub_does_not_give(call, clip, tmp_path):
    "HF_HUB_OFFLINE is set for all tests: what is said when the network is down."
    code, out, err = call("tune", clip, RED, "--frames", 4, "--model", "owner/model")
    assert code == 1 and everything(tmp_path) == []
    one_line(err, "owner/model is not on this machine", "network")


def test_imports_say_nothing():
    "transformers announces to everyone without torchvision that it takes another class."
    done = subprocess.run(
        [sys.executable, "-c", "import tune_a_video_nbs.edit, tune_a_video_nbs.benchmark"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "torchvision" not in done.stderr


@pytest.fixture(scope="module")
def page(tuned, tmp_path_factory):
    "The page of a run with three edits."
    from tune_a_video_nbs.runs import run_edit

    run = Path(shutil.copytree(tuned, tmp_path_factory.mktemp("page") / "star"))
    run_edit(run, [BLUE, NIGHT, "a blue dragon <b>"], steps=2)
    return run / "index.html"


def test_the_page_says_how_it_was_made(page, tuned):
    text, about = page.read_text(), json.loads((tuned / "run.json").read_text())
    for name, number in about["versions"].items():
        assert f"{name} {number}" in text
    assert (
        "seed 0" in text and "<details>" in text and "a blue dragon &lt;b&gt;" in text and "<b>" not in text
    )
    for link in re.findall(r'href="([^"]+)"', text):
        assert (page.parent / link).stat().st_size > 500
    assert len(re.findall(r'href="edits/', text)) == 3
    typed = re.search(r"<pre>(.*?)</pre>", text, re.S)[1].splitlines()
    suits = json.loads((files("tune_a_video_nbs") / "assets" / "sprites" / "settings.json").read_text())[
        "guidance_scale"
    ]
    assert (
        len(typed) == 2
        and typed[0].startswith("tune-a-video tune star.mp4 &#x27;a red star")
        and "--seed 0" in typed[0]
        and f"--guidance {suits:g} --steps 2" in typed[1]
        and NIGHT in typed[1]
    )


def test_the_page_in_a_browser(page, tmp_path):
    "From disk: it plays in step, asks for nothing, and no width makes it scroll sideways."
    import browser

    if not browser.find():
        pytest.skip("no Chromium here")
    b = browser.Browser(tmp_path)
    try:
        for width in (1280, 400):
            b.size(width, 800)
            b.go(page.as_uri(), wait=0.6)
            assert b.errors == [] and all(r.startswith("file:") for r in b.requests.values())
            assert b.js("document.documentElement.scrollWidth") <= width
            assert (
                b.js("[...document.querySelectorAll('video')].map(v => v.readyState > 1 && v.duration > 0)")
                == [True] * 4
            )
            times = b.js("[...document.querySelectorAll('video')].map(v => v.currentTime)")
            assert max(times) - min(times) < 0.13  # a frame is .125 s
    finally:
        b.close()


def test_evaluate_part_by_part(call, monkeypatch):
    "The real command, with one short variant of one clip: a table, a file that any JSON reader takes, and the same again from what was kept."
    from tune_a_video_nbs import ablation

    few = dict(num_inference_steps=2)
    for name in list(ablation.VARIANTS):
        monkeypatch.delitem(ablation.VARIANTS, name)
    monkeypatch.setitem(ablation.VARIANTS, "short", dict(tune=dict(steps=0), invert=few, sample=few))
    code, out, err = call(
        "evaluate", "--ablation", "--clips", 1, "--seeds", 1, "--keep", "parts", "--out", "parts.json"
    )
    assert code == 0 and "short" in out and "the exact answer" in out and "saved: parts.json" in out, err

    def strict(text):
        return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))

    saved = strict(Path("parts.json").read_text())
    assert {"short", "nothing done"} <= set(saved["columns"]["variant"]) and saved["table"][
        "the exact answer"
    ]["edited"][0] == 1
    monkeypatch.setattr(ablation, "ablation_rows", lambda **_: pytest.fail("it was kept, and computed again"))
    code, out, _ = call("evaluate", "--ablation", "--clips", 1, "--seeds", 1, "--keep", "parts", "--json")
    assert code == 0 and strict(out)["table"] == saved["table"]
    code, _, err = call("evaluate", "--ablation", "--stills", 8)
    assert code == 1 and "--stills goes with the other table" in err
