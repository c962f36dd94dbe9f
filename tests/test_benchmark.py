"A benchmark that survives being killed, spread, and given bad files."

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tune_a_video_nbs import benchmark
from tune_a_video_nbs.benchmark import is_done, job_seed, processes, run_benchmark
from tune_a_video_nbs.benchmark_page import mean_table, page_sections, shown_means, write_summary
from tune_a_video_nbs.clips import read_clip, write_clip
from tune_a_video_nbs.datasets import FORMATS, Entry, read_dataset
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.metrics import text_alignment
from tune_a_video_nbs.pipeline import TuneAVideoPipeline
from tune_a_video_nbs.results import Result, append_result, check_folder, claim, merge_results, read_results
from tune_a_video_nbs.scores import default_metrics, model_metrics, score_all, world_metric
from tune_a_video_nbs.sprites import draw_clip
from tune_a_video_nbs.world import get_world, world_of

RED = "a red star is bouncing on the grass"
BLUE = "a blue star is bouncing on the grass"
NIGHT = "a red star is bouncing on a night sky"
RING = "an orange ring is sliding on a night sky"
SNOW = "an orange ring is sliding in the snow"
PANDA = "a panda on the moon"
QUICK = dict(tune_steps=2, num_inference_steps=2)
EXACT = ["all", "edited", "kept", "path_error", "psnr_to_source"]

# ------------------------------------------------------------------ results


def row(clip="a", kind="k", when=1.0, **more):
    return Result(clip, kind, "c", "p", seconds=1.0, when=when, **more).row()


def test_the_latest_row_counts_whichever_file_it_is_in(tmp_path):
    append_result(tmp_path / "results.jsonl", row(error="OSError: once"))
    append_result(tmp_path / "results-1.jsonl", row(when=2.0))
    assert read_results(tmp_path)["a", "k"]["error"] is None
    merge_results(tmp_path, [])
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_merging_sorts_by_the_data_set(tmp_path):
    jobs = [("b", "1"), ("a", "2"), ("old", "x"), ("a", "1")]
    for when, (clip, kind) in enumerate(jobs):
        append_result(tmp_path / "results.jsonl", row(clip, kind, when))
    entries = [Entry("a", Path(), "", {"1": "", "2": ""}), Entry("b", Path(), "", {"1": ""})]
    merged = merge_results(tmp_path, entries)
    assert [(r["clip"], r["kind"]) for r in merged] == [("a", "1"), ("a", "2"), ("b", "1"), ("old", "x")]


@pytest.mark.parametrize("junk", [b"\x00\x00\x00", b"[1, 2]\n", b"null\n", b'{"clip": "a"}\n', b"\xff\xfe\n"])
def test_junk_is_no_result(tmp_path, junk):
    (tmp_path / "results.jsonl").write_bytes(junk)
    append_result(tmp_path / "results.jsonl", row())
    assert list(read_results(tmp_path)) == [("a", "k")]


