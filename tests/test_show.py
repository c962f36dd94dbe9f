"What `show` draws for a browser: pictures as addresses, rows of frames, players, and the slider in Chromium."

import base64
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.report import page_html
from tune_a_video_nbs.show import clips_html, data_uri, frames_in_a_row, show_images, slider_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, BROWSERS) if path), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--dump-dom",
]
MOVE = """<script>
const to = (i, value) => {
  const slider = document.querySelectorAll("input")[i];
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
};
%s
</script></html>"""
LABELS = ["dark", "a < b", 'a "c"']


def grey_pictures():
    return [np.full((8, 8, 3), level, np.uint8) for level in (0, 100, 200)]


def sliders_after(moves, folder):
    "What two sliders show once `moves` ran in the browser: pictures in view, spoken value and label of each."
    first = slider_html(grey_pictures(), labels=LABELS, name="grey")
    second = slider_html(grey_pictures(), start=1)
    file = folder / "page.html"
    page = page_html("Two", [("a", first), ("b", second)])
    file.write_text(page.replace("</html>", MOVE % moves), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}/user", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return [state(figure) for figure in done.stdout.split("<figure")[1:]]


def state(figure):
    pictures = re.findall(r'<img src="([^"]+)" alt="([^"]*)"[^>]*?>', figure)
    hidden = [" hidden" in tag for tag in re.findall(r"<img[^>]*>", figure)]
    in_view = [picture for picture, is_hidden in zip(pictures, hidden) if not is_hidden]
    spoken = re.search(r'aria-valuetext="([^"]*)"', figure)[1]
    label = re.search(r"<b>(.*?)</b>", figure)[1]
    return in_view, spoken, label


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(
    "moves, first, second",
    [
        ("", 0, 1),
        ("to(0, 1)", 1, 1),
        ("to(0, 2); to(0, 1); to(1, 0)", 1, 0),
        ("to(1, 2)", 0, 2),
        ("to(1, 0); to(1, 1)", 0, 1),
    ],
)
def test_slider_moves(moves, first, second, tmp_path):
    "It shows one picture, says which, and leaves its neighbour alone."
    one, two = sliders_after(moves, tmp_path)
    spoken = LABELS[first].replace("<", "&lt;").replace('"', "&quot;")  # as Chromium writes an attribute
    written = LABELS[first].replace("<", "&lt;")  # as it writes text
    pictures = [data_uri(picture) for picture in grey_pictures()]
    assert one == ([(pictures[first], f"grey: {spoken}")], spoken, written)
    assert two == ([(pictures[second], f"picture: {second}")], str(second), str(second))


def test_without_scripts_one_picture_shows():
    tags = re.findall(r"<img[^>]*>", slider_html(grey_pictures(), start=2))
    assert [tag.endswith("hidden>") for tag in tags] == [True, True, False]


def test_what_is_typed_stays_text():
    typed = "<script>alert(1)</script>\" onload='x'"
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    slider = slider_html({typed: clip[0]}, name=typed)
    players = clips_html({typed: clip})
    assert "<script>alert" not in slider + players
    assert " onload='x'" not in slider + players  # no quote of it can end an attribute


@pytest.mark.parametrize("side, kind", [(16, "png"), (200, "jpeg")])
def test_data_uri_holds_the_picture(side, kind):
    "A small picture exactly; a large one of many colours as JPEG, which is shorter."
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (side, side, 3), np.uint8)
    head, data = data_uri(picture).split(",")
    assert head == f"data:image/{kind};base64"
    read = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
    assert read.shape == picture.shape
    if kind == "png":
        assert (read == picture).all()


def test_frames_in_a_row():
    clip = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 4, 64, 3), np.uint8)
    row = frames_in_a_row(clip)
    assert row.shape == (4, 3 * 64 + 2 * 2, 3)
    assert row[0, [0, 63, 64, 65, 66], 0].tolist() == [0, 0, 255, 255, 1]
    assert (frames_in_a_row(clip[1]) == clip[1]).all()
    with pytest.raises(InputError, match="got shape"):
        frames_in_a_row(clip[None])


def test_nothing_to_show_is_said():
    with pytest.raises(InputError, match="no pictures"):
        show_images([])
    with pytest.raises(InputError, match="no clips"):
        clips_html({})


def test_players_end_with_their_script():
    "The studio relies on it: its widgets run no script, so it takes this one out and runs it otherwise."
    page = clips_html([np.zeros((2, 8, 8, 3), np.uint8)])
    assert page.endswith("</script>")
    assert page.count("<script>") == 1


IMPORT = """
import sys
import matplotlib
before = dict(matplotlib.rcParams)
import tune_a_video_nbs.show
assert dict(matplotlib.rcParams) == before
mediapy = sys.modules.get("mediapy")
assert mediapy is None or mediapy._config.ffmpeg_name_or_path == "ffmpeg"
"""


def test_importing_changes_no_other_library():
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", IMPORT], check=True, cwd=root)
