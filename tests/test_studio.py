"""The studio: its widgets, and the whole app in a real browser, served by Voilà.

The browser half needs Chromium and Voilà, and skips where either lacks. Its pictures go to _screenshots/,
to be looked at."""

import base64
import json
import re
import struct
import time
from pathlib import Path

import browser as chromium
import numpy as np
import pytest

from tune_a_video_nbs.choices import Choices
from tune_a_video_nbs.clips import read_clip, write_clip
from tune_a_video_nbs.outcome import Edit, Preview
from tune_a_video_nbs.report import html_table, link_html
from tune_a_video_nbs.sprites import draw_clip
from tune_a_video_nbs.studio import Studio
from tune_a_video_nbs.studio_html import in_widget, loss_html, strip_html

ROOT = Path(__file__).resolve().parent.parent


def until(test, seconds=30):
    "Wait for a condition."
    end = time.time() + seconds
    while not test():
        assert time.time() < end, "never happened"
        time.sleep(0.005)


# Without a browser.


@pytest.fixture
def app(tmp_path):
    "The app, with the sample's frames read."
    app = Studio(tmp_path)
    until(lambda: app.thumbnails.value)
    return app


def test_spaces_around_what_was_typed_do_not_count(app):
    app.boxes["base"].value = " sprites "
    app.boxes["steps"].value = " 3"
    assert app.session.choices.base == "sprites"
    assert app.session.choices.steps == "3"


def test_what_is_wrong_stands_beside_its_field(app):
    note, box = app.notes["frames"], app.boxes["frames"]
    box.value = "99"
    until(lambda: app.session.problems and "99 were asked" in note.value)
    assert note.layout.display is None
    assert "tav-bad" in box._dom_classes
    box.value = "4"
    until(lambda: app.session.thumbnails is not None and not app.session.problems)
    until(lambda: note.layout.display == "none")
    assert "tav-bad" not in box._dom_classes
    assert app.session.choices.frames == "4"


def test_markup_typed_in_is_text(app):
    app.boxes["frames"].value = "<b>"
    until(lambda: "&lt;b&gt;" in app.notes["frames"].value)


def test_an_upload_is_kept_and_chosen(app, tmp_path):
    app.uploaded({"new": ({"name": "my.mp4", "content": memoryview(b"film")},)})
    assert app.session.choices.clip == str(tmp_path / "clips" / "my.mp4")
    assert (tmp_path / "clips" / "my.mp4").read_bytes() == b"film"
    app.uploaded({"new": ()})  # the widget was emptied: nothing to do
    assert app.session.choices.clip == str(tmp_path / "clips" / "my.mp4")


def test_buttons_start_and_stop_jobs(app, monkeypatch):
    pressed = []
    monkeypatch.setattr(app.session, "press", pressed.append)
    app.bars["tune"].start.click()
    app.bars["edit"].start.click()
    assert pressed == ["tune", "edit"]
    app.bars["tune"].stop.click()
    assert app.session.stopping.is_set()


def test_fields_rest_while_a_job_is_at_work(app):
    app.session.busy, app.session.job = True, "tune"
    app.session.set_status("Learning <the> clip", 0.5)
    assert app.boxes["steps"].disabled
    assert app.upload.disabled
    tune, edit = app.bars["tune"], app.bars["edit"]
    assert [tune.start.disabled, tune.stop.disabled] == [True, False]
    assert [edit.start.disabled, edit.stop.disabled] == [True, True]
    assert tune.progress.value == 0.5
    assert tune.status.value == "Learning &lt;the&gt; clip"
    assert edit.status.value == ""


def test_a_job_that_fails_shows_its_traceback_folded(app, caplog):
    "B26: it was thrown away."

    def burn(choices):
        raise RuntimeError("the disk is on <fire>")

    app.session.edit = burn
    app.session.press("edit").join()
    shown = app.bars["edit"].status.value
    assert shown.startswith("That went wrong: RuntimeError: the disk is on &lt;fire&gt;<details>")
    assert "in burn" in shown
    assert "<fire>" not in shown
    assert "in burn" in caplog.text