SMALL_DISK = """
import resource
import sys
from tune_a_video_nbs.results import append_result

file = sys.argv[1]
append_result(file, dict(clip="a", kind="1", when=1))
room = 100   # bytes in a file; a longer write stops there, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
append_result(file, dict(clip="a", kind="2", when=1, prompt="x" * room))
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_row_is_written_whole_or_raises(tmp_path):
    "B24: an unbuffered write may stop in the middle and say nothing; the job counted as written."
    file = tmp_path / "results.jsonl"
    done = subprocess.run([sys.executable, "-c", SMALL_DISK, file], capture_output=True, text=True)
    assert done.returncode == 1
    assert "bytes were written: is the disk full?" in done.stderr
    append_result(file, row("a", "3"))
    assert list(read_results(tmp_path)) == [("a", "1"), ("a", "3")]


def test_done_is_without_an_error_and_of_the_same_sentences():
    entry = Entry("a", Path(), "c", {"k": "p"})
    assert is_done(row(), entry, "k")
    assert not is_done(None, entry, "k")
    assert not is_done(row(error="OSError: no"), entry, "k")
    assert not is_done(row(), Entry("a", Path(), "c", {"k": "another prompt"}), "k")
    assert not is_done(row(), Entry("a", Path(), "another caption", {"k": "p"}), "k")


def test_seeds_are_apart_and_fixed():
    seeds = {job_seed(seed, name) for seed in range(3) for name in "abc"}
    assert len(seeds) == 9
    assert job_seed(0, "star") == 233791011028494
    assert max(seeds) < 2**48


def test_older_folders_go_on(tmp_path):
    "They name the world of the sprites also for models that have no world."
    older = dict(model="sd", seed=0, metrics=["sprites", "psnr_to_source"])
    claim(tmp_path, older)
    claim(tmp_path, older)
    claim(tmp_path, older | dict(metrics=["psnr_to_source"]))
    with pytest.raises(InputError, match="metrics is .* and was"):
        claim(tmp_path, older | dict(metrics=["mine"]))
    with pytest.raises(InputError, match="seed is 1 and was 0"):
        claim(tmp_path, older | dict(seed=1))


def test_a_folder_that_is_being_claimed_is_free(tmp_path):
    "One process writes its settings, under a temporary name first, while another looks."
    (tmp_path / ".settings.json.1.part").touch()
    check_folder(tmp_path)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match="something else"):
        check_folder(tmp_path)


# ------------------------------------------------------------------ the page


def test_a_page_cannot_be_broken_by_words(tmp_path):
    "What people write into captions is text, on the page and in the tables."
    claim(tmp_path, dict(model="<b>"))
    evil = row("<script>x", error="E: </div><script>")
    evil["prompt"] = '"><img src=x onerror=1> a | b\nc'
    append_result(tmp_path / "results.jsonl", evil)
    page = write_summary(tmp_path, ["<i>: no x"]).read_text()
    for tag in ("<script>x", "<img", "<i>", '<b>"'):
        assert tag not in page
    table = (tmp_path / "summary.md").read_text().split("Every edit:")[1].strip().splitlines()
    assert len(table) == 3
    assert "a \\| b c" in table[2]


OUTSIDE = ("../../secret.mp4", "/etc/passwd", "javascript:alert(1)", "clips/../../x.mp4", "clips/a.html")


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("file", OUTSIDE)
def test_a_page_links_only_clips_of_its_folder(tmp_path, file, embed):
    "Rows may come from elsewhere; with `embed`, a file would be put into the page."
    out = tmp_path / "a" / "b"
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    claim(out, dict(model="m"))
    append_result(out / "results.jsonl", row(file=file))
    page = "".join(body for _, body in page_sections(out, embed))
    assert "<video" not in page
    assert "is no clip of this folder" in page


def test_a_link_is_quoted(tmp_path):
    claim(tmp_path, dict(model="m"))
    append_result(tmp_path / "results.jsonl", row(file='clips/a" onerror="x?#.mp4'))
    page = write_summary(tmp_path).read_text()
    assert 'src="clips/a%22%20onerror%3D%22x%3F%23.mp4"' in page


# ------------------------------------------------------------------ scores


def test_exact_scores_are_those_of_the_models_world():
    score, source = world_metric(get_world("sprites")), draw_clip(RED, 4)
    assert score(draw_clip(BLUE, 4), source, BLUE, RED)["all"] == 1
    assert score(source, source, PANDA, RED) == {}
    assert score(source, 255 - source, BLUE, RED) == {}  # the source is not what its caption says
    assert score(source, source[:, :32], BLUE, RED) == {}  # nor is it square
    assert list(default_metrics(None)) == ["psnr_to_source"]


def test_a_score_that_is_no_number_is_an_error():
    def nan(*_):
        return dict(fine=1, odd=float("nan"))

    with pytest.raises(InputError, match="odd is not a finite number"):
        score_all(dict(nan=nan), None, None, "", "")


# ------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def pipe():
    return TuneAVideoPipeline.from_pretrained("sprites")


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    "A folder with two clips of four frames and a table of four edits."
    home = tmp_path_factory.mktemp("mine")
    write_clip(home / "star.mp4", draw_clip(RED, 4))
    write_clip(home / "ring.mp4", draw_clip(RING, 4))
    lines = [
        "clip,caption,prompt,kind",
        f"star.mp4,{RED},{BLUE},colour",
        f"star.mp4,,{NIGHT},place",
        f"ring.mp4,{RING},{SNOW},place",
        f"ring.mp4,,{PANDA},other",
    ]
    (home / "mine.csv").write_text("\n".join(lines) + "\n")
    return home


@pytest.fixture
def entries(mine):
    return read_dataset(mine / "mine.csv", "csv")[0]


@pytest.fixture
def tuned(monkeypatch):
    "The captions that were tuned on, in order."
    captions = []
    tune = TuneAVideoPipeline.tune

    def tune_and_tell(self, clip, caption, **how):
        captions.append(caption)
        return tune(self, clip, caption, **how)

    monkeypatch.setattr(TuneAVideoPipeline, "tune", tune_and_tell)
    return captions


def run(entries, out, pipe, **how):
    how = dict(pipe=pipe, frames=4, settings=QUICK, progress=False) | how
    return run_benchmark(entries, out, **how)


JOBS = [("star", "colour"), ("star", "place"), ("ring", "place"), ("ring", "other")]
FILES = [
    "clips/star/source.mp4",
    "clips/star/colour.mp4",
    "clips/star/place.mp4",
    "clips/ring/source.mp4",
    "clips/ring/place.mp4",
    "clips/ring/other.mp4",
]


def test_a_run(entries, pipe, tmp_path, tuned):
    "Tuned once per clip; exact scores where there are any; the pipeline is left as it was."
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    settings = dict(pipe.settings)
    rows = run(entries, tmp_path / "out", pipe)
    assert tuned == [RED, RING]
    assert [(r["clip"], r["kind"]) for r in rows] == JOBS
    assert [sorted(r["scores"]) for r in rows] == [EXACT, EXACT, EXACT, ["psnr_to_source"]]
    assert not any(r["error"] for r in rows)
    assert mean_table(rows)[-1]["all_n"] == 3
    assert shown_means(rows)[-1]["all"].endswith(" (3)")
    assert all(weights[name].equal(value) for name, value in pipe.unet.state_dict().items())
    assert dict(pipe.settings) == settings


def test_files_for_eyes_and_spreadsheets(entries, pipe, tmp_path):
    run(entries, tmp_path, pipe)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    told = ["index.html", "results.jsonl", "settings.json", "summary.csv", "summary.md"]
    assert files == sorted(FILES + told)
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r'<video src="([^"]+)"', page) == FILES
    assert page.count("</table>") == 2  # means and settings
    assert not re.search("&lt;(table|figure|style|td)", page)
    assert not re.search(r"""https?:|<link|@import|url\(|src="//""", page)  # nothing from the network


