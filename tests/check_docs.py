"""What can be checked of the book and its site without Quarto: `make check-docs`. Nothing is run and torch is not imported.

Each check yields problems: a file, a cell where there is one, and what to do. `tests/test_docs.py` runs the same checks."""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "web")]
from filter import DROP, OURS, QUARTO, body, marks, source
from filter import unquoted as said
from make_api import modules
from make_badges import CHAPTERS, REPO
from make_badges import cells as badge_cells

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
LIMIT = 2_000_000  # bytes; GitHub's preview has failed at 2.6 MB
WIDGET = "application/vnd.jupyter.widget-view+json"


class Problem(NamedTuple):
    file: str
    cell: str
    what: str

    def __str__(self):
        return f"{self.file}{f', cell {self.cell}' if self.cell else ''}: {self.what}"


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def where(nb: dict, cell: dict) -> str:
    return f"{cell.get('id')} ({nb['cells'].index(cell)})"


def markdown(nb: dict) -> list[dict]:
    return [c for c in nb["cells"] if c["cell_type"] == "markdown"]


def code(nb: dict) -> list[dict]:
    return [c for c in nb["cells"] if c["cell_type"] == "code" and not set(DROP) & set(marks(source(c)))]


def datas(cell: dict) -> list[dict]:
    return [o["data"] for o in cell["outputs"] if "data" in o]


def html_of(cell: dict) -> str:
    return "".join("".join(d.get("text/html", "")) for d in datas(cell))


def pictures(cell: dict) -> int:
    return sum("image/png" in d or "image/svg+xml" in d or "image/jpeg" in d for d in datas(cell))


def prose(text: str) -> str:
    "Markdown without fenced code, inline code, comments and math: in what is left, a link is a link."
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)
    return re.sub(
        r"<!--.*?-->|\$\$.*?\$\$|`[^`\n]*`|(?<![\\$\w])\$(?! )[^$\n]+?\$",
        lambda m: "code" if m[0][0] == "`" else "",
        text,
        flags=re.S,
    )


def headings(text: str) -> list[tuple[int, str]]:
    "Level and words of each heading of a Markdown text; fenced code has none."
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)
    return [(len(m[1]), m[2].strip()) for m in re.finditer(r"^(#{1,6}) +(.*)$", text, re.M)]


def anchor(words: str) -> str:
    "The address that Quarto gives a heading: its own `{#name}`, or pandoc's rule."
    own = re.search(r"\{#([\w.-]+)", words)
    if own:
        return own[1]
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", words).lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", words).strip()))


def anchors(path: Path) -> set:
    "Everything in a page that a link may point at."
    if path.suffix != ".ipynb":
        text = path.read_text(encoding="utf-8")
        return {anchor(w) for _, w in headings(text)} | set(re.findall(r"\{#([\w.-]+)", text))
    nb = load(path)
    return (
        {anchor(w) for c in markdown(nb) for _, w in headings(source(c))}
        | {c["id"] for c in code(nb)}
        | {
            m
            for c in markdown(nb)
            for m in re.findall(r"\{#([\w.-]+)|<\w+ id=\"([\w.-]+)\"", source(c))
            for m in m
            if m
        }
    )


def links(text: str) -> list[str]:
    "Targets of the links and pictures in a Markdown text."
    text = prose(text)
    return re.findall(r"\]\(([^)\s]*)[^)]*\)", text) + re.findall(r"(?:href|src)=[\"']([^\"']*)", text)


# The checks of one notebook.


def check_title(path, nb):
    "It begins with `# Title` and `> one sentence`, and has no other title."
    first = nb["cells"][0]
    lines = source(first).splitlines()
    if first["cell_type"] != "markdown" or not re.match(r"# \S", lines[0]):
        yield Problem(path.name, where(nb, first), "the first cell is Markdown that begins with `# Title`")
        return
    if len(lines) < 2 or not re.match(r"> \S.{19}", lines[1]):
        yield Problem(
            path.name,
            where(nb, first),
            "under the title stands `> ` and one sentence: what the page is about",
        )
    titles = [(c, w) for c in markdown(nb) for level, w in headings(source(c)) if level == 1]
    for c, w in titles[1:]:
        yield Problem(path.name, where(nb, c), f"a second title, `# {w}`: use ##")


def check_headings(path, nb):
    "Levels go down one at a time; no two have one address; none is empty."
    last, seen = 1, {}
    for c in markdown(nb):
        for level, words in headings(source(c)):
            if level > last + 1:
                yield Problem(
                    path.name,
                    where(nb, c),
                    f"`{words}` has level {level} under level {last}: use {last + 1} #",
                )
            if anchor(words) in seen:
                yield Problem(
                    path.name,
                    where(nb, c),
                    f"`{words}` again: a second heading with the address #{anchor(words)}",
                )
            seen[anchor(words)], last = words, level


