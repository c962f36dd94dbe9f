"""The studio: its logic without a screen, and the whole app in a real browser, served by Voilà.

The browser half needs Chromium and Voilà, and skips where either lacks. Its pictures go to _screenshots/, to be looked at."""

import base64
import json
import re
import struct
import time
from pathlib import Path

import browser as chromium
import numpy as np
import pytest
import torch

from tune_a_video_nbs import studio
from tune_a_video_nbs.clips import read_clip, write_clip
from tune_a_video_nbs.session import (
    Choices,
    Refused,
    Session,
    check_number,
    code_text,
    find_problems,
    read_choice,
    uploaded_file,
)
from tune_a_video_nbs.sprites import draw_clip
from tune_a_video_nbs.studio import Studio
from tune_a_video_nbs.tuned import load_tuned

ROOT = Path(__file__).resolve().parent.parent
QUICK = dict(
    frames="3",
    steps="3",
    every="2",
    draws="2",
    prompts="a blue star is bouncing on the grass\na red star is bouncing on a night sky",
)


@pytest.fixture(scope="module")
def pipe():
    "The miniature, loaded once."
    session = Session()
    studio._load(session, Choices())
    return session.pipe, session.base, session.where, session.fresh


@pytest.fixture
def session(tmp_path, pipe):
    s = Session(tmp_path / "studio")
    s.pipe, s.base, s.where, s.fresh = pipe
    s.choices = Choices(**QUICK)
    s.pipe.unet.load_state_dict(s.fresh, strict=False)
    return s


def learned(s):
    return {k: v.clone() for k, v in s.pipe.unet.state_dict().items() if k in s.fresh}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def until(test, seconds=30):
    end = time.time() + seconds
    while not test():
        assert time.time() < end, "never happened"
        time.sleep(0.005)


# Without a screen.


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
        ("every", "0"),
        ("seed", "-1"),
        ("draws", "1001"),
        ("guidance", "-2"),
        ("size", "7"),
    ],
)
def test_a_number_that_cannot_be_is_named(name, text):
    with pytest.raises(ValueError, match=re.escape(repr(text)) + ".*give a .*number from"):
        check_number(name, text)


def test_nothing_is_allowed_where_the_model_knows():
    assert [check_number(k, " ") for k in studio.OPTIONAL] == [None] * 5
    assert (
        check_number("lr", "5e-4") == 5e-4
        and check_number("guidance", "0") == 0
        and check_number("frames", " 8 ") == 8
    )


def test_every_problem_of_a_job_is_found_at_once(session):
    wrong = Choices(
        caption="a red dragon on the grass", base="spirtes", size="50", steps="-5", lr="much", prompts="\n"
    )
    assert set(find_problems(wrong, "tune", session.pipe)) == {"caption", "base", "size", "steps", "lr"}
    assert set(find_problems(wrong, "edit", session.pipe)) == {"prompts"}
    assert (
        "'dragon'" in find_problems(wrong, "tune", session.pipe)["caption"]
        and "try 48" in find_problems(wrong, "tune", session.pipe)["size"]
    )
    assert (
        "'unicorn'"
        in find_problems(Choices(prompts="a blue star on the grass\na unicorn"), "edit", session.pipe)[
            "prompts"
        ]
    )
    assert (
        find_problems(Choices(), "tune", session.pipe) == find_problems(Choices(), "edit", session.pipe) == {}
    )
    assert set(find_problems(Choices(caption=" "), "tune")) == {"caption"}  # without a model at hand, too


def test_a_clip_that_cannot_be_blames_its_field(tmp_path):
    (tmp_path / "notes.mp4").write_text("no film")
    for c, field in (
        (Choices(frames="99"), "frames"),
        (Choices(clip=str(tmp_path / "none.mp4")), "clip"),
        (Choices(clip=str(tmp_path / "notes.mp4")), "clip"),
    ):
        with pytest.raises(Refused) as said:
            read_choice(c)
        assert list(said.value.problems) == [field]


