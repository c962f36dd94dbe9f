"""Write `nbs/images/studio-*.png`, the stills of chapter 62: the app in a real browser, clicked through, state by state.

    python web/make_stills.py

Needs Chromium and Voilà, as `tests/test_studio.py` does. Then run the chapter again (`tests/run_notebooks.py nbs/62_studio.ipynb`), which keeps them in its outputs."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import browser

OUT, WIDTH, COLOURS = ROOT / "nbs/images", 900, 96
APP = "document.querySelector('.tav-studio')"


def card(i):
    return f"document.querySelectorAll('.tav-card')[{i}]"


def button(name, i=0):
    return f"[...document.querySelectorAll('.tav-studio button')].filter(b => b.textContent.trim() == '{name}')[{i}]"


def field(label, i=0):
    return f"[...document.querySelectorAll('.tav-studio .widget-label')].filter(l => l.textContent.startsWith('{label}'))[{i}].parentElement.querySelector('input, textarea')"


def still(tab, name: str, element: str = APP):
    "One state: the window as high as the app, few colours."
    tab.size(WIDTH + 40, int(tab.js(f"{APP}.offsetHeight")) + 300)
    tab.js(f"{APP}.scrollIntoView(); document.activeElement.blur()")
    tab.pause(0.6)
    path = OUT / f"studio-{name}.png"
    tab.picture(path, element=element)
    Image.open(path).convert("RGB").quantize(
        COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    ).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def shows(tab, words: str, seconds: float = 60):
    tab.until(f"{APP}.innerText.includes({words!r})", seconds)


def visit(tab):
    "From the first look to the code that does it all again."
    calm = "!document.querySelector('.tav-note')"  # when a red line goes, what is below it moves
    still(tab, "start")
    tab.fill(field("What it shows"), "a red dragon is bouncing on the grass")
    tab.fill(field("Side"), "50")
    tab.click(button("Tune"))
    shows(tab, "dragon")
    shows(tab, "Not begun")  # the words, once a model is there to read them
    tab.fill(field("Steps"), "-5")
    tab.click(button("Tune"))
    shows(tab, "'-5'")
    shows(tab, "Not begun")
    still(tab, "refused")
    tab.fill(field("What it shows"), "a red star is bouncing on the grass")
    tab.fill(field("Side"), "")
    tab.fill(field("Steps"), "")
    tab.until(calm)
    tab.click(button("Tune"))
    shows(tab, "after 20 steps")
    still(tab, "tuning", card(1))
    shows(tab, "after 40 steps")
    tab.click(button("Stop"))
    shows(tab, "Stopped after")
    still(tab, "stopped", card(1))
    tab.click(button("Edit"))
    shows(tab, "Drew 3.")
    tab.pause(0.5)
    still(tab, "edited")
    tab.js("document.querySelector('details').open = true")
    still(tab, "code", "document.querySelector('details')")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with browser.voila(folder, "from tune_a_video_nbs.studio import Studio\nStudio()") as url:
            tab = browser.Browser(folder / "profile")
            try:
                tab.size(WIDTH + 40, 1200)
                tab.go(url, seconds=60)
                tab.until("!!document.querySelector('.tav-strip')", 30)
                visit(tab)
            finally:
                tab.close()
