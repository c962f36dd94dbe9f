"""Quarto's notebook filter: a chapter on stdin, the page to render on stdout. The notebook itself stays as Jupyter and Colab want it.

Cells marked `#| hide` go, nbdev's other marks become Quarto's, the badge becomes a line of facts, players become plain HTML with their caption,
and names of the library link to their reference. `_quarto.yml` names this file; `tests/test_docs.py` runs it without Quarto."""

import html
import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "web"))
from make_api import modules, public_names

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


def source(cell: dict) -> str:
    return "".join(cell["source"])


def marks(text: str) -> dict:
    "The `#| name: value` lines at the top of a code cell; a mark without a value has an empty one."
    found = {}
    for line in text.splitlines():
        if not line.startswith("#|"):
            break
        name, _, value = line[2:].strip().partition(":")
        found[name.split()[0] if name.split() else ""] = value.strip()
    return found


def body(text: str) -> str:
    "A code cell without its marks."
    lines = text.splitlines()
    while lines and lines[0].startswith("#|"):
        lines.pop(0)
    return "\n".join(lines)


def said(value: str) -> str:
    "A mark's value as YAML reads it: quotes off."
    if value.startswith('"') and value.endswith('"'):
        return json.loads(value)
    return value[1:-1].replace("''", "'") if value.startswith("'") and value.endswith("'") else value


def minutes(nb: dict) -> int:
    "To read the page at 220 words and 15 lines of code a minute, the hidden cells left out."
    words = sum(len(source(c).split()) for c in nb["cells"] if c["cell_type"] == "markdown")
    shown = [
        source(c) for c in nb["cells"] if c["cell_type"] == "code" and not set(DROP) & set(marks(source(c)))
    ]
    return max(1, math.ceil(words / 220 + sum(len(body(s).splitlines()) for s in shown) / 15))


def front(cell: dict) -> tuple[dict, str]:
    "A title cell (`# Title`, `> one sentence`, more) as Quarto's front matter, and what is left of it."
    lines = source(cell).splitlines()
    title, rest = lines[0].removeprefix("# ").strip(), lines[1:]
    sub = []
    while rest and rest[0].startswith(">"):
        sub.append(rest.pop(0)[1:].strip())
    said = " ".join(sub)
    plain = re.sub(r"[*_`]|\[([^]]*)\]\([^)]*\)", r"\1", said)
    head = f"---\ntitle: {json.dumps(title, ensure_ascii=False)}\nsubtitle: {json.dumps(said, ensure_ascii=False)}\ndescription: {json.dumps(plain, ensure_ascii=False)}\n---"
    return dict(cell_type="raw", id="front", metadata={}, source=head), "\n".join(rest).strip()


def facts(badge: str, nb: dict) -> str:
    "What stands under a chapter's title: how long, where to run it, its module. Text, not the badge's picture, which lies on another's server."
    colab = re.findall(r"\]\((https://[^)]*)\)", badge)[-1]
    name = next((v.split()[-1] for c in nb["cells"] if c["cell_type"] == "code" for k, v in exports(c)), None)
    parts = [f"{minutes(nb)} minutes to read", f"[Open in Colab]({colab}){{.run}}"]
    if name in modules():
        parts.append(f"[Reference of `{name}`](../api/{name}.qmd)")
    return "::: {.facts}\n" + " · ".join(parts) + "\n:::"


def exports(cell: dict):
    for line in source(cell).splitlines():
        if line.startswith("#| default_exp"):
            yield "default_exp", line


NAMES = None


def linked(text: str, here: str | None = None) -> str:
    "Markdown in which the first `name` of each public function, class or constant links to its reference; not in code, headings, links or tables' math."
    global NAMES
    if NAMES is None:
        NAMES = public_names()
    done, fence, out = set(), False, []
    for line in text.split("\n"):
        if line.lstrip().startswith(("```", "~~~")):
            fence = not fence
        if fence or line.startswith("#") or "<" in line.lstrip()[:1]:
            out.append(line)
            continue

        def link(m):
            if m[1]:
                return m[0]  # a link, already
            name = m[3].removesuffix("()")
            if name not in NAMES or name in done:
                return m[0]
            done.add(name)
            return f"[`{m[3]}`](../api/{NAMES[name]}.qmd#{name}){{.api}}"

        out.append(re.sub(r"(\[[^\]]*\]\([^)]*\))|(?<![`\w])(`)([\w.]+(?:\(\))?)`(?!`)", link, line))
    return "\n".join(out)


def figure(data: str, caption: str, alt: str) -> str:
    "Players and sliders as raw HTML, which brings no script from elsewhere; with the caption that Quarto gives to pictures only."
    inner = data.replace("\n\n", "\n")
    name = f' aria-label="{html.escape(alt)}"' if alt else ""
    cap = f"<figcaption>{md_inline(caption)}</figcaption>" if caption else ""
    return f'```{{=html}}\n<figure class="figure tav-figure"{name}>\n{inner}\n{cap}</figure>\n```'


