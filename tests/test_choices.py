"""What was typed into the studio: numbers, words, clips and uploads, and what is said about them."""

import re
import threading
import warnings
from dataclasses import fields

import ipywidgets
import pytest

from tune_a_video_nbs.choices import (
    RULES,
    Choices,
    Refused,
    check_number,
    check_words,
    find_problems,
    keep_file,
    problem_with,
    read_choice,
    uploaded_file,
)
from tune_a_video_nbs.errors import collect_warnings, warn
from tune_a_video_nbs.pipeline import TuneAVideoPipeline
from tune_a_video_nbs.studio import FIELDS


@pytest.fixture(scope="module")
def pipe():
    return TuneAVideoPipeline.from_pretrained("sprites")


@pytest.mark.parametrize(
    "name, text",
    [
        ("frames", "1"),
        ("frames", ""),
        ("frames", "8.5"),
        ("start", "-1"),
        ("stride", "0"),
        ("steps", "-5"),
        ("steps", "many"),
        ("steps", "0"),
        ("lr", "nan"),
        ("lr", "-0.1"),
        ("lr", "0"),
        ("lr", "inf"),
        ("preview_every", "0"),
        ("seed", "-1"),
        ("num_inference_steps", "1001"),
        ("guidance_scale", "-2"),
        ("size", "7"),
    ],
)
def test_a_number_that_cannot_be_is_named(name, text):
    with pytest.raises(ValueError, match=re.escape(repr(text)) + ".*give a .*number from"):
        check_number(name, text)


def test_nothing_is_allowed_where_the_model_knows():
    optional = [name for name, rule in RULES.items() if rule.is_optional]
    assert len(optional) == 5
    assert [check_number(name, " ") for name in optional] == [None] * 5
    assert check_number("lr", "5e-4") == 5e-4
    assert check_number("guidance_scale", "0") == 0
    assert check_number("frames", " 8 ") == 8


def test_a_bounded_widget_would_say_nothing():
    "Why the fields are text: ipywidgets' own for numbers put another number there, and take no empty one."
    bounded = ipywidgets.BoundedIntText(value=80, min=1, max=1000)
    bounded.value = -5
    assert bounded.value == 1
    with pytest.raises(Exception, match="expected"):
        bounded.value = ""


def test_every_problem_of_a_job_is_found_at_once(pipe):
    wrong = Choices(
        caption="a red dragon on the grass", base="spirtes", size="50", steps="-5", lr="much", prompts="\n"
    )
    found = find_problems(wrong, "tune", pipe)
    assert set(found) == {"caption", "base", "size", "steps", "lr"}
    assert "'dragon'" in found["caption"]
    assert "try 48" in found["size"]
    assert set(find_problems(wrong, "edit", pipe)) == {"prompts"}


def test_each_prompt_is_looked_at(pipe):
    choices = Choices(prompts="a blue star on the grass\na unicorn")
    assert "'unicorn'" in find_problems(choices, "edit", pipe)["prompts"]


def test_nothing_is_wrong_with_what_stands_there_at_first(pipe):
    assert find_problems(Choices(), "tune", pipe) == {}
    assert find_problems(Choices(), "edit", pipe) == {}


def test_words_are_missed_without_a_model_too():
    assert set(find_problems(Choices(caption=" "), "tune")) == {"caption"}


def test_a_clip_that_cannot_be_blames_its_field(tmp_path):
    (tmp_path / "notes.mp4").write_text("no film")
    wrong = [
        (Choices(frames="99"), "frames"),
        (Choices(clip=str(tmp_path / "none.mp4")), "clip"),
        (Choices(clip=str(tmp_path / "notes.mp4")), "clip"),
    ]
    for choices, field in wrong:
        with pytest.raises(Refused) as refused:
            read_choice(choices)
        assert list(refused.value.problems) == [field]


def test_uploads_of_both_ipywidgets():
    seven = {"my.mp4": dict(metadata=dict(name="my.mp4", size=3), content=b"abc")}
    eight = (dict(name="my.mp4", type="video/mp4", size=3, content=memoryview(b"abc")),)
    assert uploaded_file(seven) == uploaded_file(eight) == ("my.mp4", b"abc")
    assert uploaded_file({}) is None
    assert uploaded_file(()) is None


@pytest.mark.parametrize("name", ["../../etc/my.mp4", "c:\\x\\my.mp4", "my.mp4"])
def test_of_a_name_only_the_last_part_counts(name):
    assert uploaded_file((dict(name=name, content=b""),)) == ("my.mp4", b"")


def test_an_upload_replaces_no_other_file(tmp_path):
    "Two clips of one name: the program that read the first must still find it."
    contents = [b"first", b"first", b"second"]
    first, again, second = [keep_file(tmp_path / "clips", "my.mp4", data) for data in contents]
    assert first == again
    assert first.read_bytes() == b"first"
    assert second.name == "my-2.mp4"
    assert second.read_bytes() == b"second"


def test_every_field_is_shown():
    names = {field.name for field in fields(Choices)}
    assert names == set(FIELDS)
    assert names == set(RULES) | {"clip", "caption", "base", "prompts"}


# Warnings of several threads (B9)


def test_overlapping_checks_leave_no_filter_behind():
    """Two checks that overlap: the first to begin ends first.

    B9: with `warnings.catch_warnings` the second put back the first one's filter, and from then on every
    warning of the process was an error."""
    inside, go_on = threading.Event(), threading.Event()

    def slow_check():
        inside.set()
        assert go_on.wait(10)

    def slow_check_that_ends_last():
        go_on.set()
        first.join(10)
        warn("this model does not know 'dragon'")

    before = list(warnings.filters)
    first = threading.Thread(target=problem_with, args=(slow_check,))
    first.start()
    assert inside.wait(10)
    assert problem_with(slow_check_that_ends_last) == "this model does not know 'dragon'"
    assert warnings.filters == before


def test_many_threads_hear_their_own_warnings(pipe):
    "Eight threads ask at once; each hears of its own word, and nothing is an error afterwards."
    start = threading.Barrier(8)
    heard = {}

    def ask(word):
        start.wait(10)
        heard[word] = {problem_with(check_words, f"a {word} on the grass", pipe.tokenizer) for _ in range(50)}

    threads = [threading.Thread(target=ask, args=(f"dragon{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(heard) == 8
    for word, said in heard.items():
        assert len(said) == 1
        assert f"does not know '{word}'" in said.pop()
    with pytest.warns(UserWarning, match="of its own"):
        warn("a warning of its own")


def test_collecting_ends_with_its_block_and_touches_no_other_thread():
    with collect_warnings() as collected:
        with pytest.warns(UserWarning, match="elsewhere"):
            thread = threading.Thread(target=warn, args=("elsewhere",))
            thread.start()
            thread.join()
        warn("here")
        with collect_warnings() as inner:
            warn("within")
    assert collected == ["here"]
    assert inner == ["within"]
    with pytest.warns(UserWarning, match="again"):
        warn("again")