def test_uploads_of_both_ipywidgets():
    seven = {"my.mp4": dict(metadata=dict(name="my.mp4", size=3), content=b"abc")}
    eight = (dict(name="my.mp4", type="video/mp4", size=3, content=memoryview(b"abc")),)
    assert uploaded_file(seven) == uploaded_file(eight) == ("my.mp4", b"abc")
    assert uploaded_file({}) is uploaded_file(()) is None
    assert (
        uploaded_file((dict(name="../../etc/my.mp4", content=b""),))[0]
        == uploaded_file((dict(name="c:\\x\\my.mp4", content=b""),))[0]
        == "my.mp4"
    )


def test_an_upload_replaces_no_other_file(tmp_path):
    "Two clips of one name: the program that read the first must still find it."
    a, again, b = (
        studio.keep_file(tmp_path / "clips", "my.mp4", data) for data in (b"first", b"first", b"second")
    )
    assert a == again and b.name == "my-2.mp4" and a.read_bytes() == b"first" and b.read_bytes() == b"second"


def test_spaces_around_what_was_typed_do_not_count(tmp_path):
    app = Studio(tmp_path)
    app.boxes["base"].value = " sprites "
    app.boxes["steps"].value = " 3"
    assert app.session.choices.base == "sprites" and app.session.choices.steps == "3"


def test_refused_is_not_begun(session):
    before = learned(session)
    session.choices = Choices(**QUICK | dict(steps="-5"))
    session.press("tune").join()
    assert set(session.problems) == {"steps"} and "Not begun" in session.status
    assert (
        same(learned(session), before)
        and not session.losses
        and not session.folder.exists()
        and not session.busy
    )


def test_edit_wants_something_learned_from_this_very_clip(session):
    session.press("edit").join()
    assert "press Tune first" in session.problems["prompts"]
    session.press("tune").join()
    session.choices = Choices(**QUICK | dict(caption="a blue star is bouncing on the grass"))
    session.press("edit").join()
    assert set(session.problems) == {"caption"} and not session.edits


def test_the_code_does_what_was_clicked(session, tmp_path, monkeypatch):
    "Run as it stands, in an empty folder: the same weights and the same films, though no preview was looked at."
    heard = []
    session.tell = heard.append
    session.press("tune").join()
    session.press("edit").join()
    assert session.preview[0] == 2 and set(heard) == {
        "problems",
        "status",
        "loss",
        "preview",
        "tuned",
        "edits",
    }
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    space = {}
    exec(code_text(session.tuned, session.edited), space)
    ours = learned(session)
    assert same({k: v for k, v in space["pipe"].unet.state_dict().items() if k in ours}, ours)
    load_tuned(space["pipe"].unet, session.folder / "tuned.safetensors")
    for i in (1, 2):
        assert Path(f"edit-{i:02}.mp4").read_bytes() == (session.folder / f"edit-{i:02}.mp4").read_bytes()


def test_the_code_stands_for_any_name_and_words(session, tmp_path, monkeypatch):
    name = """it's "a" {film}.mp4"""
    monkeypatch.chdir(tmp_path)
    write_clip("film.mp4", draw_clip(Choices().caption, 4)).rename(name)
    session.choices = Choices(
        **QUICK | dict(clip=name, steps="1", prompts="a blue star is bouncing on the grass")
    )
    session.press("tune").join()
    session.press("edit").join()
    assert not session.problems and len(session.edits) == 1
    compile(code_text(session.tuned, session.edited), "clicked", "exec")
    assert repr(name) in code_text(session.tuned) and "SAMPLE" not in code_text(session.tuned)