def test_a_second_run_does_what_is_new(entries, pipe, tmp_path, tuned):
    rows = run(entries, tmp_path, pipe)
    assert run(entries, tmp_path, pipe) == rows
    assert len(tuned) == 2  # nothing was left to do
    with pytest.raises(InputError, match="num_inference_steps is 3 and was 2"):
        run(entries, tmp_path, pipe, settings=QUICK | dict(num_inference_steps=3), missing=["x: no y"])
    assert not (tmp_path / "missing.txt").exists()  # a refused run touches nothing
    entries[0].prompts["colour"] = "a green star is bouncing on the grass"  # another sentence is another job
    new = run(entries, tmp_path, pipe)
    assert [a == b for a, b in zip(rows, new)] == [False, True, True, True]


def test_a_run_of_an_earlier_version_goes_on(entries, pipe, tmp_path, tuned):
    "Its settings and its rows, as that version wrote them."
    settings = dict(model="sprites", seed=0, frames=4, size=64, stride=None, fps=None)
    settings |= dict(metrics=["sprites", "psnr_to_source"]) | dict(pipe.settings) | QUICK
    (tmp_path / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    done = [entry for entry in entries if entry.name == "star"][0]
    lines = []
    for kind, prompt in done.prompts.items():
        facts = dict(clip="star", kind=kind, caption=RED, prompt=prompt, seconds=9.87, when=1700000000.5)
        facts |= dict(
            file=f"clips/star/{kind}.mp4", scores=dict(all=0.5, psnr_to_source=9.1234567), error=None
        )
        lines.append(facts | dict(process=0))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = run(entries, tmp_path, pipe)
    assert rows[:2] == lines
    assert tuned == [RING]


def test_one_failure_stops_nothing(mine, pipe, tmp_path):
    "A clip that cannot be read, a score that is not a number: told in the row, tried again, and alone."
    (tmp_path / "bad.mp4").write_bytes((mine / "star.mp4").read_bytes()[:900])
    edits = {"a": BLUE, "b": NIGHT}
    entries = [Entry("bad", tmp_path / "bad.mp4", RED, edits), Entry("star", mine / "star.mp4", RED, edits)]
    out = tmp_path / "out"

    def odd(clip, source, prompt, caption):
        return float("nan") if prompt == BLUE else 1.0

    rows = run(entries, out, pipe, metrics=dict(odd=odd))
    assert [bool(r["error"]) for r in rows] == [True, True, True, False]
    assert "bad.mp4" in rows[0]["error"]
    assert "odd is not a finite number" in rows[2]["error"]
    assert "odd is not" in (out / "index.html").read_text()
    assert mean_table(rows)[-1]["failed"] == 3
    assert len(list((out / ".tuned").iterdir())) == 1  # what star learned waits for its second try

    def boom(*_):
        raise RuntimeError("CUDA out of memory")

    again = run(entries, out, pipe, metrics=dict(odd=boom))
    assert again[3] == rows[3]  # what was done is not done again
    assert "RuntimeError: CUDA out of memory" in again[2]["error"]

    def two(*_):
        return 2.0

    entries[0].video = mine / "ring.mp4"
    assert not any(r["error"] for r in run(entries, out, pipe, metrics=dict(odd=two)))
    assert not (out / ".tuned").exists()


def test_no_tuning_is_a_baseline(mine, pipe, tmp_path, tuned):
    entry = Entry("star", mine / "star.mp4", RED, {"a": BLUE})
    (only,) = run([entry], tmp_path / "out", pipe, settings=QUICK | dict(tune_steps=0))
    assert only["error"] is None
    assert tuned == []


def test_ctrl_c_keeps_what_is_done(entries, pipe, tmp_path):
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1.0

    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        run(entries, tmp_path, pipe, metrics=dict(s=stop))
    assert list(read_results(tmp_path)) == [("star", "colour")]
    assert 'src="clips/star/colour.mp4"' in (tmp_path / "index.html").read_text()
    assert all(weights[name].equal(value) for name, value in pipe.unet.state_dict().items())


def test_a_full_disk_is_not_a_failed_edit(entries, pipe, tmp_path, monkeypatch):
    "If results cannot be kept, going on would be for nothing."

    def full(file, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(benchmark, "append_result", full)
    with pytest.raises(OSError, match="No space"):
        run(entries, tmp_path, pipe)


def test_strange_requests(mine, pipe, tmp_path):
    out = tmp_path / "o"
    star = mine / "star.mp4"
    entry = Entry("a", star, RED, {"k": BLUE})
    with pytest.raises(InputError, match="no setting called stesp"):
        run([entry], out, pipe, settings=dict(stesp=1))
    with pytest.raises(InputError, match="'source'"):
        run([Entry("a", star, RED, {"source": BLUE})], out, pipe)
    with pytest.raises(InputError, match="one file"):
        run([entry, Entry("A", star, RED, {"k": BLUE})], out, pipe)
    with pytest.raises(FileExistsError, match="holds something else"):
        run([entry], mine, pipe)
    assert not out.exists()
    assert not (mine / "settings.json").exists()


class Moved(Exception):
    "Tells where a pipeline was moved to."


class Movable:
    "A pipeline of which only the device matters."

    @classmethod
    def from_pretrained(cls, name):
        return cls()

    def to(self, device):
        raise Moved(device)


def test_a_run_works_where_it_is_told(monkeypatch, tmp_path):
    "B14: without `pipe`, the model stayed on the CPU of a machine with GPUs."
    monkeypatch.setattr(benchmark, "TuneAVideoPipeline", Movable)

    def second_of_two():
        return SimpleNamespace(device="cuda:1")

    monkeypatch.setattr(benchmark, "processes", second_of_two)
    with pytest.raises(Moved, match="cuda:1"):
        run_benchmark([], tmp_path)
    with pytest.raises(Moved, match="cuda:0"):
        run_benchmark([], tmp_path, device="cuda:0")
    with pytest.raises(Moved, match="cuda:0"):
        run_benchmark([], tmp_path, pipe=Movable(), device="cuda:0")


def test_networks_that_are_asked_stand_in_the_table(entries, pipe, tmp_path):
    "By name: another run with another judge is another folder."
    metrics = default_metrics(world_of(pipe)) | model_metrics(clip="sprites", warp="block")
    (first, _) = run(entries[:1], tmp_path, pipe, metrics=metrics)
    clip = read_clip(tmp_path / first["file"], 4)
    assert abs(first["scores"]["text"] - text_alignment(clip, BLUE)) < 2  # the file is compressed
    assert -1 <= first["scores"]["adjacent"] <= 1
    table = (tmp_path / "summary.md").read_text()
    assert "all_pairs" in table
    assert "warp_error" in table
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["metrics"][-2:] == ["clip sprites", "warp block"]


def test_a_judge_that_is_not_there_is_missed_before_any_tuning():
    with pytest.raises(ValueError, match="use one of block, opencv"):
        model_metrics(warp="blcok")
    with pytest.raises(FileNotFoundError, match="no CLIP called|no model called"):
        model_metrics(clip="nosuch")


# ------------------------------------------------------------------ the terminal, killed and spread

WORDS = ("--format", "csv", "--frames", 4, "--tune-steps", 2, "--steps", 2)
ENV = os.environ | dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
PROGRAM = """
from tune_a_video_nbs.cli import main

main()
"""
WAITS_TO_BE_KILLED = """
import sys
import time
from pathlib import Path

from tune_a_video_nbs import benchmark, cli
from tune_a_video_nbs.results import read_results

out = Path(sys.argv[sys.argv.index("--out") + 1])
score_all = benchmark.score_all


def wait_at_second(*args):
    if len(read_results(out)) == 1:
        out.with_name("waiting").touch()
        time.sleep(600)
    return score_all(*args)


benchmark.score_all = wait_at_second
cli.main()
"""


def script(folder, text=PROGRAM):
    (folder / "run.py").write_text(text)
    return [sys.executable, folder / "run.py"]


def words(mine, out, *more):
    return [str(word) for word in ("benchmark", mine / "mine.csv", "--out", out, *WORDS, *more)]


def run_program(command):
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=500)


@pytest.fixture(scope="module")
def calm(mine, tmp_path_factory):
    "The folder of a run that nobody disturbed, in one process, and what it said."
    home = tmp_path_factory.mktemp("calm")
    done = run_program([*script(home), *words(mine, home / "out", "--json")])
    assert done.returncode == 0, done.stderr
    return home / "out", done


def read_summary(out):
    with open(out / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_table(out, other):
    "Words are equal, and numbers near: two processes may add floats in another order."
    rows, others = read_summary(out), read_summary(other)
    assert len(rows) == len(others) == 4
    for ours, theirs in zip(rows, others):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name in EXACT and value:
                assert float(value) == pytest.approx(float(theirs[name]), rel=1e-3, abs=1e-3)
            else:
                assert value == theirs[name]


def test_tables_that_differ_are_found(calm, tmp_path):
    text = (calm[0] / "summary.csv").read_text()
    first = read_summary(calm[0])[0]["psnr_to_source"]
    for number, is_same in ((float(first) * (1 + 1e-6), True), (float(first) + 0.1, False)):
        (tmp_path / "summary.csv").write_text(text.replace(first, str(number)))
        if is_same:
            assert_same_table(calm[0], tmp_path)
        else:
            with pytest.raises(AssertionError):
                assert_same_table(calm[0], tmp_path)


def test_terminal(calm):
    out, done = calm
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert (told["jobs"], told["failed"], told["missing"]) == (4, 0, 0)
    assert told["page"] == str(out / "index.html")
    assert [r["kind"] for r in told["table"]] == ["colour", "place", "other", "every kind"]
    assert "edits" in done.stderr
    assert not re.search("Traceback|torchvision|Loading", done.stderr)


def test_killed_and_resumed_gives_the_same_table(mine, calm, tmp_path):
    "Killed while the second edit of the first clip is scored: its weights lie on the disk, its row does not."
    out = tmp_path / "out"
    command = [*script(tmp_path, WAITS_TO_BE_KILLED), *words(mine, out)]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    victim = subprocess.Popen(command, env=ENV, **quiet)
    try:
        deadline = time.time() + 400
        while not (tmp_path / "waiting").exists() and victim.poll() is None and time.time() < deadline:
            time.sleep(0.02)
    finally:
        victim.kill()
        victim.wait()
    assert victim.returncode == -signal.SIGKILL
    before = read_results(out)
    assert list(before) == [("star", "colour")]
    assert len(list((out / ".tuned").iterdir())) == 1
    with open(out / "results.jsonl", "ab") as file:
        file.write(b'{"clip": "star", "kind": "pla')  # and a torn line
    done = run_program([*script(tmp_path), *words(mine, out)])
    assert done.returncode == 0, done.stderr
    assert "open:" in done.stdout
    after = read_results(out)
    assert after["star", "colour"] == before["star", "colour"]
    assert_same_table(out, calm[0])
    assert not [p for p in out.rglob("*") if p.name.endswith(".part") or p.name == ".tuned"]


def test_two_processes_give_the_same_table(mine, calm, tmp_path):
    out = tmp_path / "out"
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0"]
    console = Path(sys.executable).with_name("tune-a-video")  # as the help says, where it is installed
    program = ["--no_python", console] if console.exists() else script(tmp_path)[1:]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, *program]
    done = run_program([*launch, *words(mine, out, "--json")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1  # one reports
    assert_same_table(out, calm[0])
    assert [p.name for p in out.glob("results*")] == ["results.jsonl"]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [r["clip"] for r in rows] == ["star", "star", "ring", "ring"]
    assert {r["process"] for r in rows} == {0, 1}  # both had a share


def test_one_process_in_place_of_two_is_told(monkeypatch):
    "accelerate launch --cpu --num_processes 2 starts one and says nothing; these are the marks it leaves."
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    with pytest.warns(UserWarning, match="started one process only") as caught:
        processes()
    assert caught[0].filename == __file__  # the warning points at the caller


def test_help_explains_itself(call):
    code, out, _ = call("benchmark", "--help")
    assert code == 0
    assert all(name in out for name in FORMATS)
    for words in ("Examples:", "accelerate launch", "Exit code:"):
        assert words in out


def test_terminal_says_what_is_wrong_in_one_line(call, mine, tmp_path):
    bad, table = tmp_path / "bad.csv", mine / "mine.csv"
    bad.write_text("clip,caption\n")
    csv_format = ("--format", "csv")
    for args, code, said in (
        (("nowhere.csv", *csv_format), 1, "no such file or folder: nowhere.csv"),
        ((table,), 2, "--format"),
        ((table, "--format", "sql"), 2, "sql"),
        ((table, *csv_format, "--prompt", "x"), 1, "csv brings its own prompts"),
        ((table, *csv_format, "--out", mine), 1, "holds something else"),
        ((table, *csv_format, "--metrics", "nothing:M"), 1, "No module named 'nothing'"),
        ((bad, *csv_format), 1, "bad.csv, line 1: has no column prompt"),
    ):
        got, out, err = call("benchmark", *args)
        assert (got, out) == (code, ""), err
        assert said in err
        assert code == 2 or len(err.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["bad.csv"]


OWN_SCORES = """
def length(clip, source, prompt, caption):
    if "blue" in prompt:
        raise KeyError("x")
    return len(clip)


MINE = dict(length=length)
"""


def test_terminal_with_losses_and_scores_of_your_own(call, mine, tmp_path):
    (tmp_path / "scores_of_mine.py").write_text(OWN_SCORES)
    path = tmp_path / "some.csv"
    path.write_text(f"clip,caption,prompt\nstar.mp4,{RED},{BLUE}\nstar.mp4,,{NIGHT}\ngone.mp4,c,p\n")
    words = ("benchmark", path, "--videos", mine, "--metrics", "scores_of_mine:MINE", *WORDS)
    code, out, err = call(*words)
    assert code == 3
    assert "1 missing, skipped: gone" in err
    assert "failed: star, 01: KeyError" in err
    assert "length" in out
    assert (tmp_path / "benchmarks" / "some" / "missing.txt").read_text().startswith("gone: no ")
    code, _, err = call(*words, "--seed", 1)
    assert code == 1
    assert "seed is 1 and was 0" in err
