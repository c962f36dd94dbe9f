"A run is a folder: what is in it, what it costs, and that nothing half-written is left."

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from small_runs import BLUE, NIGHT, RED, everything

from tune_a_video_nbs.clips import read_clip
from tune_a_video_nbs.errors import InputError, MissingFileError
from tune_a_video_nbs.opening import choose_device, clip_hints, load_pipe, model_side
from tune_a_video_nbs.run_page import commands_of, explain_scores, score_rows, write_page
from tune_a_video_nbs.runs import read_run, run_edit, run_tune, slug


@pytest.fixture
def counts(monkeypatch):
    "How often films are opened and encoded, clips written, and networks asked."
    import av

    from tune_a_video_nbs.inflate import VideoUNet

    found = Counter()
    open_with_av, forward = av.open, VideoUNet.forward

    def counted_open(file, mode="r", *args, **kwargs):
        found["reads" if mode == "r" else "writes"] += 1
        return open_with_av(file, mode, *args, **kwargs)

    def counted_forward(self, *args, **kwargs):
        found["unet"] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(av, "open", counted_open)
    monkeypatch.setattr(VideoUNet, "forward", counted_forward)
    from tune_a_video_nbs import runs

    write = runs.write_clip

    def counted_write(path, *args, **kwargs):
        found["clips"] += 1
        return write(path, *args, **kwargs)

    monkeypatch.setattr(runs, "write_clip", counted_write)
    return found


def test_tune_decodes_its_clip_once(star_mp4, tmp_path, counts):
    run_tune(star_mp4, RED, tmp_path / "run", frames=4, stride=1, steps=2, progress=False)
    assert counts["reads"] == 2  # its frames, and its header for a hint
    assert counts["clips"] == 2  # source.mp4 and frames/
    counts.clear()
    run_tune(star_mp4, RED, tmp_path / "other", frames=2, stride=2, steps=2, progress=False)
    assert counts["reads"] == 1


def test_edit_samples_and_writes_only_what_was_asked(run, counts):
    run_edit(run, [BLUE, NIGHT], steps=2, progress=False)
    assert counts == {"unet": 2 + 2 * 2, "clips": 2, "writes": 2}  # one inversion, two edits
    counts.clear()
    run_edit(run, [BLUE], steps=2, progress=False)
    assert counts == {"unet": 2 + 2, "clips": 1, "writes": 1}  # the page takes older files as they are


def test_a_reconstruction_is_sampled_if_asked(run, counts):
    (entry,) = run_edit(run, [BLUE], steps=2, reconstruct=True, progress=False)
    assert counts["unet"] == 2 + 2 + 2
    assert entry["reconstruction_psnr"] > 5
    assert "reconstruction" in score_rows([entry])[0]
    assert "reconstruction" in explain_scores(read_run(run), [entry])


def test_without_a_reconstruction_there_is_no_column(run):
    (entry,) = run_edit(run, [BLUE], steps=2, progress=False)
    assert entry["reconstruction_psnr"] is None
    assert "reconstruction" not in score_rows([entry])[0]
    assert "reconstruction" not in (run / "index.html").read_text()


def test_a_page_is_written_again_from_the_files(run, counts):
    run_edit(run, [BLUE], steps=2, progress=False)
    before = {path: path.read_bytes() for path in run.rglob("*.mp4")}
    page = (run / "index.html").read_text()
    counts.clear()
    write_page(run)
    assert counts == {}
    assert (run / "index.html").read_text() == page
    assert {path: path.read_bytes() for path in run.rglob("*.mp4")} == before


def test_a_run_of_an_earlier_version_has_a_page(run):
    "run.json had no world, and every entry a reconstruction."
    run_edit(run, [BLUE], steps=2, progress=False)
    about, (entry,) = read_run(run), json.loads((run / "scores.json").read_text())
    del about["world"]
    (run / "run.json").write_text(json.dumps(about))
    (run / "scores.json").write_text(json.dumps([entry | {"reconstruction_psnr": 21.5}]))
    assert "21.5 dB" in write_page(run).read_text()


def test_a_run_keeps_its_frames(run, star_mp4):
    assert (read_clip(run / "frames", None) == read_clip(star_mp4, None)).all()


def test_frames_are_those_that_read_clip_cuts(star_mp4, tmp_path):
    "They are read at the film's own size, and cut when the model's is known."
    run_tune(star_mp4, RED, tmp_path / "run", frames=4, size=32, steps=2, progress=False)
    assert (read_clip(tmp_path / "run" / "frames", None) == read_clip(star_mp4, 4, 32)).all()
    import numpy as np

    from tune_a_video_nbs.clips import write_clip

    wide = np.random.default_rng(0).integers(0, 256, (4, 90, 160, 3), np.uint8)
    write_clip(tmp_path / "wide", wide)
    run_tune(tmp_path / "wide", RED, tmp_path / "cut", frames=4, steps=2, progress=False)
    assert (read_clip(tmp_path / "cut" / "frames", None) == read_clip(tmp_path / "wide", 4, 64)).all()


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(MissingFileError, match="is no run"):
        read_run(tmp_path)
    with pytest.raises(MissingFileError, match="is no run"):
        run_edit(tmp_path, [BLUE])
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    "prompt, name",
    [
        ("A blue star, at night!", "a-blue-star-at-night"),
        ("ein blauer Stern über dem Gras", "ein-blauer-stern-über-dem-gras"),
        ("一只熊猫在冲浪", "一只熊猫在冲浪"),
        ("🐼 🏄", "panda-face-surfer"),
        ("../../etc/passwd", "etc-passwd"),
    ],
)
def test_a_file_is_called_after_its_prompt_in_any_script(prompt, name):
    "B22: every prompt without a-z was called `edit`."
    assert slug(prompt) == name