def test_stop_keeps_what_was_learned(session, tmp_path, monkeypatch):
    session.choices = Choices(
        **QUICK | dict(steps="500", every="1000", prompts="a blue star is bouncing on the grass")
    )
    thread = session.press("tune")
    until(lambda: len(session.losses) == 2 or not session.busy)
    session.stop()
    thread.join()
    n = len(session.losses)
    assert 2 <= n < 500 and f"Stopped after {n} of 500 steps" in session.status
    session.press("edit").join()
    assert len(session.edits) == 1
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(code_text(session.tuned), space)  # the code is that of the stopped run
    assert f"steps={n}," in code_text(session.tuned)
    assert same(
        {k: v for k, v in space["pipe"].unet.state_dict().items() if k in session.fresh}, learned(session)
    )


def test_stop_keeps_what_was_drawn(session):
    session.press("tune").join()
    session.choices = Choices(**QUICK | dict(draws="8"))
    thread = session.press("edit")
    until(lambda: len(session.edits) == 1 or not session.busy)
    session.stop()
    thread.join()
    assert session.status == "Stopped; 1 drawn." and session.edited["prompts"] == [
        QUICK["prompts"].splitlines()[0]
    ]
    session.choices = Choices(**QUICK)
    session.press("edit").join()
    assert len(session.edits) == 2  # and another press is as good as the first


def test_two_presses_do_not_collide(session):
    thread = session.press("tune")
    assert session.press("tune") is None and session.press("edit") is None
    thread.join()
    assert session.status == "Learned 3 steps."


