"""Write `web/figures.qmd`, "About the figures": each picture, player and slider of the book with its conclusion, what drew it, and a link to it.

Quarto runs this before it renders (`pre-render` in `_quarto.yml`)."""

import json
import re
from pathlib import Path

from filter import DROP, marks, source
from filter import unquoted as said
from make_api import cell, chapter_title, public, safe

ROOT = Path(__file__).resolve().parent.parent
HEAD = """---
title: "About the figures"
subtitle: "Every picture in this book is drawn by the page that shows it."
description: "How each figure of the book was made, with a link to the code that draws it."
repo-actions: false
---

<!-- Made by web/make_figures.py -->

No figure was drawn by hand or touched up. The code of each stands directly above it in its chapter, folded where it is only drawing; run the chapter and
you get the same figure, for every random number comes from a seed that the chapter names. A caption says what the figure shows, not what its axes are;
the axes say that themselves. Who cannot see a figure hears its description, which the page carries as alternative text.

- **Colours** are those of Okabe and Ito, which people with any colour vision tell apart; [`PALETTE`](../api/show.qmd#PALETTE) lists them.
- **Small pictures are enlarged by whole numbers**, without smoothing: a square on the screen is a pixel of the model.
- **Clips are h264**, encoded close to lossless, inside the page itself. Clips side by side start together and stay in step.
- **Sliders hold every picture they show.** They, too, need no kernel and no network.
- **Figures of the miniature** come from the weights that the package ships, whose making is [chapter 05](../nbs/05_miniature.ipynb).

"""


def figures(path: Path) -> list[dict]:
    "The captioned figures of one chapter, in order: which cell, what it says, what kind it is, which functions of `show` drew it."
    found = []
    for c in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if c["cell_type"] != "code":
            continue
        text = source(c)
        m = marks(text)
        if "fig-cap" not in m or set(DROP) & set(m):
            continue
        data = "".join("".join(o.get("data", {}).get("text/html", "")) for o in c["outputs"])
        kind = (
            "slider"
            if 'type="range"' in data or "type=range" in data
            else "clips"
            if "<video" in data
            else "picture"
        )
        by = [n for n in public("show") if re.search(rf"\b{n}\(", text)]
        found.append(
            dict(id=c["id"], cap=said(m["fig-cap"]), alt=said(m.get("fig-alt", "")), kind=kind, by=by)
        )
    return found


def figures_page() -> str:
    "The whole page as Markdown."
    parts = []
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        rows = figures(path)
        if not rows:
            continue
        parts += [
            f"## {chapter_title(path.stem)} {{#{path.stem}}}",
            "",
            "| | It shows | Shown as | Drawn by |",
            "|:--|:---------|:--|:---|",
        ]
        for i, f in enumerate(rows, 1):
            by = ", ".join(f"[`{n}`](../api/show.qmd#{n})" for n in f["by"]) or "matplotlib, in its cell"
            parts.append(
                f"| [{int(path.stem[:2])}.{i}](../nbs/{path.name}#{f['id']}) | {safe(cell(f['cap']))} | {f['kind']} | {by} |"
            )
        parts.append("")
    return HEAD + "\n".join(parts)


if __name__ == "__main__":
    out = ROOT / "web/figures.qmd"
    if not out.exists() or out.read_text(encoding="utf-8") != figures_page():
        out.write_text(figures_page(), encoding="utf-8")