def md_inline(text: str) -> str:
    "The little Markdown that captions use."
    text = html.escape(text, quote=False)
    for mark, tag in (("`", "code"), (r"\*\*", "strong"), (r"\*", "em")):
        text = re.sub(f"{mark}(.+?){mark}", rf"<{tag}>\1</{tag}>", text)
    return text


def code_cell(cell: dict) -> dict | None:
    "A code cell for the page, or nothing where nbdev alone needs it."
    text = source(cell)
    m = marks(text)
    if set(DROP) & set(m):
        return None
    keep = {k: v for k, v in m.items() if k in QUARTO}
    if {"export", "exports"} & set(m):
        keep["classes"] = "export"
    outputs, cap, alt = [], said(m.get("fig-cap", "")), said(m.get("fig-alt", ""))
    for o in cell["outputs"]:
        data = {
            k: v for k, v in o.get("data", {}).items() if "widget" not in k
        }  # a widget wants a kernel, and its script another server
        if "data" in o and not set(data) - {"text/plain"} and data != o["data"]:
            continue
        if "data" in o:
            o = dict(o, data=data)
        if "text/html" in data and "image/png" not in data:
            o = dict(
                output_type="display_data",
                metadata={},
                data={"text/markdown": figure("".join(data["text/html"]), cap, alt)},
            )
            keep.pop("fig-cap", None), keep.pop("fig-alt", None)
            cap = ""
        outputs.append(o)
    head = "".join(f"#| {k}: {v}\n" for k, v in keep.items())
    return dict(cell, source=head + body(text), outputs=outputs)


def is_imports(text: str) -> bool:
    "Nothing but imports: a page folds them."
    lines = [l for l in body(text).splitlines() if l.strip() and not l.startswith((" ", ")", "#"))]
    return bool(lines) and all(l.startswith(("import ", "from ")) for l in lines)


def folded(cells: list[dict]) -> list[dict]:
    "Code before a chapter's first picture becomes one folded block beneath its title, so that the page opens with the picture; later imports fold, too."
    code = [i for i, c in enumerate(cells) if c["cell_type"] == "code"]
    first = next(
        (
            i
            for i in code
            if any(
                "image/png" in o.get("data", {}) or "text/markdown" in o.get("data", {})
                for o in cells[i]["outputs"]
            )
        ),
        None,
    )
    opening = []
    if first is not None:
        opening = [
            i for i in code if i <= first and all(cells[j]["cell_type"] == "code" for j in range(i, first))
        ]
    out = []
    for i, c in enumerate(cells):
        if i in opening[:-1] and not c["outputs"]:
            continue
        if opening and i == opening[-1]:
            parts = [c for j in opening[:-1] for c in [cells[j]] if not c["outputs"]] + [c]
            m = {k: v for k, v in marks(source(c)).items() if k != "classes"}
            if m.get("echo") != "false":
                m |= {"code-fold": "true", "code-summary": '"Imports, and the code of this picture"'}
            head = "".join(f"#| {k}: {v}\n" for k, v in m.items())
            c = dict(c, source=head + "\n\n".join(body(source(p)) for p in parts))
        elif c["cell_type"] == "code" and not c["outputs"] and is_imports(source(c)):
            if out and '"Imports"' in source(out[-1]):
                out[-1] = dict(out[-1], source=source(out[-1]) + "\n\n" + body(source(c)))
                continue
            c = dict(c, source='#| code-fold: true\n#| code-summary: "Imports"\n' + body(source(c)))
        out.append(c)
    return out


def page(nb: dict) -> dict:
    "The notebook that Quarto renders."
    head, rest = front(nb["cells"][0])
    cells = [head] + (
        [dict(cell_type="markdown", id="opening", metadata={}, source=linked(rest))] if rest else []
    )
    for cell in nb["cells"][1:]:
        if cell.get("id") == "colab-badge":
            cells.append(dict(cell, source=facts(source(cell), nb)))
        elif cell["cell_type"] == "markdown":
            cells.append(dict(cell, source=linked(source(cell))))
        elif cell["cell_type"] == "code":
            cells += [c for c in [code_cell(cell)] if c]
        else:
            cells.append(cell)
    nb = dict(nb, metadata={k: v for k, v in nb["metadata"].items() if k != "widgets"})
    return dict(
        nb, cells=[dict(c, source=source(c).splitlines(keepends=True)) for c in folded(cells)]
    )  # Quarto wants lists of lines


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    json.dump(page(json.loads(sys.stdin.buffer.read().decode("utf-8"))), sys.stdout, ensure_ascii=False)