def test_a_screen_that_fails_does_not_lock_the_app(app):
    "B10, through the buttons."
    show = app.session.on_change

    def closed(part):
        raise RuntimeError("the widget is closed")

    app.session.on_change = closed
    with pytest.raises(RuntimeError, match="closed"):
        app.session.press("edit")
    app.session.on_change = show
    app.session.press("edit").join()
    assert "press Tune first" in app.notes["prompts"].value
    assert not app.bars["edit"].start.disabled


def test_previews_edits_and_their_files_are_shown(app, tmp_path):
    session = app.session
    session.clip = draw_clip(Choices().caption, 2)
    session.preview = Preview(20, "a <blue> star", session.clip)
    session.changed("preview")
    assert "after 20 steps: a &lt;blue&gt; star" in app.preview.value
    file = write_clip(tmp_path / "edit-01.mp4", session.clip)
    session.edits = [Edit("a <blue> star", session.clip, file, {"kept": "100%"})]
    session.changed("edits")
    assert app.results.value.count("<video") == 2
    assert "a &lt;blue&gt; star" in app.results.value
    assert 'download="edit-01.mp4"' in app.results.value
    session.clear(None)
    assert app.preview.value == app.results.value == app.losses.value == ""


# Strings of HTML.


def test_a_link_holds_its_file_unless_it_is_large(tmp_path):
    film = tmp_path / "<x>.mp4"
    film.write_bytes(b"film")
    held = link_html(film, "mp4")
    assert base64.b64decode(held.split("base64,")[1].split('"')[0]) == b"film"
    assert "<x>" not in held
    named = link_html(film, "mp4", most=3)
    assert "base64" not in named
    assert "&lt;x&gt;" in named
    assert held in html_table([{"edit": "a star", "file": held}])


def test_players_in_a_widget_carry_their_script():
    inside = in_widget('<video></video><script>go("a & b")</script>')
    assert "<script>" not in inside
    assert 'onload="go(&quot;a &amp; b&quot;)"' in inside


def test_long_clips_stay_light():
    clip = np.random.default_rng(0).integers(0, 255, (100, 96, 96, 3), dtype=np.uint8)
    strip = strip_html(clip)  # of noise, the worst case
    assert re.search(r"1\d of the 100 frames", strip)
    assert len(strip) < 600_000
    assert 'alt="the 2 frames it will learn"' in strip_html(clip[:2])


def test_long_runs_stay_light():
    long = loss_html(list(np.linspace(0.1, 0.01, 5000)))
    assert long.count("<circle") == 200
    assert len(long) < 20_000
    assert "loss of 5000 steps" in long


def test_a_curve_needs_two_steps_and_stays_in_its_picture():
    assert loss_html([0.1]) == ""
    assert "mean of the last 2: 0.200" in loss_html([0.1, 0.3])
    for losses in ([0.1, 0.1, 0.1], [0.0, 1.0, 1e-3]):
        heights = [float(y) for y in re.findall(r'cy="([-\d.]+)"', loss_html(losses))]
        assert len(heights) == 3
        assert all(0 <= y <= 150 for y in heights)


# In a browser.

SHOTS = ROOT / "_screenshots"
CAPTION = "a purple heart is sliding in the snow"
APP = "document.querySelector('.tav-studio')"
UPLOAD = "document.querySelector('.jupyter-widgets.widget-upload')"
EDITS = "[...document.querySelectorAll('.tav-card:last-child video')]"
WIDE = """[...document.querySelectorAll('.tav-card *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.tagName != 'CODE')
  .map(e => e.className)"""
NOT_OURS = ("ERR_NAME_NOT_RESOLVED", "ERR_INTERNET", "labextensions")  # what Voilà looks for in the network
needs_browser = [
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium on PATH: apt-get install chromium"),
    pytest.mark.skipif(not chromium.has_voila(), reason="no Voilà: pip install voila"),
]


