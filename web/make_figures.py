"""Write `web/figures.qmd`, "About the figures": every figure with its conclusion, what drew it, and a link.

Quarto runs this before it renders (`pre-render` in `_quarto.yml`)."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from filter import html_of, is_dropped, marks, source, unquoted
from make_api import ROOT, cell, chapter_title, public, safe, write_if_new

HEAD = """---
title: "About the figures"
subtitle: "Every picture in this book is drawn by the page that shows it."
description: "How each figure of the book was made, with a link to the code that draws it."
repo-actions: false
---

<!-- Made by web/make_figures.py -->

No figure was drawn by hand or touched up. The code of each stands directly above it in its chapter, folded
where it is only drawing; run the chapter and you get the same figure, for every random number comes from a
seed that the chapter names. A caption says what the figure shows, not what its axes are; the axes say that
themselves. A screen reader reads out a figure's description, which the page
carries as alternative text.

- **Colours** are those of Okabe and Ito, which people with any colour vision tell apart;
  [`PALETTE`](../api/show.qmd#PALETTE) lists them.
- **Small pictures are enlarged by whole numbers**, without smoothing: a square on the screen is a pixel of
  the model.
- **Clips are h264**, encoded close to lossless, inside the page itself. Clips side by side start together
  and stay in step.
- **Sliders hold every picture they show.** They, too, need no kernel and no network.
- **Figures of the miniature** come from the weights that the package ships; how they are made is
  [chapter 05](../nbs/05_miniature.ipynb).

"""


class Figure(NamedTuple):
    id: str  # of its cell
    caption: str
    alt: str
    kind: str  # picture, clips or slider
    drawn_by: list[str]  # functions of the library


def kind_of(html: str) -> str:
    "What a figure is, by the HTML that its cell put out; a plain picture has none."
    if 'type="range"' in html:
        return "slider"
    if "<video" in html:
        return "clips"
    return "picture"


def drawing_functions() -> dict[str, str]:
    "Function that draws -> its module."
    return {name: module for module in ("show", "heat") for name in public(module)}


def figures(path: Path) -> list[Figure]:
    "The captioned figures of one chapter, in order."
    found = []
    for c in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if c["cell_type"] != "code" or is_dropped(c):
            continue
        text = source(c)
        mark = marks(text)
        if "fig-cap" not in mark:
            continue
        html = "".join(html_of(output) for output in c["outputs"])
        drawn_by = [name for name in drawing_functions() if re.search(rf"\b{name}\(", text)]
        caption = unquoted(mark["fig-cap"])
        alt = unquoted(mark.get("fig-alt", ""))
        found.append(Figure(c["id"], caption, alt, kind_of(html), drawn_by))
    return found


def figure_row(path: Path, number: int, figure: Figure) -> str:
    "One line of the table of a chapter."
    links = [f"[`{name}`](../api/{drawing_functions()[name]}.qmd#{name})" for name in figure.drawn_by]
    drawn_by = ", ".join(links) or "matplotlib, in its cell"
    link = f"[{int(path.stem[:2])}.{number}](../nbs/{path.name}#{figure.id})"
    return f"| {link} | {safe(cell(figure.caption))} | {figure.kind} | {drawn_by} |"


def figures_page() -> str:
    "The whole page as Markdown."
    lines = []
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        found = figures(path)
        if not found:
            continue
        lines += [f"## {chapter_title(path.stem)} {{#{path.stem}}}", ""]
        lines += ["| | It shows | Shown as | Drawn by |", "|:--|:---------|:--|:---|"]
        lines += [figure_row(path, number, figure) for number, figure in enumerate(found, 1)]
        lines.append("")
    return HEAD + "\n".join(lines)


if __name__ == "__main__":
    write_if_new(ROOT / "web/figures.qmd", figures_page())
