"""What can be checked of the book and its site without Quarto: `make check-docs`. Nothing is run or imported.

A check of a notebook yields (cell, what to do), a check of the whole (file, what to do); `tests/test_docs.py`
runs the same checks, and shows of each that it can fail."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "web")]
from filter import OURS, QUARTO, body, html_of, is_dropped, marks, source, unquoted  # noqa: E402
from make_api import modules  # noqa: E402
from make_badges import CHAPTERS, REPO  # noqa: E402
from make_badges import cells as badge_cells  # noqa: E402
from make_sidebar import with_sidebars  # noqa: E402

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
PAGES = ("404.qmd", "web/glossary.qmd", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LIMIT = 2_000_000  # bytes; GitHub's preview has failed at 2.6 MB
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/svg+xml", "image/jpeg")
COLAB = "https://colab.research.google.com/" + REPO.removeprefix("https://").replace("github.com", "github")
LEAST_CONTRAST = 4.5  # WCAG 2's AA, for text

CellProblems = Iterator[tuple[dict | None, str]]
FileProblems = Iterator[tuple[str, str]]


class Problem(NamedTuple):
    file: str
    cell: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}, cell {self.cell}" if self.cell else self.file
        return f"{place}: {self.what}"


# Reading notebooks and Markdown.


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read(name: str) -> str:
    "The text of a file of the repository."
    return (ROOT / name).read_text(encoding="utf-8")


def pyproject(name: str) -> str:
    return re.search(rf'^{name} = "(.*)"', read("pyproject.toml"), re.M)[1]


SITE = pyproject("Documentation")


def markdown(nb: dict) -> list[dict]:
    return [cell for cell in nb["cells"] if cell["cell_type"] == "markdown"]


def code(nb: dict) -> list[dict]:
    "Code cells that a page shows."
    return [cell for cell in nb["cells"] if cell["cell_type"] == "code" and not is_dropped(cell)]


def html(cell: dict) -> str:
    return "".join(html_of(output) for output in cell["outputs"])


def num_pictures(cell: dict) -> int:
    return sum(bool(set(PICTURES) & set(output.get("data", {}))) for output in cell["outputs"])


def without_fences(text: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)


def prose(text: str) -> str:
    "Markdown without fenced code, comments and math; inline code becomes a word, and may be a link's."
    text = re.sub(r"<!--.*?-->|\$\$.*?\$\$", "", without_fences(text), flags=re.S)
    text = re.sub(r"`[^`\n]*`", "code", text)
    return re.sub(r"(?<![\\$\w])\$(?! )[^$\n]+?\$", "", text)


def headings(text: str) -> list[tuple[int, str]]:
    "Level and words of each heading of a Markdown text; fenced code has none."
    found = re.findall(r"^(#{1,6}) +(.*)$", without_fences(text), re.M)
    return [(len(level), words.strip()) for level, words in found]


def title(path: Path) -> str:
    "The title of a chapter."
    return headings(source(load(path)["cells"][0]))[0][1]


def anchor(words: str) -> str:
    "The address that Quarto gives a heading: its own `{#name}`, or pandoc's rule."
    own = re.search(r"\{#([\w.-]+)", words)
    if own:
        return own[1]
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", words).lower().strip()
    words = re.sub(r"[^\w\s.-]", "", words).strip()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", words))


def anchors(path: Path) -> set[str]:
    "Everything in a page that a link may point at."
    if path.suffix != ".ipynb":
        return text_anchors(path.read_text(encoding="utf-8"))
    nb = load(path)
    found = {cell["id"] for cell in code(nb)}
    for cell in markdown(nb):
        found |= text_anchors(source(cell))
    return found


def text_anchors(text: str) -> set[str]:
    "The addresses of a Markdown text: of headings, of `{#name}`, of HTML tags with an id."
    found = {anchor(words) for _, words in headings(text)}
    found.update(re.findall(r"\{#([\w.-]+)", text))
    found.update(re.findall(r"<\w+ id=\"([\w.-]+)\"", text))
    return found


def links(text: str) -> list[str]:
    "Targets of the links and pictures in a Markdown text."
    text = prose(text)
    return re.findall(r"\]\(([^)\s]*)[^)]*\)", text) + re.findall(r"(?:href|src)=[\"']([^\"']*)", text)


# Links.


def broken(path: Path, targets: list[str]) -> Iterator[str]:
    "What is wrong with the links of one text of one file."
    for target in targets:
        if target.startswith("data:"):
            continue
        if re.match(r"(https?:|//|mailto:)", target):
            problem = web_problem(target)
        else:
            problem = file_problem(path, target)
        if problem:
            yield problem


def web_problem(target: str) -> str | None:
    "What is wrong with an address of the web: it is https and whole, and ours are pyproject.toml's."
    url = urlparse(target)
    if url.scheme != "https":
        return f"{target}: write https://"
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc) or re.search(r"[\s<>\"{}|\\^`]", target):
        return f"{target} is no address"
    if "tune_a_video_nbs" in target and not target.startswith((REPO, COLAB, SITE)):
        return f"{target} is neither {REPO}, {SITE} nor {COLAB}"
    notebooks = COLAB + "/blob/main/"
    if target.startswith(notebooks) and not (ROOT / target.removeprefix(notebooks)).is_file():
        return f"{target}: no such notebook"
    return None


def is_made(file: Path) -> bool:
    "Whether a page is written when the site is rendered."
    if file.parent == ROOT / "api":
        return file.stem in (*modules(), "index")
    return file == ROOT / "web/figures.qmd"


def file_problem(path: Path, target: str) -> str | None:
    "What is wrong with a link to a file, or to a spot in one."
    if not target:
        return "an empty link"
    name, _, spot = target.partition("#")
    file = (path.parent / name).resolve() if name else path
    if is_made(file):
        return None
    if not file.is_file():
        return f"{target}: no such file"
    if spot and file.suffix in (".ipynb", ".qmd") and spot not in anchors(file):
        there = [f"#{a}" for a in sorted(anchors(file)) if re.search(r"[a-z]-?[a-z]{3}", a)]
        return f"{target}: {file.name} has no such anchor; it has {', '.join(there)[:200]}"
    return None


# The checks of one notebook.


def check_title(path: Path, nb: dict) -> CellProblems:
    "It begins with `# Title` and `> one sentence`, and has no other title."
    first = nb["cells"][0]
    lines = source(first).splitlines()
    if first["cell_type"] != "markdown" or not re.match(r"# \S", lines[0]):
        yield first, "the first cell is Markdown that begins with `# Title`"
        return
    if len(lines) < 2 or not re.match(r"> \S.{19}", lines[1]):
        yield first, "under the title stands `> ` and one sentence: what the page is about"
    for cell in markdown(nb):
        found = [words for level, words in headings(source(cell)) if level == 1]
        for words in found[1:] if cell is first else found:
            yield cell, f"a second title, `# {words}`: use ##"


def check_headings(path: Path, nb: dict) -> CellProblems:
    "Levels go down one at a time, and no two headings have one address."
    last = 1
    seen = set()
    for cell in markdown(nb):
        for level, words in headings(source(cell)):
            if level > last + 1:
                yield cell, f"`{words}` has level {level} under level {last}: use {last + 1} #"
            if anchor(words) in seen:
                yield cell, f"`{words}` again: a second heading with the address #{anchor(words)}"
            seen.add(anchor(words))
            last = level


def check_links(path: Path, nb: dict) -> CellProblems:
    "Files, anchors and notebooks exist, in text and in captions."
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            text = source(cell)
        else:
            text = marks(source(cell)).get("fig-cap", "")
        for problem in broken(path, links(text)):
            yield cell, problem


def check_badge(path: Path, nb: dict) -> CellProblems:
    "A chapter's second and third cells are what tests/make_badges.py writes."
    if path in CHAPTERS and nb["cells"][1:3] != badge_cells(path):
        yield nb["cells"][1], "not the badge and setup cell of tests/make_badges.py: run `make export`"


def check_outputs(path: Path, nb: dict) -> CellProblems:
    "It was saved after a run from the top without an error, and what should show something does."
    cells = code(nb)
    if not any(cell["outputs"] for cell in cells):
        yield None, "no saved output: make notebooks"
    for cell in cells:
        outputs = cell["outputs"]
        if any(output["output_type"] == "error" for output in outputs):
            yield cell, "its saved output is an error"
        if any(output.get("name") == "stderr" for output in outputs):
            yield cell, "its saved output holds stderr: run it by tests/run_notebooks.py"
        shows_something = num_pictures(cell) > 0 or html(cell) != ""
        if {"fig-cap", "fig-alt"} & set(marks(source(cell))) and not shows_something:
            yield cell, "has a caption, and no picture in its saved output"
        if any(WIDGET in output.get("data", {}) for output in outputs) and not shows_something:
            yield cell, "a widget with no still beside it: a page has no kernel"


def check_figures(path: Path, nb: dict) -> CellProblems:
    "Every picture, player and slider has a caption and another description, and a cell has one picture."
    for cell in code(nb):
        shown = html(cell)
        if num_pictures(cell) == 0 and not re.search(r"<video|<input|<img", shown):
            continue
        mark = marks(source(cell))
        caption = unquoted(mark.get("fig-cap", "")).strip()
        alt = unquoted(mark.get("fig-alt", "")).strip()
        if not caption:
            yield cell, "a figure without `#| fig-cap:` (the conclusion, in a sentence)"
        if not alt:
            yield cell, "a figure without `#| fig-alt:` (what is to be seen, for those who cannot see it)"
        if caption and caption == alt:
            yield cell, "caption and alternative text are the same words"
        if num_pictures(cell) > 1:
            yield cell, f"{num_pictures(cell)} pictures in one cell share one caption: one picture a cell"
        for tag in unnamed_tags(shown):
            yield cell, f"no alt or aria-label: {tag[:80]}"
    for cell in markdown(nb):
        if re.search(r"!\[\s*\]\(", prose(source(cell))):
            yield cell, "a picture without alternative text: ![what is to be seen](...)"


def unnamed_tags(shown: str) -> list[str]:
    "Players, pictures and inputs that a screen reader could not name."
    tags = re.findall(r"<(?:video|img|input)\b[^>]*>", shown)
    unnamed = [tag for tag in tags if not re.search(r"\b(alt|aria-label)=", tag)]
    if "<label" in shown:  # which names its input
        unnamed = [tag for tag in unnamed if not tag.startswith("<input")]
    return unnamed


def check_size(path: Path, nb: dict) -> CellProblems:
    "A notebook is small enough for GitHub to show it."
    size = path.stat().st_size
    if size >= LIMIT:
        yield None, f"{size / 1e6:.1f} MB; a notebook stays under {LIMIT / 1e6:.0f} MB"


def check_marks(path: Path, nb: dict) -> CellProblems:
    "Marks are known, stand at the top of their cell, and YAML reads their values as meant."
    for cell in nb["cells"]:
        text = source(cell)
        if cell["cell_type"] != "code":
            if re.search(r"^#\|", prose(text), re.M):
                yield cell, "a `#|` line in Markdown"
            continue
        for line in body(text).splitlines():
            if re.match(r"\s*#\|", line):
                yield cell, f"`{line.strip()[:60]}` below the top of its cell does nothing"
        for name, value in marks(text).items():
            if name not in OURS + QUARTO:
                yield cell, f"`#| {name}` is known to neither nbdev nor Quarto"
            if name in ("fig-cap", "fig-alt") and not re.fullmatch(r'"(?:[^"\\]|\\.)*"', value):
                yield cell, f"`#| {name}:` wants its words in double quotes"
            if name in QUARTO and not value:
                yield cell, f"`#| {name}:` says nothing"


def check_foreign(path: Path, nb: dict) -> CellProblems:
    "No page asks another server for anything."
    loads = r"<(?:script|link|img|iframe|video|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
    for cell in code(nb):
        for tag in re.findall(loads, html(cell)):
            yield cell, f"asks another server: {tag[:80]}"
    for cell in markdown(nb):
        if cell.get("id") != "colab-badge":  # the page has words in its place
            for address in re.findall(r"!\[[^\]]*\]\((https?://[^)]*)\)", prose(source(cell))):
                yield cell, f"a picture from another server: {address}"


def check_fences(path: Path, nb: dict) -> CellProblems:
    "Fences and folds that open also close, or they swallow the rest of the page."
    for cell in markdown(nb):
        text = prose(source(cell))
        if len(re.findall(r"^\s*```", source(cell), re.M)) % 2:
            yield cell, "a ``` that does not close"
        if text.count("$$") % 2:
            yield cell, "a $$ that does not close"
        opened = len(re.findall(r"<details\b", text))
        closed = text.count("</details>")
        if opened != closed:
            yield cell, f"{opened} <details> and {closed} </details> in one cell"


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


def check_numbers() -> FileProblems:
    "A number belongs to one chapter: the sidebar's order is the order of the numbers."
    stems = {}
    for path in CHAPTERS:
        stems.setdefault(path.stem[:2], []).append(path.name)
    for number, names in stems.items():
        if len(names) > 1:
            yield "nbs", f"{' and '.join(names)} share the number {number}: give one of them another"


def check_sidebar() -> FileProblems:
    "_quarto.yml lists every chapter once and in order, and every module's reference; what it names is there."
    text = re.sub(r"\s#.*", "", read("_quarto.yml"))
    sidebar = text[text.index("sidebar:") :]
    if with_sidebars(read("_quarto.yml")) != read("_quarto.yml"):
        yield "_quarto.yml", "its sidebars are not what web/make_sidebar.py writes: run `make export`"
    listed = re.findall(r"nbs/([0-9]\w*)\.ipynb", sidebar)
    for path in CHAPTERS:
        times = listed.count(path.stem)
        if times != 1:
            yield "_quarto.yml", f"the sidebar lists nbs/{path.name} {times} times: once, please"
    if listed != sorted(listed):
        yield "_quarto.yml", f"the sidebar's chapters are out of order: {listed}"
    for module in modules():
        if f"api/{module}.qmd" not in sidebar:
            yield "_quarto.yml", f"the sidebar lacks api/{module}.qmd, the reference of a module"
    for name in sorted(set(re.findall(r"(?:nbs|web|api)/[\w.]+\.\w+|\b404\.qmd", text))):
        if not is_made(ROOT / name) and not (ROOT / name).is_file():
            yield "_quarto.yml", f"{name}: no such file"
    for key, address in (("site-url", SITE), ("repo-url", REPO)):
        if f"{key}: {address}\n" not in text:
            yield "_quarto.yml", f"{key} is not pyproject.toml's {address}"


def check_index() -> FileProblems:
    "The front page's table lists every chapter, under its number and title, in order."
    text = "".join(source(cell) for cell in markdown(load(ROOT / "nbs/index.ipynb")))
    rows = re.findall(r"^\| (\[[0-9].*?\.ipynb\))", text, re.M)
    wanted = [f"[{path.stem[:2]} {title(path)}]({path.name})" for path in CHAPTERS]
    for line in wanted:
        if line not in rows:
            yield "index.ipynb", f"the table of chapters lacks {line}"
    for line in rows:
        if line not in wanted:
            yield "index.ipynb", f"the table of chapters has {line}, which is no chapter's number and title"
    if rows != sorted(rows):
        yield "index.ipynb", "the table of chapters is out of order"


def check_pages() -> FileProblems:
    "Pages that are not notebooks: front matter and links."
    for name in PAGES:
        text = read(name)
        if name.endswith(".qmd") and not re.match(r"---\ntitle: \".+\"\nsubtitle: \".+\"\n", text):
            yield name, "begins with front matter: title and subtitle"
        for problem in broken(ROOT / name, links(text)):
            yield name, problem


def glossary() -> list[tuple[str, str]]:
    "Terms of the glossary: word, meaning."
    return re.findall(r"^\[(.+?)\]\{#[\w-]+\}\n\n:   (.*)$", read("web/glossary.qmd"), re.M)


def check_glossary() -> FileProblems:
    "In the order of the alphabet, each term once, each with a link under the chapter's own title."
    file = "web/glossary.qmd"
    words = [word.lower() for word, _ in glossary()]
    for word, times in Counter(words).items():
        if times > 1:
            yield file, f"`{word}` stands there {times} times"
    for before, after in zip(words, words[1:]):
        if before > after:
            yield file, f"`{after}` stands after `{before}`"
    titles = {path.name: title(path) for path in CHAPTERS}
    for word, meaning in glossary():
        chapters = re.findall(r"\[([^\]]*)\]\(\.\./nbs/(\w+\.ipynb)\)", meaning)
        if not chapters:
            yield file, f"`{word}` links to no chapter"
        for text, name in chapters:
            if titles.get(name, text) != text:
                yield file, f"`{word}`: the chapter's title is `{titles[name]}`, not `{text}`"


# Colours.


def linear(level: int) -> float:
    "The light of a colour's level from 0 to 255, as WCAG 2 defines it."
    share = level / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def luminance(colour: str) -> float:
    "Relative luminance of #rrggbb."
    red, green, blue = (linear(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def colours(name: str) -> dict[str, str]:
    "Name -> colour of a theme's file."
    return dict(re.findall(r"^\$([\w-]+): (#\w{6})", read(f"web/{name}.scss"), re.M))


def check_contrast() -> FileProblems:
    "Text of both themes stands out from what it stands on."
    pairs = [
        ("text-muted", "body-bg"),
        ("code-color", "code-bg"),
        ("sidebar-fg", "sidebar-bg"),
        ("sidebar-hl", "sidebar-bg"),
        ("navbar-fg", "navbar-bg"),
        ("navbar-hl", "navbar-bg"),
        ("footer-fg", "footer-bg"),
        ("toc-color", "body-bg"),
    ]
    for back in ("body-bg", "code-block-bg", "tav-soft"):
        pairs += [(text, back) for text in ("body-color", "link-color", "tav-muted")]
    light = colours("light")
    themes = {"light": light, "dark": light | colours("dark")}
    for name, theme in themes.items():
        for text, back in pairs:
            ratio = contrast(theme[text], theme[back])
            if ratio < LEAST_CONTRAST:
                least = f"{LEAST_CONTRAST} is the least"
                yield f"web/{name}.scss", f"${text} on ${back} has contrast {ratio:.1f}; {least}"


WHOLE_CHECKS = [check_numbers, check_sidebar, check_index, check_pages, check_glossary, check_contrast]


# All of them.


def notebook_problems(check, path: Path, nb: dict) -> list[Problem]:
    "What one check finds in one notebook."
    found = []
    for cell, what in check(path, nb):
        place = "" if cell is None else f"{cell.get('id')} ({nb['cells'].index(cell)})"
        found.append(Problem(path.name, place, what))
    return found


def whole_problems(check) -> list[Problem]:
    return [Problem(file, "", what) for file, what in check()]


def all_problems() -> list[Problem]:
    found = []
    for path in NOTEBOOKS:
        nb = load(path)
        for check in NOTEBOOK_CHECKS:
            found += notebook_problems(check, path, nb)
    for check in WHOLE_CHECKS:
        found += whole_problems(check)
    return found


if __name__ == "__main__":
    problems = all_problems()
    for problem in problems:
        print(problem)
    checks = f"{len(NOTEBOOK_CHECKS)} checks of each, {len(WHOLE_CHECKS)} of the whole"
    print(f"{len(NOTEBOOKS)} notebooks, {checks}: {len(problems)} problems")
    sys.exit(bool(problems))