def check_links(path, nb):
    "Files and anchors exist; addresses of the web are whole, https, and ours are pyproject.toml's."
    for c in nb["cells"]:
        text = (
            source(c)
            if c["cell_type"] == "markdown"
            else "\n".join(v for k, v in marks(source(c)).items() if k == "fig-cap")
        )
        for problem in broken(path, links(text)):
            yield Problem(path.name, where(nb, c), problem)


def broken(path: Path, targets: list[str]):
    "What is wrong with the links of one text of one file."
    for target in targets:
        if target.startswith(("http:", "https:", "//", "mailto:", "data:")):
            url = urlparse(target)
            if url.scheme == "data":
                continue
            if url.scheme != "https":
                yield f"{target}: write https://"
            elif not re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc) or re.search(r"[\s<>\"{}|\\^`]", target):
                yield f"{target} is no address"
            elif "tune_a_video_nbs" in target and not target.startswith((REPO, colab_home(), SITE)):
                yield f"{target} is neither {REPO}, {SITE} nor {colab_home()}"
            elif (
                target.startswith(colab_home() + "/blob/main/")
                and not (ROOT / target.removeprefix(colab_home() + "/blob/main/")).is_file()
            ):
                yield f"{target}: no such notebook"
            continue
        name, _, spot = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        made = (
            file.parent == ROOT / "api"
            and file.stem in (*modules(), "index")
            or file == ROOT / "web/figures.qmd"
        )  # made when the site is
        if made:
            continue
        if not target:
            yield "an empty link"
        elif not file.is_file():
            yield f"{target}: no such file"
        elif spot and file.suffix in (".ipynb", ".qmd") and spot not in anchors(file):
            yield (
                f"{target}: {file.name} has no such anchor; it has "
                + ", ".join("#" + a for a in sorted(anchors(file)) if re.search(r"[a-z]-?[a-z]{3}", a))[:200]
            )


def colab_home():
    return (
        f"https://colab.research.google.com/{REPO.removeprefix('https://').replace('github.com', 'github')}"
    )


