"The terminal: what is typed, what it makes, and what it says when something is wrong."

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_runs import BLUE, NIGHT, RED, everything

from tune_a_video_nbs.cli import app
from tune_a_video_nbs.clips import read_clip, write_clip
from tune_a_video_nbs.oracle import psnr
from tune_a_video_nbs.pipeline import TuneAVideoPipeline
from tune_a_video_nbs.sprites import draw_clip

FAST = ("--steps", 2)
COMMANDS = ("demo", "tune", "edit", "plan", "models", "draw", "train-miniature", "evaluate", "benchmark")


def check_one_line(err: str, *words: str) -> None:
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("tune-a-video: "), err
    for word in words:
        assert word in lines[0], err


def warnings_in(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("tune-a-video: warning: ")]


# --- what is wrong


@pytest.mark.parametrize(
    "args, words",
    [
        (("tune", "nowhere.mp4", RED), ["no such file", "nowhere.mp4"]),
        (("tune", "notes.mp4", RED), ["notes.mp4 is not a video"]),
        (("tune", "CLIP", RED), ["star.mp4 has 4 frames", "16 were asked"]),
        (("tune", "CLIP", RED, "--frames", 2, "--start", 3), ["star.mp4 has 4 frames", "start 3"]),
        (("tune", "CLIP", "  "), ["caption is empty"]),
        (("tune", "CLIP", RED, "--out", "taken"), ["taken holds another run", "--out", "remove it"]),
        (("tune", "CLIP", RED, "--frames", 4, "--out", "notes.mp4"), ["notes.mp4 is a file"]),
        (("tune", "CLIP", RED, "--frames", 4, "--out", "."), ["--out"]),
        (("tune", "CLIP", RED, "--model", "spirtes"), ["no model called 'spirtes'", "'sprites'"]),
        (("tune", "CLIP", RED, "--frames", 4, "--device", "toaster"), ["'toaster'", "auto"]),
        (("tune", "CLIP", RED, "--frames", 4, "--size", 60), ["size is 60", "multiples of 8", "56"]),
        (("demo", "--out", "taken"), ["taken holds another run"]),
        (("edit", "nowhere", BLUE), ["nowhere is no run"]),
        (("edit", "taken", " "), ["prompt is empty"]),
        (("train-miniature", "taken"), ["taken holds something else"]),
        (("train-miniature", "new", "--part", "vae"), ["--part is 'vae'"]),
        (("evaluate", "--out", "taken"), ["taken is a folder"]),
        (("evaluate", "--device", "toaster"), ["'toaster'"]),
        (("evaluate", "--ablation", "--stills", 8), ["--stills goes with the other table"]),
    ],
)
def test_bad_input_is_one_line(call, star_mp4, tmp_path, args, words):
    (tmp_path / "notes.mp4").write_text("not a film at all")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").write_text("{}")
    before = everything(tmp_path)
    code, out, err = call(*(star_mp4 if arg == "CLIP" else arg for arg in args))
    assert code == 1
    assert out == ""
    check_one_line(err, *words)
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
    code, _, err = call(*args)
    assert code == 2
    assert "Error" in err
    assert everything(tmp_path) == []


def test_a_model_that_the_hub_does_not_give(call, star_mp4, tmp_path):
    "HF_HUB_OFFLINE is set for all tests: what is said when the network is down."
    code, _, err = call("tune", star_mp4, RED, "--frames", 4, "--model", "owner/model")
    assert code == 1
    assert everything(tmp_path) == []
    check_one_line(err, "owner/model is not on this machine", "network")


def test_a_damaged_run_is_one_line(call, run):
    (run / "tuned.safetensors").write_bytes(b"half a file")
    code, _, err = call("edit", run, BLUE, *FAST)
    assert code == 1
    assert not (run / "edits").exists()
    assert not (run / "scores.json").exists()
    check_one_line(err.splitlines()[-1], "tuned.safetensors", "no whole safetensors file")


def test_a_bug_still_shows_where(star_mp4, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise ValueError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(TuneAVideoPipeline, "tune", broken)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="mat1"):
        app(["tune", str(star_mp4), RED, "--frames", "4"], prog_name="tune-a-video")
    assert everything(tmp_path) == []


