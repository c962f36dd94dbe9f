"""The studio without a screen: it tunes, previews, edits, stops, and writes down what was clicked."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tune_a_video_nbs import session as session_module
from tune_a_video_nbs.choices import Choices
from tune_a_video_nbs.clips import read_clip, write_clip
from tune_a_video_nbs.outcome import code_text, format_scores
from tune_a_video_nbs.pipeline import TuneAVideoPipeline
from tune_a_video_nbs.session import Session
from tune_a_video_nbs.sprites import draw_clip
from tune_a_video_nbs.tuned import load_tuned
from tune_a_video_nbs.world import world_of

BLUE = "a blue star is bouncing on the grass"
NIGHT = "a red star is bouncing on a night sky"
QUICK = Choices(frames="3", steps="3", preview_every="2", num_inference_steps="2", prompts=f"{BLUE}\n{NIGHT}")


@pytest.fixture(scope="module")
def pipe():
    "The miniature, loaded once."
    session = Session()
    session.load("sprites")
    return session.pipe


@pytest.fixture(scope="module")
def untuned(pipe):
    pipe.unload_tuned()  # whichever test came first
    return weights(pipe)


@pytest.fixture
def session(tmp_path, pipe):
    session = Session(tmp_path / "studio")
    pipe.unload_tuned()
    session.pipe, session.base = pipe, "sprites"
    session.choices = QUICK
    return session


def weights(pipe):
    return {name: value.clone() for name, value in pipe.unet.state_dict().items()}


def distance(a, b):
    "The largest difference between two sets of weights."
    return max((a[name] - b[name]).abs().max().item() for name in a)


def until(test, seconds=60):
    "Wait for a condition."
    end = time.time() + seconds
    while not test():
        assert time.time() < end, "never happened"
        time.sleep(0.005)


def run_program(program, folder, monkeypatch):
    "Run what `code_text` wrote in an empty folder, and return its pipeline."
    folder.mkdir()
    monkeypatch.chdir(folder)
    space = {}
    exec(program, space)
    return space["pipe"]


def program_of(session):
    return code_text(session.tuned, session.drawing, [edit.prompt for edit in session.edits])


def test_refused_is_not_begun(session, pipe, untuned):
    session.choices = replace(QUICK, steps="-5")
    session.press("tune").join()
    assert set(session.problems) == {"steps"}
    assert "Not begun" in session.status
    assert distance(untuned, weights(pipe)) == 0
    assert not session.losses
    assert not session.folder.exists()
    assert not session.busy


def test_edit_wants_something_learned(session):
    session.press("edit").join()
    assert "press Tune first" in session.problems["prompts"]


def test_edit_wants_what_was_learned_from_this_very_clip(session):
    session.press("tune").join()
    session.choices = replace(QUICK, caption=BLUE)
    session.press("edit").join()
    assert set(session.problems) == {"caption"}
    assert not session.edits


def test_every_part_is_told_and_the_preview_is_a_record(session):
    heard = []
    session.on_change = heard.append
    session.press("tune").join()
    session.press("edit").join()
    assert set(heard) == {"problems", "status", "losses", "preview", "tuned", "edits"}
    assert session.preview.step == 2
    assert session.preview.prompt == BLUE
    assert session.preview.clip.dtype == np.uint8
    assert session.preview.clip.shape == session.clip.shape


def test_the_code_does_what_was_clicked(session, pipe, untuned, tmp_path, monkeypatch):
    "Run as it stands, in an empty folder: the same weights and films, though no preview was looked at."
    session.press("tune").join()
    session.press("edit").join()
    again = run_program(program_of(session), tmp_path / "again", monkeypatch)
    moved = distance(weights(pipe), untuned)
    assert moved > 0
    assert distance(weights(pipe), weights(again)) < moved / 100
    load_tuned(again.unet, session.folder / "tuned.safetensors")
    for edit in session.edits:
        ours, theirs = read_clip(edit.file, None).astype(int), read_clip(Path(edit.file.name), None)
        assert np.abs(ours - theirs).mean() < 1  # grey levels


def test_a_second_tuning_begins_anew(session, pipe):
    session.press("tune").join()
    first = weights(pipe)
    session.press("tune").join()
    assert distance(first, weights(pipe)) < 1e-6


def test_a_tuning_after_one_that_failed_begins_anew(session, pipe, monkeypatch):
    session.press("tune").join()
    first = weights(pipe)
    with monkeypatch.context() as patch:
        patch.setattr(session, "draw", None)  # so that the preview fails, in the middle of the tuning
        session.press("tune").join()
    assert "went wrong" in session.status
    assert session.tuned is None
    session.press("tune").join()
    assert session.status == "Learned 3 steps."
    assert distance(first, weights(pipe)) < 1e-6


def test_the_code_stands_for_any_name_and_words(session, tmp_path, monkeypatch):
    name = """it's "a" {film}.mp4"""
    monkeypatch.chdir(tmp_path)
    write_clip("film.mp4", draw_clip(Choices().caption, 4)).rename(name)
    session.choices = replace(QUICK, clip=name, steps="1", prompts=BLUE)
    session.press("tune").join()
    session.press("edit").join()
    assert not session.problems
    assert len(session.edits) == 1
    program = program_of(session)
    compile(program, "clicked", "exec")
    assert repr(name) in program
    assert "SAMPLE" not in program


