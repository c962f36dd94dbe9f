"The slider in a real browser: it moves, says where it is, and leaves its neighbour alone. Skipped where there is no Chromium."

import re
import shutil
import subprocess

import numpy as np
import pytest

from tune_a_video_nbs.report import page_html
from tune_a_video_nbs.show import slider_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --dump-dom"
).split()
MOVE = """<script>const to=(i,v)=>{const s=document.querySelectorAll("input")[i];s.value=v;s.dispatchEvent(new Event("input"))};%s</script></html>"""


def sliders_after(moves, tmp_path):
    "What two sliders show once `moves` ran in the browser: for each its picture, alt text, spoken value and label."
    grey = [np.full((8, 8, 3), v, np.uint8) for v in (0, 100, 200)]
    page = page_html(
        "Two",
        [
            ("a", slider_html(grey, labels=["dark", "a < b", 'a "c"'], name="grey")),
            ("b", slider_html(grey, start=1)),
        ],
    )
    file = tmp_path / "page.html"
    file.write_text(page.replace("</html>", MOVE % moves), encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}/user", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return re.findall(
        r'<img src="([^"]+)".*? alt="([^"]*)".*?aria-valuetext="([^"]*)".*?<b>(.*?)</b>', done.stdout, re.S
    ), [slider_html([g]) for g in grey]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize(
    "moves,first,second",
    [
        ("", 0, 1),
        ("to(0,1)", 1, 1),
        ("to(0,2);to(0,1);to(1,0)", 1, 0),
        ("to(1,2)", 0, 2),
        ("to(1,0);to(1,1)", 0, 1),
    ],
)
def test_slider_moves(moves, first, second, tmp_path):
    (one, two), alone = sliders_after(moves, tmp_path)
    label = ["dark", "a &lt; b", "a &quot;c&quot;"][first]
    assert one[0] in alone[first] and two[0] in alone[second]
    assert one[3].replace('"', "&quot;") == label and two[1:] == (
        f"picture: {second}",
        str(second),
        str(second),
    )
    assert one[1].replace("<", "&lt;") == f"grey: {label}" and one[2].replace("<", "&lt;") == label