def button(name, i=0):
    "Code that gives the i-th button of this name."
    buttons = "[...document.querySelectorAll('.tav-studio button')]"
    return f"{buttons}.filter(b => b.textContent.trim() == '{name}')[{i}]"


def field(label, i=0):
    "Code that gives the field beside the i-th label that begins so."
    labels = "[...document.querySelectorAll('.tav-studio label, .tav-studio .widget-label')]"
    found = f"{labels}.filter(l => l.textContent.startsWith('{label}'))[{i}]"
    return f"{found}.parentElement.querySelector('input, textarea')"


def gap_below(label, words):
    "Code that gives how many pixels below a field the complaint with these words begins."
    notes = "[...document.querySelectorAll('.tav-note')]"
    note = f"{notes}.find(e => e.innerText.includes('{words}'))"
    return f"{note}.getBoundingClientRect().top - {field(label)}.getBoundingClientRect().bottom"


def text(tab):
    return tab.js(f"{APP}.innerText")


def wait_for(tab, words, seconds=30):
    "Wait until the app shows these words."
    tab.until(f"{APP}.innerText.includes({json.dumps(words)})", seconds)


def shot(tab, name):
    "Take a picture of the whole app, in a window that is high enough: the page scrolls inside."
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
        tab = chromium.Browser(tmp_path_factory.mktemp("profile"))
        tab.folder = folder
        try:
            tab.size(940, 1200)
            tab.go(url, seconds=60)
            tab.until("!!document.querySelector('.tav-strip')", 30)
            yield tab
        finally:
            tab.close()