def test_debug_shows_where_an_error_of_ours_comes_from(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is no run"):
        app(["--debug", "edit", "nowhere", BLUE], prog_name="tune-a-video")


# --- what is stopped


@pytest.mark.parametrize(
    "error, code, word",
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(28, "No space left on device", "tuned.safetensors"), 1, "No space left"),
    ],
)
def test_a_stopped_tuning_leaves_nothing(call, star_mp4, tmp_path, monkeypatch, error, code, word):
    def stop(self, path):
        assert (Path(path).parent / "frames").is_dir()  # it was half-written
        raise error

    monkeypatch.setattr(TuneAVideoPipeline, "save_tuned", stop)
    got, out, err = call("tune", star_mp4, RED, "--frames", 4, *FAST)
    assert got == code
    assert out == ""
    assert everything(tmp_path) == []
    check_one_line(err.splitlines()[-1], word)


def test_a_stopped_edit_keeps_what_is_whole(call, run, monkeypatch):
    from tune_a_video_nbs import runs

    write = runs.write_clip
    calls = []

    def stop_at_the_second(path, clip):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(path, clip)

    monkeypatch.setattr(runs, "write_clip", stop_at_the_second)
    code, _, err = call("edit", run, BLUE, NIGHT, *FAST)
    assert code == 130
    assert err.splitlines()[-1] == "tune-a-video: stopped"
    assert [entry["prompt"] for entry in json.loads((run / "scores.json").read_text())] == [BLUE]
    assert len(list((run / "edits").iterdir())) == 1
    assert NIGHT not in (run / "index.html").read_text()


