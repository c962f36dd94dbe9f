"""Write `api/`, the reference: a page for each module, from its signatures, docments and docstrings. Nothing is imported, so it takes no time.

Quarto runs this before it renders (`pre-render` in `_quarto.yml`); `tests/test_docs.py` checks that every public name is there."""

import ast
import html
import io
import json
import re
import tokenize
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tune_a_video_nbs"


@lru_cache
def modules() -> dict:
    "Name -> path, in the order of the chapters that export them."
    found = {}
    for path in PACKAGE.glob("*.py"):
        made = re.search(r"File to edit: \.\./nbs/(\w+)\.ipynb", path.read_text(encoding="utf-8"))
        if made:
            found[path.stem] = made[1]
    return dict(sorted(found.items(), key=lambda kv: kv[1]))


@lru_cache
def tree(name: str) -> ast.Module:
    return ast.parse(text(name))


@lru_cache
def text(name: str) -> str:
    return (PACKAGE / f"{name}.py").read_text(encoding="utf-8")


@lru_cache
def comments(name: str) -> dict:
    "Line number -> the comment on that line."
    tokens = tokenize.generate_tokens(io.StringIO(text(name)).readline)
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


@lru_cache
def public(name: str) -> tuple:
    "A module's `__all__`."
    return next(
        tuple(ast.literal_eval(n.value))
        for n in tree(name).body
        if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
    )


def public_names() -> dict:
    "Every public name -> its module; a name that two modules share keeps the first."
    names = {}
    for module in modules():
        for name in public(module):
            names.setdefault(name, module)
    return names


def defined(name: str) -> dict:
    "A module's top-level functions, classes and constants."
    found = {}
    for node in tree(name).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        if isinstance(node, ast.AnnAssign):
            found[node.target.id] = node
        for t in getattr(node, "targets", []):
            for e in getattr(t, "elts", [t]):
                if isinstance(e, ast.Name):
                    found[e.id] = node
    return found


def parameters(fn: ast.FunctionDef, method: bool) -> list[dict]:
    "Name, annotation, default of each parameter, and the line it ends on."
    a = fn.args
    plain = a.posonlyargs + a.args
    defaults = [None] * (len(plain) - len(a.defaults)) + list(a.defaults)
    rows = list(zip([p.arg for p in plain], plain, defaults))
    if a.vararg:
        rows.append(("*" + a.vararg.arg, a.vararg, None))
    rows += [(p.arg, p, d) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg:
        rows.append(("**" + a.kwarg.arg, a.kwarg, None))
    if method and rows and rows[0][0] in ("self", "cls"):
        rows = rows[1:]

    def show(node):
        return ast.unparse(node) if node is not None else ""

    return [
        dict(name=n, type=show(p.annotation), default=show(d), line=(d or p).end_lineno) for n, p, d in rows
    ]


def returns(fn: ast.FunctionDef, module: str) -> tuple[str, str]:
    "The annotation of what comes back, and its comment."
    return (
        (ast.unparse(fn.returns), comments(module).get(fn.returns.end_lineno, ""))
        if fn.returns is not None
        else ("", "")
    )


def cell(s: str) -> str:
    return s.replace("|", "\\|").replace("\n", " ")


def code(s: str) -> str:  # in a table a bar would end the cell, and after a backslash it would show it
    return "" if not s else f"<code>{html.escape(s).replace('|', '&#124;')}</code>" if "|" in s else f"`{s}`"


def signature(name: str, fn: ast.FunctionDef, method: bool) -> str:
    "One line, or one parameter a line where that is too long."
    parts = [
        p["name"]
        + (": " + p["type"] if p["type"] else "")
        + ((" = " if p["type"] else "=") + p["default"] if p["default"] else "")
        for p in parameters(fn, method)
    ]
    tail = f" -> {ast.unparse(fn.returns)}" if fn.returns else ""
    flat = f"{name}({', '.join(parts)}){tail}"
    return flat if len(flat) < 90 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){tail}"


def function(name: str, fn: ast.FunctionDef, module: str, method=False) -> list[str]:
    "Signature, docstring, and a table where a comment says more than the signature."
    lines = ["```python", signature(name, fn, method), "```", "", safe(ast.get_docstring(fn) or ""), ""]
    notes, rows, back = comments(module), parameters(fn, method), returns(fn, module)
    if not rows or rows[-1]["line"] == fn.lineno:  # all on one line: its comment speaks of everything
        return lines + ([safe(notes[fn.lineno]) + ".", ""] if fn.lineno in notes else [])
    last = {
        p["line"]: i for i, p in enumerate(rows)
    }  # several on a line: the comment stands with the last of them
    told = [notes.get(p["line"], "") if last[p["line"]] == i else "" for i, p in enumerate(rows)]
    if any(told) or back[1]:
        lines += ["::: {.params}", "", "| | type | default | |", "|:---|:----|:---|:---------|"]
        lines += [
            f"| {code(p['name'])} | {code(p['type'])} | {code(p['default'])} | {safe(cell(note))} |"
            for p, note in zip(rows, told)
        ]
        if any(back):
            lines += [f"| *returns* | {code(back[0])} | | {safe(cell(back[1]))} |"]
        lines += ["", ":::", ""]
    return lines


