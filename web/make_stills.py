"""Write `nbs/images/studio-*.png`, the stills of chapter 68: the app in a real browser, state by state.

    python web/make_stills.py

Needs Chromium and Voilà, as `tests/test_studio.py` does. Then run the chapter again
(`tests/run_notebooks.py nbs/68_studio.ipynb`), which keeps them in its outputs."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import browser  # noqa: E402

OUT = ROOT / "nbs/images"
WIDTH = 900  # of the app, in pixels
COLOURS = 96  # of a still: fewer are smaller
APP = "document.querySelector('.tav-studio')"
STUDIO = "from tune_a_video_nbs.studio import Studio\nStudio()"


def card(number: int) -> str:
    "Code that gives one card of the app."
    return f"document.querySelectorAll('.tav-card')[{number}]"


def button(name: str) -> str:
    "Code that gives the first button of this name."
    buttons = "[...document.querySelectorAll('.tav-studio button')]"
    return f"{buttons}.find(b => b.textContent.trim() == '{name}')"


def field(label: str) -> str:
    "Code that gives the field beside the first label that begins so."
    labels = "[...document.querySelectorAll('.tav-studio .widget-label')]"
    found = f"{labels}.find(l => l.textContent.startsWith('{label}'))"
    return f"{found}.parentElement.querySelector('input, textarea')"


def take_still(tab: browser.Browser, name: str, element: str = APP) -> None:
    "Save one state: the window as high as the app, few colours."
    height = int(tab.js(f"{APP}.offsetHeight"))
    tab.size(WIDTH + 40, height + 300)
    tab.js(f"{APP}.scrollIntoView(); document.activeElement.blur()")
    tab.pause(0.6)
    path = OUT / f"studio-{name}.png"
    tab.picture(path, element=element)
    picture = Image.open(path).convert("RGB")
    dithering = Image.Dither.NONE
    picture = picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=2, dither=dithering)
    picture.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def wait_for(tab: browser.Browser, words: str) -> None:
    "Wait until the app shows these words."
    tab.until(f"{APP}.innerText.includes({words!r})", 60)


def visit(tab: browser.Browser) -> None:
    "From the first look to the code that does it all again."
    take_still(tab, "start")

    tab.fill(field("What it shows"), "a red dragon is bouncing on the grass")
    tab.fill(field("Side"), "50")
    tab.click(button("Tune"))
    wait_for(tab, "dragon")
    wait_for(tab, "Not begun")  # the words, once a model is there to read them
    tab.fill(field("Steps"), "-5")
    tab.click(button("Tune"))
    wait_for(tab, "'-5'")
    wait_for(tab, "Not begun")
    take_still(tab, "refused")

    tab.fill(field("What it shows"), "a red star is bouncing on the grass")
    tab.fill(field("Side"), "")
    tab.fill(field("Steps"), "")
    tab.until("!document.querySelector('.tav-note')")  # when a red line goes, what is below it moves
    tab.click(button("Tune"))
    wait_for(tab, "after 20 steps")
    take_still(tab, "tuning", card(1))
    wait_for(tab, "after 40 steps")
    tab.click(button("Stop"))
    wait_for(tab, "Stopped after")
    take_still(tab, "stopped", card(1))

    tab.click(button("Edit"))
    wait_for(tab, "Drew 3.")
    tab.pause(0.5)
    take_still(tab, "edited")
    tab.js("document.querySelector('details').open = true")
    take_still(tab, "code", "document.querySelector('details')")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with browser.voila(folder, STUDIO) as url:
            tab = browser.Browser(folder / "profile")
            try:
                tab.size(WIDTH + 40, 1200)
                tab.go(url, seconds=60)
                tab.until("!!document.querySelector('.tav-strip')", 30)
                visit(tab)
            finally:
                tab.close()


if __name__ == "__main__":
    main()
