"""Quarto's notebook filter: a chapter on stdin, the page to render on stdout. The notebook is not changed.

Cells marked `#| hide` go, nbdev's other marks become Quarto's, the badge becomes a line of facts, players
become plain HTML with their caption, and names of the library link to their reference. `_quarto.yml` names
this file; `tests/test_docs.py` runs it without Quarto."""

import html
import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "web"))
from make_api import modules, public_names  # noqa: E402

DROP = ("hide", "default_exp")  # cells that only nbdev needs
OURS = DROP + ("export", "exports", "exporti", "notest", "cuda")  # marks that Quarto does not know
QUARTO = (
    "echo",
    "eval",
    "output",
    "include",
    "code-fold",
    "code-summary",
    "fig-cap",
    "fig-alt",
    "label",
    "classes",
)
WORDS_A_MINUTE = 220
LINES_A_MINUTE = 15


# Cells and their marks.


def source(cell: dict) -> str:
    return "".join(cell["source"])


def marks(text: str) -> dict:
    "The `#| name: value` lines at the top of a code cell; a mark without a value has an empty one."
    found = {}
    for line in text.splitlines():
        if not line.startswith("#|"):
            break
        name, _, value = line[2:].strip().partition(":")
        words = name.split()
        found[words[0] if words else ""] = value.strip()
    return found


def with_marks(found: dict, text: str) -> str:
    "A code cell of these marks and this code."
    return "".join(f"#| {name}: {value}\n" for name, value in found.items()) + text


def body(text: str) -> str:
    "A code cell without its marks."
    lines = text.splitlines()
    while lines and lines[0].startswith("#|"):
        lines.pop(0)
    return "\n".join(lines)


def unquoted(value: str) -> str:
    "A mark's value as YAML reads it."
    if value.startswith('"') and value.endswith('"'):
        return json.loads(value)
    if value.startswith("'") and value.endswith("'"):
        return value[1:-1].replace("''", "'")
    return value


def is_dropped(cell: dict) -> bool:
    "Whether only nbdev needs this code cell."
    return bool(set(DROP) & set(marks(source(cell))))


def html_of(output: dict) -> str:
    return "".join(output.get("data", {}).get("text/html", ""))


# The top of a page.


def minutes(nb: dict) -> int:
    "How long the page takes to read, hidden cells left out."
    words = 0
    lines = 0
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            words += len(source(cell).split())
        elif cell["cell_type"] == "code" and not is_dropped(cell):
            lines += len(body(source(cell)).splitlines())
    return max(1, math.ceil(words / WORDS_A_MINUTE + lines / LINES_A_MINUTE))


def front(cell: dict) -> tuple[dict, str]:
    "A title cell (`# Title`, `> one sentence`, more) as Quarto's front matter, and what is left of it."
    lines = source(cell).splitlines()
    title = lines[0].removeprefix("# ").strip()
    rest = lines[1:]
    quoted = []
    while rest and rest[0].startswith(">"):
        quoted.append(rest.pop(0)[1:].strip())
    subtitle = " ".join(quoted)
    facts = {
        "title": title,
        "subtitle": subtitle,
        "description": re.sub(r"[*_`]|\[([^]]*)\]\([^)]*\)", r"\1", subtitle),  # no Markdown
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items()]
    matter = "\n".join(["---", *lines, "---"])
    return dict(cell_type="raw", id="front", metadata={}, source=matter), "\n".join(rest).strip()


def exported_module(nb: dict) -> str | None:
    "The module that a chapter exports, from its `#| default_exp` line."
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            found = re.search(r"^#\| default_exp.*?(\S+)$", source(cell), re.M)
            if found:
                return found[1]
    return None


def facts(badge: str, nb: dict) -> str:
    "What stands under a chapter's title, as text: how long, where to run it, its module."
    colab = re.findall(r"\]\((https://[^)]*)\)", badge)[-1]
    parts = [f"{minutes(nb)} minutes to read", f"[Open in Colab]({colab}){{.run}}"]
    module = exported_module(nb)
    if module in modules():
        parts.append(f"[Reference of `{module}`](../api/{module}.qmd)")
    return "::: {.facts}\n" + " · ".join(parts) + "\n:::"


# Text.


def linked(text: str) -> str:
    "Markdown in which the first mention of each public name, outside of code, links to its reference."
    names = public_names()
    done = set()

    def link(found: re.Match) -> str:
        is_link_already = found[1] is not None
        if is_link_already:
            return found[0]
        mention = found[3]
        name = mention.removesuffix("()")
        if name not in names or name in done:
            return found[0]
        done.add(name)
        return f"[`{mention}`](../api/{names[name]}.qmd#{name}){{.api}}"

    lines = []
    is_code = False
    for line in text.split("\n"):
        if line.lstrip().startswith(("```", "~~~")):
            is_code = not is_code
        is_html = line.lstrip().startswith("<")
        if not (is_code or is_html or line.startswith("#")):
            line = re.sub(r"(\[[^\]]*\]\([^)]*\))|(?<![`\w])(`)([\w.]+(?:\(\))?)`(?!`)", link, line)
        lines.append(line)
    return "\n".join(lines)


def inline_html(text: str) -> str:
    "The little Markdown that captions use, as HTML."
    text = html.escape(text, quote=False)
    for mark, tag in (("`", "code"), (r"\*\*", "strong"), (r"\*", "em")):
        text = re.sub(f"{mark}(.+?){mark}", rf"<{tag}>\1</{tag}>", text)
    return text


