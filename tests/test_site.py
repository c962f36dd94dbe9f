"""The rendered site in a real browser: every page at both widths and in both themes, the players, the slider, the search, the links.

Needs `_docs/` (`make docs`, which needs Quarto) and Chromium; skips where either lacks. With SCREENSHOTS=1 pictures go to _screenshots/."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import browser as chromium
import pytest
from check_docs import CHAPTERS

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(os.environ.get("SITE", ROOT / "_docs"))
PAGES = sorted(str(p.relative_to(SITE)) for p in SITE.rglob("*.html") if "site_libs" not in p.parts)
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


def theme(tab, dark: bool):
    "Which of the two themes shows; the page keeps the choice."
    tab.js(f"localStorage.setItem('quarto-color-scheme', '{'alternate' if dark else 'default'}')")


# Text that stands out too little: WCAG's AA wants 4.5 to 1, and 3 for large letters. Pictures and hidden text do not count.
FAINT = """(() => { const lin = v => (v /= 255) <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4, lum = c => .2126*lin(c[0]) + .7152*lin(c[1]) + .0722*lin(c[2]);
const rgb = s => s.match(/[\\d.]+/g).map(Number), over = (a, b) => a.length < 4 ? a : [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3]));
const back = e => { for (let stack = []; e; e = e.parentElement) { stack.push(rgb(getComputedStyle(e).backgroundColor));
  if (stack.at(-1).length < 4 || stack.at(-1)[3] == 1 || !e.parentElement) { let b = [255, 255, 255]; for (const s of stack.reverse()) b = over(s, b); return b } } };
const seen = new Map(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) { const e = walk.currentNode.parentElement; if (!walk.currentNode.data.trim() || !e.checkVisibility({opacityProperty: true, visibilityProperty: true}) || e.closest("script,style,svg,video,math")) continue;
  const s = getComputedStyle(e); let o = 1; for (let p = e; p; p = p.parentElement) o *= getComputedStyle(p).opacity;
  const b = back(e), ink = over([...over(rgb(s.color), b), o], b), [hi, lo] = [lum(ink), lum(b)].sort((x, y) => y - x), ratio = (hi + .05)/(lo + .05);
  const large = parseFloat(s.fontSize) >= 24 || parseFloat(s.fontSize) >= 18.66 && s.fontWeight >= 700;
  if (ratio < (large ? 3 : 4.5) - .01) seen.set(`${e.tagName.toLowerCase()}.${e.className}: ${ratio.toFixed(2)} ${s.color} on ${b.map(Math.round)}`, walk.currentNode.data.trim().slice(0, 40)) }
