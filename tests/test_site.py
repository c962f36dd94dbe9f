"""The rendered site in a real browser: pages at two widths in two themes, players, slider, search, links.

Needs `_docs/` (`make docs`, which needs Quarto) and Chromium, and is skipped where either is missing. With
SCREENSHOTS=1 pictures go to _screenshots/."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import browser as chromium
import pytest
from check_docs import CHAPTERS
from make_api import modules
from make_markdown import docs_path

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(os.environ.get("SITE", ROOT / "_docs"))
SHOTS = ROOT / "_screenshots" if os.environ.get("SCREENSHOTS") else None
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if "site_libs" not in path.parts)
SIZES = [(1440, 900), (390, 844)]  # a laptop's and a telephone's
pytestmark = [
    pytest.mark.skipif(not PAGES, reason="no rendered site in _docs/: make docs, where Quarto is installed"),
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium on PATH: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def server():
    s = chromium.serve(SITE)
    yield s
    s.shutdown()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    b = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield b
    b.close()


def set_theme(tab, dark: bool):
    "Choose a theme; the page keeps the choice."
    tab.js(f"localStorage.setItem('quarto-color-scheme', '{'alternate' if dark else 'default'}')")


# Text that stands out too little: WCAG's AA wants 4.5 to 1, and 3 for large letters.
FAINT = """(() => {
  const linear = v => (v /= 255) <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4;
  const luminance = c => .2126*linear(c[0]) + .7152*linear(c[1]) + .0722*linear(c[2]);
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const over = (a, b) => a.length < 4 ? a : [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3]));

  // The colour behind an element: its own background over those of its parents, down to one that is opaque.
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const layer = parse(getComputedStyle(e).backgroundColor);
      layers.unshift(layer);
      if (layer.length < 4 || layer[3] == 1) break;
    }
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const opacity = element => {
    let product = 1;
    for (let e = element; e; e = e.parentElement) product *= getComputedStyle(e).opacity;
    return product;
  };

  const found = new Map();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const words = walk.currentNode.data.trim();
    const e = walk.currentNode.parentElement;
    if (!words || e.closest("script, style, svg, video, math")) continue;
    if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = getComputedStyle(e);
    const paper = behind(e);
    const ink = over([...over(parse(style.color), paper), opacity(e)], paper);
    const [light, dark] = [luminance(ink), luminance(paper)].sort((a, b) => b - a);
    const ratio = (light + .05)/(dark + .05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5) - .01) {
      const what = `${e.tagName}.${e.className}: ${ratio.toFixed(2)} on ${paper.map(Math.round)}`;
      found.set(what, words.slice(0, 40));
    }
  }
  return [...found].map(x => x.join("  "));
})()"""

# What is wider than the window, unless something around it scrolls or cuts.
WIDE = """[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  if (box.right <= innerWidth + 1 || !box.width || !e.checkVisibility()) return false;
  for (let p = e.parentElement; p && p != document.body; p = p.parentElement)
    if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(p).overflowX)) return false;
  return true;
}).slice(0, 5).map(e => e.tagName + "." + e.className + " " + e.textContent.trim().slice(0, 40))"""

BAD_PICTURES = """[...document.images].filter(i => !i.alt || !i.complete || !i.naturalWidth)
  .map(i => i.src.slice(0, 90))"""
UNNAMED_PLAYERS = "[...document.querySelectorAll('video')].filter(v => !v.getAttribute('aria-label')).length"


@pytest.mark.parametrize("name", PAGES)
def test_page(tab, server, name):
    "No error, nothing from elsewhere, not heavy; pictures are there and described, and no mark is left over."
    tab.size(*SIZES[0])
    tab.go(f"{server.url}/{name}")
    set_theme(tab, dark=False)
    tab.go(f"{server.url}/{name}")
    assert tab.errors == []
    assert [url for url in tab.requests.values() if not url.startswith(server.url)] == []
    assert tab.weight < 3_000_000, f"{tab.weight / 1e6:.1f} MB"
    assert tab.js("document.title.length") > 3
    if name == "index.html":
        return  # sends on to nbs/index.html
    assert tab.js("document.querySelectorAll('h1').length") == 1
    assert tab.js(BAD_PICTURES) == []
    assert tab.js(UNNAMED_PLAYERS) == 0
    text = tab.js("document.body.innerText")
    assert ":::" not in text
    assert "#|" not in text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["laptop", "telephone"])
@pytest.mark.parametrize("name", [name for name in PAGES if name != "index.html"])
def test_page_can_be_read(tab, server, name, size, dark):
    "Text stands out, and nothing is wider than the page."
    tab.size(*size)
    tab.go(f"{server.url}/{name}", wait=0)
    set_theme(tab, dark)
    tab.go(f"{server.url}/{name}", wait=0.2)
    try:
        if SHOTS:
            page = name.removesuffix(".html").replace("/", "-")
            tab.picture(SHOTS / f"{page}-{'dark' if dark else 'light'}-{size[0]}.png")
        assert tab.js("document.body.classList.contains('quarto-dark')") is dark
        assert tab.js(FAINT) == []
        width = tab.js("document.scrollingElement.scrollWidth")
        assert width <= size[0], tab.js(WIDE)
    finally:
        set_theme(tab, dark=False)
        tab.size(*SIZES[0])


class Anchors(HTMLParser):
    "The ids of a page, and where its links lead."

    def __init__(self, text):
        super().__init__()
        self.ids = set()
        self.links = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        self.links += [values[key] for key in ("href", "src") if values.get(key)]


def link_problem(name, link, pages):
    "What is wrong with a link of a page: its file, or the spot in it, is not there."
    if urlparse(link).scheme or link.startswith("//"):
        return None
    url = urlparse(urljoin("http://x/" + name, link))
    target = unquote(url.path).lstrip("/").removeprefix("tune_a_video_nbs/")
    if target == "" or target.endswith("/"):
        target += "index.html"
    if not (SITE / target).is_file():
        return f"{name}: {link}"
    if url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
        return f"{name}: {link} (no such spot)"
    return None


def test_no_link_is_broken():
    "Every address on this site, and the spot in its page, exists."
    pages = {name: Anchors((SITE / name).read_text(encoding="utf-8")) for name in PAGES}
    problems = {link_problem(name, link, pages) for name, page in pages.items() for link in page.links}
    assert sorted(problems - {None}) == []


@pytest.mark.parametrize("module", modules())
def test_docstrings_lead_to_the_site(module):
    "A module's docstring ends with an address of its documentation; it is there."
    path = docs_path(module)
    assert path is None or (SITE / path).is_file(), path


PLAYERS = "[...document.querySelectorAll('.tav-clips video')]"
BUTTON = "document.querySelector('.tav-clips button')"


def test_clips_play_in_step_and_pause(tab, server):
    "All move, none is more than a frame (1/8 s) and a bit ahead; paused, they stand still."
    tab.go(f"{server.url}/nbs/index.html", wait=1)
    times = f"{PLAYERS}.map(v => v.currentTime)"
    tab.until(f"{PLAYERS}.length == 4 && {PLAYERS}.every(v => v.currentTime > 0)")
    before = tab.js(times)
    tab.until(f"{PLAYERS}.some(v => v.currentTime != {before[0]})")
    now = tab.js(times)
    assert max(now) - min(now) < 0.2
    tab.js(f"{BUTTON}.click()")
    tab.until(f"{PLAYERS}.every(v => v.paused)")
    assert "play" in tab.js(f"{BUTTON}.textContent")


SLIDER = "document.querySelector('input[type=range]')"
SHOWN = f"[...{SLIDER}.closest('figure').querySelectorAll('img:not([hidden])')].map(i => i.src)"


def page_with_a_slider():
    for name in PAGES:
        if 'type="range"' in (SITE / name).read_text(encoding="utf-8"):
            return name
    pytest.fail("no page has a slider")


def test_slider_moves_without_a_kernel(tab, server):
    "By keyboard: an arrow brings another picture."
    tab.go(f"{server.url}/{page_with_a_slider()}")
    tab.js(f"{SLIDER}.scrollIntoView()")
    tab.js(f"{SLIDER}.focus()")
    before = tab.js(SHOWN)
    value = tab.js(f"{SLIDER}.value")
    assert len(before) == 1
    if value == tab.js(f"{SLIDER}.max"):
        tab.key("ArrowLeft", 37)
    else:
        tab.key("ArrowRight", 39)
    tab.until(f"{SLIDER}.value != '{value}'")
    after = tab.js(SHOWN)
    assert len(after) == 1
    assert after != before


def test_search_finds_a_chapter(tab, server):
    tab.go(f"{server.url}/nbs/index.html")
    tab.js("document.querySelector('#quarto-search button').click()")
    tab.until("document.querySelector('.aa-Input')")
    tab.js("document.querySelector('.aa-Input').focus()")
    tab.type("inversion")
    tab.until("document.querySelectorAll('.aa-Item a').length > 0")
    found = tab.js("[...document.querySelectorAll('.aa-Item a')].map(a => a.href)")
    assert any(re.search("03_ddim|17_edit", f) for f in found), found
    tab.js("document.querySelector('.aa-Item a').click()")
    tab.until("!location.href.endsWith('nbs/index.html')")
    assert not tab.errors


def test_theme_toggle_is_kept(tab, server):
    tab.go(f"{server.url}/nbs/index.html")
    set_theme(tab, dark=False)
    tab.go(f"{server.url}/nbs/index.html")

    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.js(background)
    tab.js("document.querySelector('.quarto-color-scheme-toggle').click()")
    tab.until(f"{background} != '{light}'")
    tab.pause(0.3)  # it fades
    dark = tab.js(background)
    tab.go(f"{server.url}/web/glossary.html")
    assert tab.js(background) == dark
    set_theme(tab, dark=False)


def test_next_leads_through_the_book(tab, server):
    "From the front page, page by page, to the last chapter."
    seen = []
    address = f"{server.url}/nbs/index.html"
    for _ in range(len(CHAPTERS)):
        tab.go(address, wait=0)
        address = tab.js("document.querySelector('.nav-page-next a').href")
        seen.append(Path(urlparse(address).path).stem)
    assert seen == [p.stem for p in CHAPTERS]