def test_slugs_are_short_distinct_and_never_empty():
    prompts = ["🐼", "🐱", "熊猫", "猫", "...", "???", "\ue000", "\ue001"]
    assert len({slug(prompt) for prompt in prompts}) == len(prompts)
    for prompt in (*prompts, "猫" * 400, "long " * 100):
        assert 0 < len(slug(prompt).encode()) <= 60
        assert "/" not in slug(prompt)


def test_an_edit_in_another_script_has_its_file_and_its_link(run):
    (entry,) = run_edit(run, ["一只熊猫"], steps=2, progress=False)
    assert entry["file"] == "edits/01-一只熊猫.mp4"
    assert (run / entry["file"]).stat().st_size > 500
    from urllib.parse import unquote

    (link,) = re.findall(r'href="(edits/[^"]+)"', (run / "index.html").read_text())
    assert unquote(link) == entry["file"]


def test_the_device_is_a_word(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")
    for name, words in (("cuda", "no cuda"), ("mps", "no mps"), ("toaster", "use auto")):
        with pytest.raises(InputError, match=words):
            choose_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device() == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="has 2"):
        choose_device("cuda:2")


def test_a_model_is_opened_in_the_precision_that_is_asked_for():
    pipe = load_pipe("sprites", "cpu", torch.bfloat16)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    assert load_pipe("sprites", "cpu").unet.dtype == torch.float32


def test_sizes_that_the_model_takes():
    pipe = load_pipe("sprites", "cpu")
    assert model_side(pipe) == 64
    assert model_side(pipe, 32) == 32
    with pytest.raises(InputError, match="size is 60; this model takes multiples of 8, such as 56"):
        model_side(pipe, 60)


def test_a_model_without_a_world_gives_no_hints_and_no_scores(run):
    pipe = load_pipe("sprites", "cpu")
    pipe.register_to_config(world=None)
    frames = read_clip(run / "frames", None)
    assert clip_hints(pipe, run / "frames", frames * 0, from_start=True) == []
    (entry,) = run_edit(run, [BLUE], steps=2, pipe=pipe, progress=False)
    assert entry["score"] is None


def test_edits_with_the_same_settings_are_typed_together():
    about = {"clip": "a b.mp4", "caption": RED, "frames": 4, "start": 0, "stride": 1, "size": 64, "seed": 0}
    about |= {"model": "sprites", "settings": {"tune_steps": 2, "lr": 0.0005}}
    plain = {"guidance_scale": 1.5, "num_inference_steps": 2}
    edits = [{"settings": plain, "prompt": BLUE}, {"settings": plain, "prompt": NIGHT}]
    edits.append({"settings": plain | {"guidance_scale": 3.0}, "prompt": BLUE})
    tune, both, other = commands_of(about, edits)
    assert tune.startswith(f"tune-a-video tune 'a b.mp4' '{RED}' --out again --frames 4")
    assert both == f"tune-a-video edit again '{BLUE}' '{NIGHT}' --guidance 1.5 --steps 2"
    assert other == f"tune-a-video edit again '{BLUE}' --guidance 3 --steps 2"


@pytest.fixture(scope="module")
def page(tuned_run, tmp_path_factory):
    "The page of a run with three edits."
    import shutil

    folder = Path(shutil.copytree(tuned_run, tmp_path_factory.mktemp("page") / "star"))
    run_edit(folder, [BLUE, NIGHT, "a blue dragon <b>"], steps=2, progress=False)
    return folder / "index.html"


def test_the_page_says_how_it_was_made(page):
    text = page.read_text()
    about = read_run(page.parent)
    for name, number in about["versions"].items():
        assert f"{name} {number}" in text
    assert "seed 0" in text
    assert "<details>" in text
    assert "a blue dragon &lt;b&gt;" in text
    assert "<b>" not in text
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) == 3
    for link in links:
        assert (page.parent / link).stat().st_size > 500
    commands = re.search(r"<pre>(.*?)</pre>", text, re.S)[1].splitlines()
    assert len(commands) == 2
    assert commands[0].startswith("tune-a-video tune star.mp4 &#39;a red star")
    assert "--seed 0" in commands[0]
    assert f"--guidance {about['settings']['guidance_scale']:g} --steps 2" in commands[1]
    assert NIGHT in commands[1]


def test_the_page_loads_nothing(page):
    text = page.read_text()
    assert text.count("<video") == 4
    assert not re.search(r"""https?:|src=(?!["']data:)|<link|@import|url\(""", text)


def test_the_page_in_a_browser(page, tmp_path):
    "From disk: it plays in step, asks for nothing, and no width makes it scroll sideways."
    import browser

    if not browser.find():
        pytest.skip("no Chromium here")
    b = browser.Browser(tmp_path)
    times = "[...document.querySelectorAll('video')].map(v => v.currentTime)"
    try:
        for width in (1280, 400):
            b.size(width, 800)
            b.go(page.as_uri(), wait=0.6)
            assert b.errors == []
            assert all(request.startswith("file:") for request in b.requests.values())
            assert b.js("document.documentElement.scrollWidth") <= width
            playing = "[...document.querySelectorAll('video')].map(v => v.readyState > 1 && v.duration > 0)"
            assert b.js(playing) == [True] * 4
            b.until(f"Math.max(...{times}) - Math.min(...{times}) < .13")  # a frame is .125 s
    finally:
        b.close()