def test_a_demo_that_stops_leaves_nothing(call, tmp_path, monkeypatch):
    from tune_a_video_nbs import runs

    def stop(clip, caption, out, **options):
        out.mkdir(exist_ok=True)
        (out / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_tune", stop)
    assert call("demo", "--out", "deep/demo")[0] == 130
    assert everything(tmp_path) == []


@pytest.mark.parametrize("kill, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_true_ctrl_c_or_kill_leaves_nothing(star_mp4, tmp_path, kill, code):
    def obey_ctrl_c():  # a shell's background job ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    script = [sys.executable, "-c", "from tune_a_video_nbs.cli import main; main()"]
    words = ["tune", str(star_mp4), RED, "--frames", "4", "--steps", "100000"]
    process = subprocess.Popen(
        [*script, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=obey_ctrl_c
    )
    try:
        end = time.time() + 300
        while not list(tmp_path.glob("runs/.star.part-*/frames")) and process.poll() is None:
            assert time.time() < end, "it did not begin"
            time.sleep(0.05)
        process.send_signal(kill)
        err = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert everything(tmp_path) == []


def test_a_stopped_tuning_goes_on_from_its_checkpoint(call, star_mp4, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    assert call("tune", star_mp4, RED, "--frames", 4, "--steps", 4, "--out", "whole")[0] == 0
    tune = TuneAVideoPipeline.tune

    def stopped(self, *args, **kwargs):
        def stop(step, *_):
            if step == 2:
                raise KeyboardInterrupt

        return tune(self, *args, callback=stop, every=2, **kwargs)

    monkeypatch.setattr(TuneAVideoPipeline, "tune", stopped)
    words = ("tune", star_mp4, RED, "--frames", 4, "--steps", 4, "--out", "run", "--checkpoint", "run.ckpt")
    assert call(*words)[0] == 130
    assert (tmp_path / "run.ckpt").is_file()
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(TuneAVideoPipeline, "tune", tune)
    assert call(*words)[0] == 0
    assert not (tmp_path / "run.ckpt").exists()
    one, other = (load_file(tmp_path / name / "tuned.safetensors") for name in ("whole", "run"))
    for name, weight in one.items():
        assert (weight - other[name]).abs().max() < 1e-5
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["tune_steps"] == 4


# --- one clip


def test_tune_writes_a_run(call, star_mp4, tmp_path):
    code, out, err = call("tune", star_mp4, RED, "--frames", 4, *FAST)
    folder = tmp_path / "runs" / "star"
    assert code == 0, err
    assert "tune-a-video edit runs/star" in out
    assert not re.search("warning|torchvision|Loading", err), err
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["frames", "run.json", "source.mp4", "tuned.safetensors"]
    about = json.loads((folder / "run.json").read_text())
    assert about["caption"] == RED
    assert about["world"] == "sprites"
    assert (about["frames"], about["size"], about["settings"]["tune_steps"]) == (4, 64, 2)
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_edit_then_edit_again(call, run):
    code, out, err = call("edit", run, BLUE, NIGHT, *FAST, "--guidance", 3, "--json")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    told = json.loads(out)
    assert told["run"] == str(run)
    assert [entry["prompt"] for entry in told["edits"]] == [BLUE, NIGHT]

    code, out, err = call("edit", run, BLUE, *FAST, "--reconstruct", "--device", "cpu")
    assert code == 0, err
    for word in ("index.html", "path_error", "reconstruction"):
        assert word in out

    scores = json.loads((run / "scores.json").read_text())
    slugs = [text.replace(" ", "-") for text in (BLUE, NIGHT, BLUE)]
    assert [entry["file"] for entry in scores] == [
        f"edits/0{n}-{slug}.mp4" for n, slug in enumerate(slugs, 1)
    ]
    assert scores[:2] == told["edits"]
    assert scores[0]["settings"]["guidance_scale"] == 3
    assert scores[0]["settings"]["num_inference_steps"] == 2
    assert [entry["reconstruction_psnr"] is None for entry in scores] == [True, True, False]
    for entry in scores:
        assert 0 <= entry["score"]["all"] <= 1
        assert (run / entry["file"]).stat().st_size > 500
    assert (run / "index.html").read_text().count("<video") == 4


def test_unknown_words_are_told_with_the_known(call, run):
    code, _, err = call("edit", run, "a blue dragon is bouncing on the grass", *FAST)
    assert code == 0
    (warning,) = warnings_in(err)
    for word in ("'dragon'", "star", "bouncing"):
        assert word in warning
    assert json.loads((run / "scores.json").read_text())[0]["score"] is None  # no exact answer


def test_a_clip_of_another_world_is_told_before_the_wait(call, tmp_path):
    "A ball on a lawn, 30 frames a second: what a stranger brings first."
    y, x = np.mgrid[:90, :160]
    ball = []
    for t in range(30):
        inside = (x - 20 - 3 * t) ** 2 + (y - 45) ** 2 < 15**2
        ball.append(np.where(inside[..., None], (230, 120, 20), (58, 125, 58)).astype(np.uint8))
    write_clip(tmp_path / "my.mp4", np.stack(ball), fps=30)
    words = ("tune", "my.mp4", "an orange circle is sliding on the grass", "--frames", 4, *FAST)

    code, _, err = call(*words)
    assert code == 0
    length, world = warnings_in(err)
    assert "4 frames are the first 0.1 of 1.0 seconds of my.mp4: --stride 7" in length
    assert "--model" in world
    assert "tune-a-video draw" in world

    code, _, err = call(*words, "--stride", 7, "--out", "again")
    assert code == 0
    assert len(warnings_in(err)) == 1  # the step it proposed is a step that works

    code, out, _ = call("edit", "again", "a blue circle is sliding on the grass", *FAST)
    assert code == 0
    assert json.loads((tmp_path / "again" / "scores.json").read_text())[0]["score"] is None
    assert "path_error" not in out


def test_draw_makes_a_clip_of_the_world(call, tmp_path):
    code, out, _ = call("draw", "my.mp4", RED, "--frames", 6)
    assert code == 0
    assert f"tune-a-video tune my.mp4 '{RED}' --frames 6" in out
    assert psnr(read_clip(tmp_path / "my.mp4", None), draw_clip(RED, 6)) > 30


@pytest.mark.parametrize(
    "args, words",
    [
        (("my.mp4", RED), ["is there already"]),
        (("a.gif", RED), ["no .mp4"]),
        (("b.mp4", "a dragon"), ["cannot read 'a dragon'"]),
    ],
)
def test_draw_refuses_in_one_line(call, tmp_path, args, words):
    (tmp_path / "my.mp4").write_bytes(b"something")
    code, _, err = call("draw", *args)
    assert code == 1
    check_one_line(err, *words)
    assert everything(tmp_path) == [str(tmp_path / "my.mp4")]


# --- what is told


def test_models_lists_words(call):
    code, out, _ = call("models")
    assert code == 0
    assert re.search(r"^sprites .*knows: .*\bbouncing\b.*\bstar\b", out, re.M)


def test_models_as_json(call):
    told = json.loads(call("models", "--json")[1])
    assert {"star", "bouncing"} <= set(told["sprites"]["words"])
    assert told["sprites"]["megabytes"] < 12


def test_version_tells_all_that_a_report_needs(call):
    code, out, err = call("--version")
    assert code == 0
    assert err == ""
    names = ("tune_a_video_nbs", "torch", "diffusers", "transformers")
    assert re.fullmatch(r"python \S+, " + ", ".join(rf"{name} \S+" for name in names) + "\n", out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_names_it(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0
    assert re.search(rf"Examples?:\s+tune-a-video {name}\b", out)


@pytest.mark.parametrize("name", ["demo", "tune", "edit", "evaluate", "benchmark"])
def test_what_computes_takes_a_device(call, name):
    "B14: the CPU was used beside an idle GPU."
    assert "--device" in call(name, "--help")[1]


def test_all_commands_are_looked_at_and_exit_codes_are_told(call):
    assert {command.name for command in app.registered_commands} == set(COMMANDS)
    code, out, _ = call("--help")
    told = " ".join(out.split()).split("Exit codes:")[1]
    for number in (0, 1, 2, 3, 130, 143):
        assert re.search(rf"\b{number}\b", told)


def test_plan(call, tmp_path):
    words = ("plan", "sprites", "--json")
    code, out, _ = call(*words, "--frames", 8, "--size", 64, "--gpu", 15)
    told = json.loads(out)
    assert code == 0
    assert told["precision"] == "float32"
    assert set(told["jobs"]) == {"tune", "sample"}
    assert told["jobs"]["tune"]["fits"]

    large = ("--frames", 400, "--size", 256, "--gpu", 2)
    tight = json.loads(call(*words, *large)[1])["jobs"]["tune"]
    assert not tight["fits"]
    assert tight["switches"] is None
    assert 0 < tight["frames_that_fit"] < 400
    assert f"{tight['frames_that_fit']} frames would fit" in call("plan", "sprites", *large)[1]
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    "args, words",
    [
        (("sd3",), ["no model called 'sd3'"]),
        (("sprites", "--size", 60), ["multiples of 8"]),
        (("sprites", "--gpu", 0), ["must be positive"]),
    ],
)
def test_plan_refuses_in_one_line(call, args, words):
    code, out, err = call("plan", *args)
    assert code == 1
    assert out == ""
    check_one_line(err, *words)


# --- many clips


def test_evaluate_part_by_part(call, monkeypatch):
    "The real command, with one short variant of one clip; and the same again from what was kept."
    from tune_a_video_nbs import ablation

    few = dict(num_inference_steps=2)
    for name in list(ablation.VARIANTS):
        monkeypatch.delitem(ablation.VARIANTS, name)
    monkeypatch.setitem(ablation.VARIANTS, "short", dict(tune=dict(steps=0), invert=few, sample=few))
    words = ("evaluate", "--ablation", "--clips", 1, "--seeds", 1, "--keep", "parts")
    code, out, err = call(*words, "--out", "parts.json")
    assert code == 0, err
    for word in ("short", "the exact answer", "saved: parts.json"):
        assert word in out

    def strict(text: str) -> dict:
        return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))

    saved = strict(Path("parts.json").read_text())
    assert {"short", "nothing done"} <= set(saved["columns"]["variant"])
    assert saved["table"]["the exact answer"]["edited"][0] == 1
    monkeypatch.setattr(ablation, "ablation_rows", lambda **_: pytest.fail("it was kept, and computed again"))
    code, out, _ = call(*words, "--json")
    assert code == 0
    assert strict(out)["table"] == saved["table"]


def test_evaluate_works_where_it_is_told_to(monkeypatch, capsys):
    "B14: no device reached the tables."
    from tune_a_video_nbs import evaluate, many

    asked = {}

    def edit_table(clips, part, seed, device):
        asked["edits"] = device
        return {"table": {"shape": {"edited": 1.0}}, "rows": []}

    def still_scores(n, seed, device):
        asked["stills"] = device
        return {"all": 1.0}

    monkeypatch.setattr(evaluate, "edit_table", edit_table)
    monkeypatch.setattr(evaluate, "still_scores", still_scores)
    many.evaluate(1, 0, "report", 4, None, None, "cpu")
    assert [str(device) for device in asked.values()] == ["cpu", "cpu"]
    assert "shape" in capsys.readouterr().out


def test_imports_say_nothing():
    "transformers announces to everyone without torchvision that it takes another class."
    code = "import tune_a_video_nbs.edit, tune_a_video_nbs.benchmark"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "torchvision" not in done.stderr