def safe(s: str) -> str:
    "A docstring or comment as Markdown: what looks like math or HTML is not; code stays code."
    parts = re.split(r"(`[^`]*`)", s)
    return "".join(p if p.startswith("`") else re.sub(r"([$<*_\[\]^~@])", r"\\\1", p) for p in parts)


def klass(name: str, node: ast.ClassDef, module: str) -> list[str]:
    "Docstring, constructor, fields, and public methods; `a, b = _a, _b` in a class body counts as methods."
    methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    top = defined(module)
    for n in node.body:
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Tuple):
            for t, v in zip(n.targets[0].elts, getattr(n.value, "elts", [])):
                if isinstance(v, ast.Name) and isinstance(top.get(v.id), ast.FunctionDef):
                    methods[t.id] = top[v.id]
    bases = ", ".join(ast.unparse(b) for b in node.bases)
    lines = [
        "```python",
        f"class {name}" + (f"({bases})" if bases else ""),
        "```",
        "",
        safe(ast.get_docstring(node) or ""),
        "",
    ]
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    if fields:
        lines += ["| field | type | |", "|:---|:----|:---------|"]
        lines += [
            f"| {code(ast.unparse(n.target))} | {code(ast.unparse(n.annotation))} | {safe(cell(comments(module).get(n.end_lineno, '')))} |"
            for n in fields
        ] + [""]
    for m, fn in methods.items():
        if m.startswith("_") and m not in ("__init__", "__call__"):
            continue
        if m == "__init__" and not parameters(fn, True):
            continue
        shown = name if m == "__init__" else m
        lines += [
            f"### {name}{'' if m == '__init__' else '.' + m.replace('_', chr(92) + '_')} {{#{name}.{m} .unnumbered}}",
            "",
        ] + function(shown, fn, module, method=True)
    return lines


def constant(name: str, node, module: str) -> list[str]:
    value = ast.get_source_segment(text(module), node)
    if len(value) > 600:
        value = value[:600].rsplit("\n", 1)[0] + "\n..."
    return ["```python", value, "```", "", safe(comments(module).get(node.end_lineno, "")), ""]


def summary(name: str, module: str) -> str:
    "The first sentence of a docstring, or a constant's comment."
    node = defined(module)[name]
    said = (
        ast.get_docstring(node)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        else comments(module).get(node.end_lineno, "")
    )
    return re.split(r"(?<=\.)\s", (said or "").replace("\n", " "))[0]


def chapter_title(stem: str) -> str:
    return (
        "".join(json.loads((ROOT / f"nbs/{stem}.ipynb").read_text(encoding="utf-8"))["cells"][0]["source"])
        .splitlines()[0]
        .removeprefix("# ")
    )


def module_page(module: str) -> str:
    "One module as Markdown."
    doc, stem, top = (
        (ast.get_docstring(tree(module)) or "").split("\n\nDocs:")[0],
        modules()[module],
        defined(module),
    )
    lines = [
        "---",
        f'title: "{module}"',
        f"subtitle: {json.dumps(doc, ensure_ascii=False)}",
        f"description: {json.dumps('Reference of tune_a_video_nbs.' + module + '. ' + doc, ensure_ascii=False)}",
        "repo-actions: false",
        "---",
        "",
        "<!-- Made by web/make_api.py -->",
        "",
        f"Exported from [{chapter_title(stem)}](../nbs/{stem}.ipynb), where each is built and tested. `from tune_a_video_nbs.{module} import ...`",
        "",
    ]
    for name in public(module):
        node = top[name]
        lines += [f"## {name.replace('_', chr(92) + '_')} {{#{name}}}", ""]
        if isinstance(node, ast.FunctionDef):
            lines += function(name, node, module)
        elif isinstance(node, ast.ClassDef):
            lines += klass(name, node, module)
        else:
            lines += constant(name, node, module)
    return "\n".join(lines)


def index_page() -> str:
    "All modules and their names, each with its first sentence."
    lines = [
        "---",
        'title: "Reference"',
        'subtitle: "Every public name, by module. A chapter is a module: each page links to where its names are built."',
        'description: "Every public name of tune_a_video_nbs, by module."',
        "repo-actions: false",
        "---",
        "",
        "<!-- Made by web/make_api.py -->",
        "",
    ]
    for module in modules():
        lines += [f"## [{module}]({module}.qmd) {{#{module}}}", "", "| | |", "|:----|:---------|"]
        lines += [
            f"| [`{n}`]({module}.qmd#{n}) | {safe(cell(summary(n, module)))} |" for n in public(module)
        ] + [""]
    return "\n".join(lines)


def pages() -> dict:
    "File name -> text, of the whole reference."
    return {"index.qmd": index_page()} | {f"{m}.qmd": module_page(m) for m in modules()}


if __name__ == "__main__":
    out = ROOT / "api"
    out.mkdir(exist_ok=True)
    new = pages()
    for old in out.glob("*.qmd"):
        if old.name not in new:
            old.unlink()
    for name, page in new.items():
        if not (out / name).exists() or (out / name).read_text(encoding="utf-8") != page:
            (out / name).write_text(page, encoding="utf-8")