def test_stop_keeps_what_was_learned(session, pipe, untuned, tmp_path, monkeypatch):
    session.choices = replace(QUICK, steps="500", preview_every="1000", prompts=BLUE)
    thread = session.press("tune")
    until(lambda: len(session.losses) == 2 or not session.busy)
    session.stop()
    thread.join()
    done = len(session.losses)
    assert 2 <= done < 500
    assert f"Stopped after {done} of 500 steps" in session.status
    session.press("edit").join()
    assert len(session.edits) == 1
    program = code_text(session.tuned)  # of the stopped run
    assert f"steps={done}," in program
    again = run_program(program, tmp_path / "again", monkeypatch)
    moved = distance(weights(pipe), untuned)
    assert distance(weights(pipe), weights(again)) < moved / 100


def test_stop_keeps_what_was_drawn(session):
    session.press("tune").join()
    session.choices = replace(QUICK, num_inference_steps="8")

    def stop_after_one(part):
        if part == "edits" and len(session.edits) == 1:
            session.stop()

    session.on_change = stop_after_one
    session.press("edit").join()
    assert session.status == "Stopped; 1 drawn."
    assert [edit.prompt for edit in session.edits] == [BLUE]
    assert "prompts = ['a blue star" in program_of(session)
    session.on_change = None
    session.choices = QUICK
    session.press("edit").join()
    assert len(session.edits) == 2  # and another press is as good as the first


def test_an_error_in_the_thread_is_shown(session, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(TuneAVideoPipeline, "tune", broken)
        session.press("tune").join()
    assert "RuntimeError: the disk is on fire" in session.status
    assert "in broken" in session.traceback
    assert not session.busy
    assert session.tuned is None
    session.press("tune").join()
    assert session.tuned  # and the lock is free again


def test_a_base_that_cannot_be_had_is_named(session):
    session.choices = replace(QUICK, base="nobody/none")
    session.press("tune").join()
    assert set(session.problems) == {"base"}
    assert "Not begun" in session.status


def test_another_size(session):
    session.choices = replace(QUICK, size="48", steps="1", prompts=BLUE)
    session.press("tune").join()
    session.press("edit").join()
    assert not session.problems
    assert session.edits[0].clip.shape == (3, 48, 48, 3)
    assert "3, 48," in code_text(session.tuned)


# Scores


def test_an_edit_in_a_world_is_scored_exactly(pipe):
    source, right = draw_clip(Choices().caption, 4), draw_clip(BLUE, 4)
    scores = format_scores(pipe, right, BLUE, source, Choices().caption, "none")
    assert scores == {"asked for and there": "100%", "kept": "100%", "off its path": "0.0 px"}
    scores = format_scores(pipe, source, Choices().caption, source, Choices().caption, "none")
    assert scores["asked for and there"] == "-"  # nothing was asked for


def test_words_outside_the_grammar_are_judged_by_the_worlds_clip(pipe):
    clip = draw_clip(BLUE, 4)
    scores = format_scores(pipe, clip, "a blue star and a red heart", clip, BLUE, "none")
    assert set(scores) == {"CLIP: text", "CLIP: frames alike"}


def test_models_of_no_world_are_judged_by_a_clip_or_say_why_not():
    clip = draw_clip(BLUE, 4)
    of_the_hub = object()  # knows no world
    scores = format_scores(of_the_hub, clip, BLUE, clip, BLUE, "nobody/none")
    assert "no CLIP called 'nobody/none'" in scores["CLIP"]
    assert "CLIP: text" in format_scores(of_the_hub, clip, BLUE, clip, BLUE, "sprites")


def test_the_bundled_model_knows_its_world(pipe, tmp_path):
    "Its settings say so, and what is saved of it goes on saying so."
    assert world_of(pipe).name == "sprites"
    pipe.save_pretrained(tmp_path)
    assert TuneAVideoPipeline.from_pretrained(tmp_path).config.world == "sprites"


# Thumbnails


@pytest.fixture
def slow_reading(monkeypatch):
    "A reading that begins, and waits until it may go on."
    began, go_on = threading.Event(), threading.Event()

    def read(choices, side=None):
        began.set()
        assert go_on.wait(10)
        return draw_clip(Choices().caption, 2)

    monkeypatch.setattr(session_module, "read_choice", read)
    return began, go_on


def test_typing_elsewhere_does_not_lose_a_reading(slow_reading):
    "Found in the browser: the caption was typed while frames were read, and the reading was thrown away."
    began, go_on = slow_reading
    session = Session()
    thread = session.read_thumbnails()
    assert began.wait(10)
    session.choices = Choices(caption=BLUE)
    go_on.set()
    thread.join(10)
    assert session.thumbnails is not None


def test_a_reading_of_other_frames_is_outdated(slow_reading):
    began, go_on = slow_reading
    session = Session()
    thread = session.read_thumbnails()
    assert began.wait(10)
    session.choices = Choices(frames="4")
    go_on.set()
    thread.join(10)
    assert not thread.is_alive()
    assert session.thumbnails is None


def test_tensors_on_the_way_are_of_the_model(session):
    session.press("tune").join()
    session.press("edit").join()
    assert list(session.inverted) == [2]
    assert isinstance(session.inverted[2], torch.Tensor)
    assert session.inverted[2].shape[2] == 3  # frames