return [...seen].map(x => x.join("  ")) })()"""
WIDE = """[...document.querySelectorAll("body *")].filter(e => { const r = e.getBoundingClientRect(); if (r.right <= innerWidth + 1 || !r.width || !e.checkVisibility()) return false;
for (let p = e.parentElement; p && p != document.body; p = p.parentElement) if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(p).overflowX)) return false; return true })
.slice(0, 5).map(e => e.tagName + "." + e.className + " " + e.textContent.trim().slice(0, 40))"""


@pytest.mark.parametrize("name", PAGES)
def test_page(tab, server, name):
    "At a laptop's width: no error, nothing from elsewhere, light enough, pictures there and described. In both themes, and at a telephone's width: readable, nothing wider than the page."
    shots = ROOT / "_screenshots" if os.environ.get("SCREENSHOTS") else None
    tab.size(1440, 900)
    tab.go(f"{server.url}/{name}")
    theme(tab, False)
    tab.go(f"{server.url}/{name}")
    assert not tab.errors, tab.errors
    assert not [u for u in tab.requests.values() if not u.startswith(server.url)], "asks another server"
    assert tab.weight < 3_000_000, f"{tab.weight / 1e6:.1f} MB"
    assert tab.js("document.title.length") > 3
    if name == "index.html":
        return  # sends on to nbs/index.html
    assert tab.js("document.querySelectorAll('h1').length") == 1
    assert (
        tab.js(
            "[...document.images].filter(i => !i.alt || !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 90))"
        )
        == []
    )
    assert (
        tab.js(
            "[...document.querySelectorAll('video')].filter(v => !v.ariaLabel && !v.getAttribute('aria-label')).length"
        )
        == 0
    )
    assert ":::" not in tab.js("document.body.innerText") and "#|" not in tab.js("document.body.innerText")
    for dark in (False, True):
        for width, height in ((1440, 900), (390, 844)):
            tab.size(width, height)
            theme(tab, dark)
            tab.go(f"{server.url}/{name}", wait=0.2)
            where = f"{'dark' if dark else 'light'}, {width} pixels wide"
            if shots:
                tab.picture(
                    shots
                    / f"{name.removesuffix('.html').replace('/', '-')}-{'dark' if dark else 'light'}-{width}.png"
                )
            assert tab.js("document.body.classList.contains('quarto-dark')") is dark
            assert tab.js(FAINT) == [], f"too little contrast ({where})"
            assert tab.js("document.scrollingElement.scrollWidth") <= width, (
                f"wider than the page ({where}): {tab.js(WIDE)}"
            )
    tab.size(1440, 900)
    theme(tab, False)


class Anchors(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        self.links += [a[k] for k in ("href", "src") if a.get(k)]


def test_no_link_is_broken():
    "Every address on this site, and the spot in its page, exists."
    pages = {name: Anchors((SITE / name).read_text(encoding="utf-8")) for name in PAGES}
    broken = []
    for name, page in pages.items():
        for link in page.links:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            url = urlparse(urljoin("http://x/" + name, link))
            target = unquote(url.path).lstrip("/").removeprefix("tune_a_video_nbs/") or "index.html"
            if target.endswith("/"):
                target += "index.html"
            if not (SITE / target).is_file():
                broken.append(f"{name}: {link}")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                broken.append(f"{name}: {link} (no such spot)")
    assert not broken, "\n".join(sorted(set(broken)))


def test_docstrings_lead_to_the_site():
    "Each module's docstring ends with an address of its documentation; it is there."
    from make_api import modules
    from make_markdown import docs_path

    for module in modules():
        assert docs_path(module) is None or (SITE / docs_path(module)).is_file(), docs_path(module)


def test_clips_play_in_step_and_pause(tab, server):
    tab.go(f"{server.url}/nbs/index.html", wait=1)

    def times():
        return tab.js("[...document.querySelectorAll('.tav-clips video')].map(v => v.currentTime)")

    tab.until("[...document.querySelectorAll('.tav-clips video')].every(v => v.currentTime > 0)")
    assert len(times()) == 4
    a = times()
    tab.pause(0.35)
    b = times()
    assert a != b and max(b) - min(b) < 0.15
    tab.js("document.querySelector('.tav-clips button').click()")
    tab.pause(0.1)
    c = times()
    tab.pause(0.4)
    assert c == times() and "play" in tab.js("document.querySelector('.tav-clips button').textContent")


def test_slider_moves_without_a_kernel(tab, server):
    "By keyboard: the right arrow brings another picture."
    for name in PAGES:
        if 'type="range"' in (SITE / name).read_text(encoding="utf-8") or "type=range" in (
            SITE / name
        ).read_text(encoding="utf-8"):
            break
    else:
        pytest.fail("no page has a slider")
    tab.go(f"{server.url}/{name}")
    state = """(() => { const box = document.querySelector('input[type=range]').closest('figure, div'); return box.innerHTML.length + '|' +
        [...box.querySelectorAll('img')].map(i => i.src.slice(-80) + getComputedStyle(i).display + getComputedStyle(i).visibility + getComputedStyle(i).objectPosition).join() + getComputedStyle(box.querySelector('img, div')).backgroundPosition })()"""
    value = "document.querySelector('input[type=range]').value"
    tab.js("(e => { e.scrollIntoView(); e.focus() })(document.querySelector('input[type=range]'))")
    before = tab.js(state), tab.js(value)
    tab.key("ArrowRight", 39)
    tab.pause(0.2)
    if tab.js(value) == before[1]:
        tab.key("ArrowLeft", 37)
        tab.pause(0.2)
    assert tab.js(value) != before[1] and tab.js(state) != before[0]


def test_search_finds_a_chapter(tab, server):
    tab.go(f"{server.url}/nbs/index.html")
    tab.js("document.querySelector('#quarto-search button').click()")
    tab.until("document.querySelector('.aa-Input')")
    tab.js("document.querySelector('.aa-Input').focus()")
    tab.type("inversion")
    tab.until("document.querySelectorAll('.aa-Item a').length > 0")
    found = tab.js("[...document.querySelectorAll('.aa-Item a')].map(a => a.href)")
    assert any(re.search("03_ddim|16_edit", f) for f in found), found
    tab.js("document.querySelector('.aa-Item a').click()")
    tab.until("!location.href.endsWith('nbs/index.html')")
    assert not tab.errors


def test_theme_toggle_is_kept(tab, server):
    tab.go(f"{server.url}/nbs/index.html")
    theme(tab, False)
    tab.go(f"{server.url}/nbs/index.html")

    def back():
        return tab.js("getComputedStyle(document.body).backgroundColor")

    light = back()
    tab.js("document.querySelector('.quarto-color-scheme-toggle').click()")
    tab.pause(0.3)
    dark = back()
    tab.go(f"{server.url}/web/glossary.html")
    assert light != dark == back()
    theme(tab, False)


def test_next_leads_through_the_book(tab, server):
    "From the front page, page by page, to the last chapter."
    seen, address = [], f"{server.url}/nbs/index.html"
    for _ in range(len(CHAPTERS)):
        tab.go(address, wait=0)
        address = tab.js("document.querySelector('.nav-page-next a').href")
        seen.append(Path(urlparse(address).path).stem)
    assert seen == [p.stem for p in CHAPTERS]