def pyproject(name: str) -> str:
    return re.search(rf'^{name} = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]


SITE = pyproject("Documentation")


def check_badge(path, nb):
    "A chapter's second and third cells are what tests/make_badges.py writes."
    if path in CHAPTERS and nb["cells"][1:3] != badge_cells(path):
        yield Problem(
            path.name, "1 and 2", "not the badge and setup cell of tests/make_badges.py: run `make export`"
        )


def check_outputs(path, nb):
    "It was saved after a run from the top, without an error, and whatever shows something has something to show."
    cells = code(nb)
    if not any(c["outputs"] for c in cells):
        yield Problem(path.name, "", "no saved output: make notebooks")
    for c in cells:
        if any(o["output_type"] == "error" for o in c["outputs"]):
            yield Problem(path.name, where(nb, c), "its saved output is an error")
        if any(o.get("name") == "stderr" for o in c["outputs"]):
            yield Problem(
                path.name, where(nb, c), "its saved output holds stderr: run it by tests/run_notebooks.py"
            )
        if {"fig-cap", "fig-alt"} & set(marks(source(c))) and not (pictures(c) or html_of(c)):
            yield Problem(path.name, where(nb, c), "has a caption, and no picture in its saved output")
        for d in datas(c):
            if WIDGET in d and not {"text/html", "image/png"} & set(d) and not (pictures(c) or html_of(c)):
                yield Problem(
                    path.name, where(nb, c), "a widget with no still beside it: a page has no kernel"
                )


def check_figures(path, nb):
    "Every picture, player and slider has a caption and a description, which differ; and one picture a cell, for a caption has one place."
    for c in code(nb):
        m, players = marks(source(c)), len(re.findall(r"<video|<input|<img", html_of(c)))
        if not pictures(c) and not players:
            continue
        for name, why in (
            ("fig-cap", "the conclusion, in a sentence"),
            ("fig-alt", "what is to be seen, for who cannot see it"),
        ):
            if not said(m.get(name, "")).strip():
                yield Problem(path.name, where(nb, c), f"a figure without `#| {name}:` ({why})")
        if said(m.get("fig-cap", "x")) == said(m.get("fig-alt", "y")):
            yield Problem(path.name, where(nb, c), "caption and alternative text are the same words")
        if pictures(c) > 1:
            yield Problem(
                path.name,
                where(nb, c),
                f"{pictures(c)} pictures in one cell share one caption: one picture a cell",
            )
        for tag in re.findall(r"<(?:video|img|input)\b[^>]*>", html_of(c)):
            if not re.search(r"\b(alt|aria-label)=", tag) and not (
                "<label" in html_of(c) and "<input" in tag
            ):
                yield Problem(path.name, where(nb, c), f"no alt or aria-label: {tag[:80]}")
    for c in markdown(nb):
        for _ in re.findall(r"!\[\s*\]\(", prose(source(c))):
            yield Problem(
                path.name, where(nb, c), "a picture without alternative text: ![what is to be seen](...)"
            )


def check_size(path, nb):
    if path.stat().st_size >= LIMIT:
        yield Problem(
            path.name, "", f"{path.stat().st_size / 1e6:.1f} MB; a notebook stays under {LIMIT / 1e6:.0f} MB"
        )


def check_marks(path, nb):
    "Marks are known, stand at the top of their cell, and YAML reads their values as meant."
    for c in nb["cells"]:
        if c["cell_type"] != "code":
            if re.search(r"^#\|", prose(source(c)), re.M):
                yield Problem(path.name, where(nb, c), "a `#|` line in Markdown")
            continue
        text = source(c)
        for line in body(text).splitlines():
            if re.match(r"\s*#\|", line):
                yield Problem(
                    path.name, where(nb, c), f"`{line.strip()[:60]}` below the top of its cell does nothing"
                )
        for name, value in marks(text).items():
            if name not in OURS + QUARTO:
                yield Problem(path.name, where(nb, c), f"`#| {name}` is known to neither nbdev nor Quarto")
            if name in ("fig-cap", "fig-alt") and not re.fullmatch(r'"(?:[^"\\]|\\.)*"', value):
                yield Problem(path.name, where(nb, c), f"`#| {name}:` wants its words in double quotes")
            if name in QUARTO and not value:
                yield Problem(path.name, where(nb, c), f"`#| {name}:` says nothing")


def check_foreign(path, nb):
    "No page asks another server for anything."
    for c in code(nb):
        for tag in re.findall(
            r"<(?:script|link|img|iframe|video|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>",
            html_of(c),
        ):
            yield Problem(path.name, where(nb, c), f"asks another server: {tag[:80]}")
    for c in markdown(nb):
        if c.get("id") != "colab-badge":
            for src in re.findall(r"!\[[^\]]*\]\((https?://[^)]*)\)", prose(source(c))):
                yield Problem(path.name, where(nb, c), f"a picture from another server: {src}")


def check_fences(path, nb):
    "Fences and folds that open also close, or they swallow the rest of the page."
    for c in markdown(nb):
        if len(re.findall(r"^\s*```", source(c), re.M)) % 2:
            yield Problem(path.name, where(nb, c), "a ``` that does not close")
        if prose(source(c)).count("$$") % 2:
            yield Problem(path.name, where(nb, c), "a $$ that does not close")
        opened, closed = (len(re.findall(t, prose(source(c)))) for t in (r"<details\b", r"</details>"))
        if opened != closed:
            yield Problem(path.name, where(nb, c), f"{opened} <details> and {closed} </details> in one cell")


NOTEBOOK_CHECKS = [
    check_title,
    check_headings,
    check_links,
    check_badge,
    check_outputs,
    check_figures,
    check_size,
    check_marks,
    check_foreign,
    check_fences,
]

# The checks of the whole.


def check_sidebar():
    "_quarto.yml lists every chapter once, in order, and every module's reference; it names no missing file; its addresses are pyproject.toml's."
    text = re.sub(r"\s#.*", "", (ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    sidebar = text[text.index("sidebar:") :]
    listed = re.findall(r"nbs/([0-9]\w*)\.ipynb", sidebar)
    for path in CHAPTERS:
        if listed.count(path.stem) != 1:
            yield Problem(
                "_quarto.yml",
                "",
                f"the sidebar lists nbs/{path.name} {listed.count(path.stem)} times: once, please",
            )
    if listed != sorted(listed):
        yield Problem("_quarto.yml", "", f"the sidebar's chapters are out of order: {listed}")
    for name in set(re.findall(r"(?:nbs|web|api)/[\w.]+\.\w+|\b404\.qmd", text)):
        if name.startswith("api/") and name[4:-4] in (*modules(), "index") or name == "web/figures.qmd":
            continue
        if not (ROOT / name).is_file():
            yield Problem("_quarto.yml", "", f"{name}: no such file")
    for module in modules():
        if f"api/{module}.qmd" not in sidebar:
            yield Problem("_quarto.yml", "", f"the sidebar lacks api/{module}.qmd, the reference of a module")
    for key, address in (("site-url", SITE), ("repo-url", REPO)):
        if f"{key}: {address}\n" not in text:
            yield Problem("_quarto.yml", "", f"{key} is not pyproject.toml's {address}")


def check_index():
    "The front page's table lists every chapter, under its number and title."
    text = "".join(source(c) for c in markdown(load(ROOT / "nbs/index.ipynb")))
    for path in CHAPTERS:
        line = f"[{path.stem[:2]} {headings(source(load(path)['cells'][0]))[0][1]}]({path.name})"
        if line not in text:
            yield Problem("index.ipynb", "", f"the table of chapters lacks {line}")


def check_pages():
    "Pages that are not notebooks: front matter, headings, links."
    for path in (
        ROOT / "404.qmd",
        ROOT / "web/glossary.qmd",
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
    ):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        if path.suffix == ".qmd" and not re.match(r"---\ntitle: \".+\"\nsubtitle: \".+\"\n", text):
            yield Problem(name, "", "begins with front matter: title and subtitle")
        for problem in broken(path, links(text)):
            yield Problem(name, "", problem)


def glossary() -> list[tuple[str, str, str]]:
    "Terms of the glossary: word, anchor, meaning."
    return re.findall(
        r"^\[(.+?)\]\{#([\w-]+)\}\n\n:   (.*)$", (ROOT / "web/glossary.qmd").read_text(encoding="utf-8"), re.M
    )


def check_glossary():
    "In the order of the alphabet, each term once, each with its chapter's link under the chapter's own title."
    terms = glossary()
    words = [t.lower() for t, _, _ in terms]
    for a, b in zip(words, words[1:]):
        if a >= b:
            yield Problem("web/glossary.qmd", "", f"`{b}` stands after `{a}`")
    titles = {p.name: headings(source(load(p)["cells"][0]))[0][1] for p in CHAPTERS}
    for word, _, meaning in terms:
        found = re.findall(r"\[([^\]]*)\]\(\.\./nbs/(\w+\.ipynb)\)", meaning)
        if not found:
            yield Problem("web/glossary.qmd", "", f"`{word}` links to no chapter")
        for text, name in found:
            if name in titles and text != titles[name]:
                yield Problem(
                    "web/glossary.qmd", "", f"`{word}`: the chapter's title is `{titles[name]}`, not `{text}`"
                )


def luminance(colour: str) -> float:
    "Relative luminance of #rrggbb, as WCAG 2 defines it."
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return sum(
        w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4)
        for w, p in zip((0.2126, 0.7152, 0.0722), parts)
    )


def contrast(a: str, b: str) -> float:
    hi, lo = sorted((luminance(a), luminance(b)), reverse=True)
    return (hi + 0.05) / (lo + 0.05)


def check_contrast():
    "Text of both themes stands out from what it stands on by 4.5 to 1, WCAG's AA."
    light = dict(
        re.findall(r"^\$([\w-]+): (#\w{6})", (ROOT / "web/light.scss").read_text(encoding="utf-8"), re.M)
    )
    dark = light | dict(
        re.findall(r"^\$([\w-]+): (#\w{6})", (ROOT / "web/dark.scss").read_text(encoding="utf-8"), re.M)
    )
    pairs = [
        (t, b)
        for b in ("body-bg", "code-block-bg", "tav-soft")
        for t in ("body-color", "link-color", "tav-muted")
    ]
    pairs += [
        ("text-muted", "body-bg"),
        ("code-color", "code-bg"),
        ("sidebar-fg", "sidebar-bg"),
        ("sidebar-hl", "sidebar-bg"),
        ("navbar-fg", "navbar-bg"),
        ("navbar-hl", "navbar-bg"),
        ("footer-fg", "footer-bg"),
        ("toc-color", "body-bg"),
    ]
    for name, theme in (("light", light), ("dark", dark)):
        for text, back in pairs:
            ratio = contrast(theme[text], theme[back])
            if ratio < 4.5:
                yield Problem(
                    f"web/{name}.scss", "", f"${text} on ${back} has contrast {ratio:.1f}; 4.5 is the least"
                )


WHOLE_CHECKS = [check_sidebar, check_index, check_pages, check_glossary, check_contrast]


def all_problems() -> list[Problem]:
    found = [p for path in NOTEBOOKS for check in NOTEBOOK_CHECKS for p in check(path, load(path))]
    return found + [p for check in WHOLE_CHECKS for p in check()]


if __name__ == "__main__":
    problems = all_problems()
    for p in problems:
        print(p)
    print(
        f"{len(NOTEBOOKS)} notebooks, {len(NOTEBOOK_CHECKS)} checks of each, {len(WHOLE_CHECKS)} of the whole: {len(problems)} problems"
    )
    sys.exit(bool(problems))