def figure(data: str, caption: str, alt: str) -> str:
    "Players and sliders as raw HTML, with the caption that Quarto gives to pictures only."
    inner = data.replace("\n\n", "\n")
    name = f' aria-label="{html.escape(alt)}"' if alt else ""
    below = f"<figcaption>{inline_html(caption)}</figcaption>" if caption else ""
    return f'```{{=html}}\n<figure class="figure tav-figure"{name}>\n{inner}\n{below}</figure>\n```'


# Code.


def without_widgets(output: dict) -> dict | None:
    "An output without its widget, which wants a kernel; none if nothing else is left."
    if "data" not in output:
        return output
    data = {kind: value for kind, value in output["data"].items() if "widget" not in kind}
    only_words_left = set(data) <= {"text/plain"}
    if data != output["data"] and only_words_left:
        return None
    return output | {"data": data}


def code_cell(cell: dict) -> dict | None:
    "A code cell for the page, or nothing where nbdev alone needs it."
    if is_dropped(cell):
        return None
    text = source(cell)
    found = marks(text)
    kept = {name: value for name, value in found.items() if name in QUARTO}
    if "export" in found or "exports" in found:
        kept["classes"] = "export"
    caption = unquoted(found.get("fig-cap", ""))
    alt = unquoted(found.get("fig-alt", ""))
    outputs = []
    for output in cell["outputs"]:
        output = without_widgets(output)
        if output is None:
            continue
        data = output.get("data", {})
        if "text/html" in data and "image/png" not in data:
            shown = {"text/markdown": figure(html_of(output), caption, alt)}
            output = dict(output_type="display_data", metadata={}, data=shown)
            kept.pop("fig-cap", None)
            kept.pop("fig-alt", None)
            caption = ""
        outputs.append(output)
    return cell | {"source": with_marks(kept, body(text)), "outputs": outputs}


def is_code(cell: dict) -> bool:
    return cell["cell_type"] == "code"


def is_imports(text: str) -> bool:
    "Whether a cell holds nothing but imports: a page folds those."
    lines = [line for line in body(text).splitlines() if line.strip()]
    statements = [line for line in lines if not line.startswith((" ", ")", "#"))]
    return bool(statements) and all(line.startswith(("import ", "from ")) for line in statements)


def shows_a_picture(cell: dict) -> bool:
    kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
    return bool(kinds & {"image/png", "text/markdown"})


def opening_cells(cells: list[dict]) -> list[int]:
    "The unbroken run of code cells that ends with a page's first picture."
    picture = next((i for i, cell in enumerate(cells) if is_code(cell) and shows_a_picture(cell)), None)
    if picture is None:
        return []
    first = picture
    while first > 0 and is_code(cells[first - 1]):
        first -= 1
    return list(range(first, picture + 1))


def fold_opening(cells: list[dict]) -> dict:
    "One folded cell of all these, which shows what the last one shows."
    *silent, last = cells
    found = {name: value for name, value in marks(source(last)).items() if name != "classes"}
    if found.get("echo") != "false":
        found |= {"code-fold": "true", "code-summary": '"Imports, and the code of this picture"'}
    text = "\n\n".join(body(source(cell)) for cell in [*silent, last])
    return last | {"source": with_marks(found, text)}


def folded(cells: list[dict]) -> list[dict]:
    "Code before the first picture becomes one folded block, so that the page opens with it; so do imports."
    opening = opening_cells(cells)
    silent = [i for i in opening[:-1] if not cells[i]["outputs"]]
    kept = []
    for i, cell in enumerate(cells):
        if i in silent:
            continue
        if opening and i == opening[-1]:
            kept.append(fold_opening([cells[j] for j in silent] + [cell]))
        elif is_code(cell) and not cell["outputs"] and is_imports(source(cell)):
            fold_imports(kept, cell)
        else:
            kept.append(cell)
    return kept


def fold_imports(kept: list[dict], cell: dict) -> None:
    "Append a folded cell of imports to those kept, or join it to the one before, if that is one, too."
    if kept and '"Imports"' in source(kept[-1]):
        kept[-1] = kept[-1] | {"source": source(kept[-1]) + "\n\n" + body(source(cell))}
        return
    fold = {"code-fold": "true", "code-summary": '"Imports"'}
    kept.append(cell | {"source": with_marks(fold, body(source(cell)))})


def page(nb: dict) -> dict:
    "The notebook that Quarto renders."
    matter, rest = front(nb["cells"][0])
    cells = [matter]
    if rest:
        cells.append(dict(cell_type="markdown", id="opening", metadata={}, source=linked(rest)))
    for cell in nb["cells"][1:]:
        if cell.get("id") == "colab-badge":
            cells.append(cell | {"source": facts(source(cell), nb)})
        elif cell["cell_type"] == "markdown":
            cells.append(cell | {"source": linked(source(cell))})
        elif is_code(cell):
            shown = code_cell(cell)
            if shown is not None:
                cells.append(shown)
        else:
            cells.append(cell)
    lines = [cell | {"source": source(cell).splitlines(keepends=True)} for cell in folded(cells)]
    metadata = {name: value for name, value in nb["metadata"].items() if name != "widgets"}
    return nb | {"metadata": metadata, "cells": lines}


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    json.dump(page(json.loads(sys.stdin.buffer.read().decode("utf-8"))), sys.stdout, ensure_ascii=False)