def test_an_error_in_the_thread_is_shown(session, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(type(session.pipe), "tune", broken)
    session.press("tune").join()
    assert (
        "RuntimeError: the disk is on fire" in session.status and not session.busy and session.tuned is None
    )
    monkeypatch.undo()
    session.press("tune").join()
    assert session.tuned  # and the lock is free again


def test_other_bases_are_judged_by_a_clip_or_say_why_not(session, monkeypatch):
    session.press("tune").join()
    clip, words = session.clip, "a blue star is bouncing on the grass"
    assert "off its path" in studio.score_words(session.pipe, clip, words, clip, words, "none")
    assert set(
        studio.score_words(session.pipe, clip, "a blue star and a red heart", clip, words, "none")
    ) == {"CLIP: text", "CLIP: frames alike"}  # its own
    monkeypatch.setattr(studio, "known_words", lambda tokenizer: [])  # as a base of the Hub
    assert (
        "no CLIP called 'nobody/none'"
        in studio.score_words(session.pipe, clip, words, clip, words, "nobody/none")["CLIP"]
    )
    assert "CLIP: text" in studio.score_words(session.pipe, clip, words, clip, words, "sprites")


def test_a_link_holds_its_file_unless_it_is_large(tmp_path):
    (tmp_path / "<x>.mp4").write_bytes(b"film")
    held = studio.link_html(tmp_path / "<x>.mp4", "mp4")
    assert base64.b64decode(held.split("base64,")[1].split('"')[0]) == b"film" and "<x>" not in held
    assert "base64" not in studio.link_html(
        tmp_path / "<x>.mp4", "mp4", most=3
    ) and "&lt;x&gt;" in studio.link_html(tmp_path / "<x>.mp4", "mp4", most=3)


def test_the_app_follows_its_session(tmp_path):
    "Widgets without a browser: what is typed is chosen, what is wrong stands beside its field, markup typed in is text."
    app = Studio(tmp_path)
    until(lambda: app.strip.value)
    app.boxes["frames"].value = "99"
    until(lambda: app.session.problems)
    assert (
        "99 were asked" in app.notes["frames"].value
        and app.notes["frames"].layout.display is None
        and "tav-bad" in app.boxes["frames"]._dom_classes
    )
    app.boxes["frames"].value = "<b>"
    until(lambda: "&lt;b&gt;" in app.notes["frames"].value)
    app.boxes["frames"].value = "4"
    until(lambda: not app.session.problems)
    assert (
        app.notes["frames"].layout.display == "none"
        and "tav-bad" not in app.boxes["frames"]._dom_classes
        and app.session.choices.frames == "4"
    )


def test_typing_elsewhere_does_not_lose_a_reading(monkeypatch):
    "Found in the browser: the caption was typed while frames were read, and the reading was thrown away as outdated."
    began, go = studio.threading.Event(), studio.threading.Event()

    def slow(c, side=None):
        began.set()
        go.wait(5)
        return draw_clip(Choices().caption, 2)

    monkeypatch.setattr(studio, "read_choice", slow)
    s = Session()
    s.see()
    began.wait(5)
    s.choices = Choices(caption="a blue star on the grass")
    go.set()
    until(lambda: s.seen is not None)
    began.clear()
    go.clear()
    s.seen = None
    s.see()
    began.wait(5)
    s.choices = Choices(frames="4")
    go.set()
    time.sleep(0.1)
    assert s.seen is None  # but one of other frames is outdated indeed


def test_long_clips_and_long_runs_stay_light():
    clip = np.random.default_rng(0).integers(0, 255, (100, 96, 96, 3), dtype=np.uint8)
    assert (
        re.search(r"1\d of the 100 frames", studio.strip_html(clip))
        and len(studio.strip_html(clip)) < 600_000
    )  # of noise, the worst case
    long = studio.loss_html(list(np.linspace(0.1, 0.01, 5000)))
    assert long.count("<circle") == 200 and len(long) < 20_000 and "loss of 5000 steps" in long
    assert studio.loss_html([0.1]) == "" and "mean of the last 2: 0.200" in studio.loss_html([0.1, 0.3])


def test_a_base_that_cannot_be_had_is_named(session):
    session.choices = Choices(**QUICK | dict(base="nobody/none"))
    session.press("tune").join()
    assert set(session.problems) == {"base"} and "Not begun" in session.status


def test_another_size(session):
    session.choices = Choices(
        **QUICK | dict(size="48", steps="1", prompts="a blue star is bouncing on the grass")
    )
    session.press("tune").join()
    session.press("edit").join()
    assert (
        not session.problems
        and session.edits[0]["clip"].shape == (3, 48, 48, 3)
        and "3, 48," in code_text(session.tuned)
    )


def test_no_old_word_is_written_over_a_new_one():
    "Two threads may show the problems at once: the one that looked first must not write last."
    s, shown = Session(), []

    def slow(part):
        seen = dict(s.problems)
        time.sleep(0.1 * bool(seen))
        shown.append(seen)

    s.tell = slow
    first = studio.threading.Thread(target=s.complain, args=((), dict(steps="no number")))
    first.start()
    until(lambda: s.problems)
    time.sleep(0.02)
    s.complain(("steps",), {})
    first.join()
    assert shown[-1] == s.problems == {}


def test_every_field_is_shown():
    from dataclasses import fields

    assert (
        {f.name for f in fields(Choices)}
        == set(studio.FIELDS)
        == set(studio.RULES) | {"clip", "caption", "base", "prompts"}
    )


# In a browser.

SHOTS = ROOT / "_screenshots"
CAPTION = "a purple heart is sliding in the snow"
APP = "document.querySelector('.tav-studio')"
needs_browser = [
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium on PATH: apt-get install chromium"),
    pytest.mark.skipif(not chromium.has_voila(), reason="no Voilà: pip install voila"),
]


def button(name, i=0):
    return f"[...document.querySelectorAll('.tav-studio button')].filter(b => b.textContent.trim() == '{name}')[{i}]"


def field(label, i=0):
    return f"[...document.querySelectorAll('.tav-studio label, .tav-studio .widget-label')].filter(l => l.textContent.startsWith('{label}'))[{i}].parentElement.querySelector('input, textarea')"


UPLOAD = "document.querySelector('.jupyter-widgets.widget-upload')"


def text(tab):
    return tab.js(f"{APP}.innerText")


def shows(tab, words, seconds=20):
    tab.until(f"{APP}.innerText.includes({json.dumps(words)})", seconds)


def shot(tab, name):
    "The whole app, in a window that is high enough: the page scrolls inside."
    width = tab.js("innerWidth")
    tab.size(width, int(tab.js(f"{APP}.offsetHeight")) + 60)
    tab.js(f"{APP}.scrollIntoView()")
    tab.pause(0.3)
    tab.picture(SHOTS / f"studio-{name}.png", element=APP)
    tab.size(width, 1200)
    tab.pause(0.2)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    "The app, open. It ends with everything it started, whatever happens."
    folder = tmp_path_factory.mktemp("voila")
    write_clip(folder / "mine.mp4", draw_clip(CAPTION, 6))
    (folder / "notes.mp4").write_text("no film")
    with chromium.voila(folder, "from tune_a_video_nbs.studio import Studio\nStudio()") as url:
        b = chromium.Browser(tmp_path_factory.mktemp("profile"))
        b.folder = folder
        try:
            b.size(940, 1200)
            b.go(url, seconds=60)
            b.until("!!document.querySelector('.tav-strip')", 30)
            yield b
        finally:
            b.close()


class TestBrowser:
    "One visit, step by step: each test goes on where the one before left the app."

    pytestmark = needs_browser

    def test_opens_with_the_sample(self, tab):
        assert (
            "the 8 frames it will learn" in text(tab)
            and tab.js(f"{field('What it shows')}.value") == Choices().caption
        )
        assert tab.js(f"{button('Stop')}.disabled") and not tab.js(f"{button('Tune')}.disabled")
        shot(tab, "1-start")

    def test_wrong_input_is_said_beside_its_field_and_nothing_begins(self, tab):
        tab.fill(field("Frames"), "99")
        shows(tab, "99 were asked")
        tab.fill(field("Frames"), "4")
        tab.until("!document.querySelector('.tav-note')")
        tab.fill(field("Steps"), "-5")
        tab.fill(field("What it shows"), "a red dragon is bouncing on the grass")
        tab.fill(field("Side"), "50")
        tab.click(button("Tune"))
        shows(tab, "Not begun")
        assert "'-5': give a whole number from 1" in text(tab)
        tab.fill(field("Steps"), "2")
        tab.until("!document.querySelector('.tav-note')")  # its line goes, and what is below moves up
        tab.click(button("Tune"))
        shows(tab, "does not know 'dragon'")
        shows(tab, "50 is no multiple of 8")
        shows(tab, "Not begun")
        beside = f"(e => e.getBoundingClientRect().top - {field('What it shows')}.getBoundingClientRect().bottom)([...document.querySelectorAll('.tav-note')].find(e => e.innerText.includes('dragon')))"
        tab.until("document.querySelectorAll('.tav-bad').length == 2")
        assert 0 <= tab.js(beside) < 20
        assert "step 1" not in text(tab) and not (tab.folder / "studio").exists()
        shot(tab, "2-refused")

    def test_upload(self, tab):
        tab.choose(UPLOAD, tab.folder / "notes.mp4")
        shows(tab, "is not a video")
        tab.choose(UPLOAD, tab.folder / "mine.mp4")
        tab.until(f"{field('Clip')}.value.endsWith('mine.mp4')")
        tab.fill(field("Side"), "")
        tab.fill(field("What it shows"), CAPTION)
        tab.until("!document.querySelector('.tav-note') && !!document.querySelector('.tav-strip')")
        assert (tab.folder / "studio" / "clips" / "mine.mp4").read_bytes() == (
            tab.folder / "mine.mp4"
        ).read_bytes()
        shot(tab, "3-uploaded")

    def test_stop_comes_through_and_keeps_what_was_learned(self, tab):
        tab.fill(field("Steps"), "900")
        tab.fill(field("Preview every"), "3")
        tab.fill(field("Edits"), "a green heart is sliding in the snow\na purple ring is sliding in the snow")
        tab.fill(field("Steps", 1), "3")
        tab.click(button("Tune"))
        shows(tab, "after 3 steps")
        tab.until("[...document.querySelectorAll('.tav-clips video')].every(v => v.currentTime > 0)")
        assert (
            not tab.js(f"{button('Stop')}.disabled")
            and tab.js(f"{button('Tune')}.disabled")
            and tab.js(f"{field('Steps')}.disabled")
        )
        assert tab.js("document.querySelectorAll('.tav-loss circle').length") >= 3
        shot(tab, "4-tuning")
        tab.click(button("Stop"))
        shows(tab, "What was learned is kept", 10)
        n = int(re.search(r"Stopped after (\d+) of 900", text(tab))[1])
        tab.js("document.querySelector('details').open = true")
        assert 3 <= n < 900 and f"steps={n}," in tab.js(
            "document.querySelector('.tav-studio pre').textContent"
        )
        shot(tab, "5-stopped")

    def test_edits_play_beside_the_source_in_step(self, tab):
        tab.click(button("Edit"))
        shows(tab, "Drew 2.", 40)
        assert "off its path" in text(tab) and "a purple ring" in text(tab)
        players = "[...document.querySelectorAll('.tav-card:last-child video')]"
        tab.until(f"{players}.length == 3 && {players}.every(v => v.currentTime > 0)")
        a = tab.js(f"{players}.map(v => v.currentTime)")
        tab.pause(0.3)
        b = tab.js(f"{players}.map(v => v.currentTime)")
        assert a != b and max(a) - min(a) < 0.15 and max(b) - min(b) < 0.15
        tab.click("document.querySelector('.tav-card:last-child .tav-clips button')")
        tab.pause(0.1)
        c = tab.js(f"{players}.map(v => v.currentTime)")
        tab.pause(0.3)
        assert c == tab.js(f"{players}.map(v => v.currentTime)")  # the pause button's script runs, too
        shot(tab, "6-edited")

    def test_downloads_are_real(self, tab):
        links = dict(
            tab.js("[...document.querySelectorAll('.tav-studio a[download]')].map(a => [a.download, a.href])")
        )
        data = {k: base64.b64decode(v.split("base64,")[1]) for k, v in links.items()}
        assert set(data) == {"tuned.safetensors", "edit-01.mp4", "edit-02.mp4"}
        size = struct.unpack("<Q", data["tuned.safetensors"][:8])[
            0
        ]  # safetensors: a length, that much JSON, tensors
        header = json.loads(data["tuned.safetensors"][8 : 8 + size])
        assert header["__metadata__"]["caption"] == CAPTION and any("attn_temp" in k for k in header)
        assert (
            max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__")
            == len(data["tuned.safetensors"]) - 8 - size
        )
        (tab.folder / "got.mp4").write_bytes(data["edit-02.mp4"])
        assert read_clip(tab.folder / "got.mp4", None).shape == (4, 64, 64, 3)

    def test_a_choice_that_no_longer_fits_what_was_learned(self, tab):
        tab.fill(field("What it shows"), "a red star is bouncing on the grass")
        tab.click(button("Edit"))
        shows(tab, f"was {CAPTION!r} when the clip was learned")
        tab.fill(field("What it shows"), CAPTION)
        ours = [
            e
            for e in tab.errors
            if "ERR_NAME_NOT_RESOLVED" not in e and "ERR_INTERNET" not in e and "labextensions" not in e
        ]  # Voilà's own
        assert not ours, ours

    def test_narrow(self, tab):
        tab.size(390, 844)
        tab.pause(0.3)
        wide = tab.js(
            "[...document.querySelectorAll('.tav-card *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.tagName != 'CODE').map(e => e.className)"
        )
        shot(tab, "7-narrow")
        tab.size(940, 1200)
        assert not wide, wide