class TestBrowser:
    "One visit, step by step: each test goes on where the one before left the app."

    pytestmark = needs_browser

    def test_opens_with_the_sample(self, tab):
        assert "the 8 frames it will learn" in text(tab)
        assert tab.js(f"{field('What it shows')}.value") == Choices().caption
        assert tab.js(f"{button('Stop')}.disabled")
        assert not tab.js(f"{button('Tune')}.disabled")
        shot(tab, "1-start")

    def test_a_wrong_number_is_said_beside_its_field(self, tab):
        tab.fill(field("Frames"), "99")
        wait_for(tab, "99 were asked")
        tab.fill(field("Frames"), "4")
        tab.until("!document.querySelector('.tav-note')")

    def test_what_is_refused_does_not_begin(self, tab):
        tab.fill(field("Steps"), "-5")
        tab.fill(field("What it shows"), "a red dragon is bouncing on the grass")
        tab.fill(field("Side"), "50")
        tab.click(button("Tune"))
        wait_for(tab, "Not begun")
        assert "'-5': give a whole number from 1" in text(tab)
        tab.fill(field("Steps"), "2")
        tab.until("!document.querySelector('.tav-note')")  # its line goes, and what is below moves up
        tab.click(button("Tune"))
        wait_for(tab, "does not know 'dragon'")
        wait_for(tab, "50 is no multiple of 8")
        wait_for(tab, "Not begun")
        tab.until("document.querySelectorAll('.tav-bad').length == 2")
        assert 0 <= tab.js(gap_below("What it shows", "dragon")) < 20
        assert "step 1" not in text(tab)
        assert not (tab.folder / "studio").exists()
        shot(tab, "2-refused")

    def test_upload(self, tab):
        tab.choose(UPLOAD, tab.folder / "notes.mp4")
        wait_for(tab, "notes.mp4")
        tab.until("!!document.querySelector('.tav-note')")
        tab.choose(UPLOAD, tab.folder / "mine.mp4")
        tab.until(f"{field('Clip')}.value.endsWith('mine.mp4')")
        tab.fill(field("Side"), "")
        tab.fill(field("What it shows"), CAPTION)
        tab.until("!document.querySelector('.tav-note') && !!document.querySelector('.tav-strip')")
        kept = tab.folder / "studio" / "clips" / "mine.mp4"
        assert kept.read_bytes() == (tab.folder / "mine.mp4").read_bytes()
        shot(tab, "3-uploaded")

    def test_stop_comes_through_and_keeps_what_was_learned(self, tab):
        tab.fill(field("Steps"), "900")
        tab.fill(field("Preview every"), "3")
        tab.fill(field("Edits"), "a green heart is sliding in the snow\na purple ring is sliding in the snow")
        tab.fill(field("Steps", 1), "3")
        tab.click(button("Tune"))
        wait_for(tab, "after 3 steps")
        tab.until("[...document.querySelectorAll('.tav-clips video')].every(v => v.currentTime > 0)")
        assert not tab.js(f"{button('Stop')}.disabled")
        assert tab.js(f"{button('Tune')}.disabled")
        assert tab.js(f"{field('Steps')}.disabled")
        assert tab.js("document.querySelectorAll('.tav-loss circle').length") >= 3
        shot(tab, "4-tuning")
        tab.click(button("Stop"))
        wait_for(tab, "What was learned is kept")
        done = int(re.search(r"Stopped after (\d+) of 900", text(tab))[1])
        assert 3 <= done < 900
        tab.js("document.querySelector('.tav-card:last-child details').open = true")
        assert f"steps={done}," in tab.js("document.querySelector('.tav-studio pre').textContent")
        shot(tab, "5-stopped")

    def test_edits_play_beside_the_source_in_step(self, tab):
        tab.click(button("Edit"))
        wait_for(tab, "Drew 2.", 60)
        assert "off its path" in text(tab)
        assert "a purple ring" in text(tab)
        tab.until(f"{EDITS}.length == 3 && {EDITS}.every(v => v.currentTime > 0)")
        times = f"{EDITS}.map(v => v.currentTime)"
        for _ in range(2):  # in step, and later, at another moment, in step again
            before = json.dumps(tab.js(times))
            tab.until(f"JSON.stringify({times}) != '{before}'")
            tab.until(f"Math.max(...{times}) - Math.min(...{times}) < 0.15")

    def test_the_pause_button_has_its_script_too(self, tab):
        tab.click("document.querySelector('.tav-card:last-child .tav-clips button')")
        tab.until(f"{EDITS}.every(v => v.paused)")
        shot(tab, "6-edited")

    def test_downloads_are_real(self, tab):
        links = "[...document.querySelectorAll('.tav-studio a[download]')].map(a => [a.download, a.href])"
        files = {name: base64.b64decode(link.split("base64,")[1]) for name, link in tab.js(links)}
        assert set(files) == {"tuned.safetensors", "edit-01.mp4", "edit-02.mp4"}
        weights = files["tuned.safetensors"]
        size = struct.unpack("<Q", weights[:8])[0]  # safetensors: a length, that much JSON, tensors
        header = json.loads(weights[8 : 8 + size])
        assert header.pop("__metadata__")["caption"] == CAPTION
        assert any("attn_temp" in name for name in header)
        assert max(entry["data_offsets"][1] for entry in header.values()) == len(weights) - 8 - size
        (tab.folder / "got.mp4").write_bytes(files["edit-02.mp4"])
        assert read_clip(tab.folder / "got.mp4", None).shape == (4, 64, 64, 3)

    def test_a_choice_that_no_longer_fits_what_was_learned(self, tab):
        tab.fill(field("What it shows"), "a red star is bouncing on the grass")
        tab.click(button("Edit"))
        wait_for(tab, f"was {CAPTION!r} when the clip was learned")
        tab.fill(field("What it shows"), CAPTION)

    def test_no_error_was_printed(self, tab):
        ours = [error for error in tab.errors if not any(part in error for part in NOT_OURS)]
        assert not ours

    def test_narrow(self, tab):
        tab.size(390, 844)
        tab.pause(0.3)
        wide = tab.js(WIDE)
        shot(tab, "7-narrow")
        tab.size(940, 1200)
        assert not wide
