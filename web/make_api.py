"""Write `api/`, the reference: a page for each module, from its signatures, docments and docstrings.

Nothing is imported. Quarto runs this before it renders (`pre-render` in `_quarto.yml`); `tests/test_docs.py`
checks that every public name is there."""

import ast
import html
import io
import json
import re
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tune_a_video_nbs"
LONGEST_SIGNATURE = 90  # characters on one line
LONGEST_CONSTANT = 600  # characters of its code
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Parameter(NamedTuple):
    name: str
    type: str
    default: str
    line: int  # on which it ends, and its comment stands


# Reading a module.


@lru_cache
def modules() -> dict[str, str]:
    "Module -> stem of the chapter that exports it, in the order of the chapters."
    found = {}
    for path in PACKAGE.glob("*.py"):
        made = re.search(r"File to edit: \.\./nbs/(\w+)\.ipynb", path.read_text(encoding="utf-8"))
        if made:
            found[path.stem] = made[1]
    return dict(sorted(found.items(), key=lambda item: item[1]))


@lru_cache
def text(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


@lru_cache
def tree(module: str) -> ast.Module:
    return ast.parse(text(module))


@lru_cache
def comments(module: str) -> dict[int, str]:
    "Line number -> the comment on that line."
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text(module)).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = token.string.lstrip("# ").rstrip()
    return found


@lru_cache
def public(module: str) -> tuple[str, ...]:
    """The names of a module's `__all__` that are defined there; what it only passes on stands where it is
    built."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(name for name in ast.literal_eval(node.value) if name in defined(module))
    raise ValueError(f"{module}.py has no __all__")


@lru_cache
def public_names() -> dict[str, str]:
    "Every public name -> its module; a name that two modules share keeps the first."
    names = {}
    for module in modules():
        for name in public(module):
            names.setdefault(name, module)
    return names


@lru_cache
def defined(module: str) -> dict[str, ast.stmt]:
    "A module's top-level functions, classes and constants."
    found = {}
    for node in tree(module).body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            found[ast.unparse(node.target)] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for part in getattr(target, "elts", [target]):
                    found[ast.unparse(part)] = node
    return found


def unparse(node: ast.AST | None) -> str:
    return "" if node is None else ast.unparse(node)


def parameters(function: ast.FunctionDef, is_method: bool) -> list[Parameter]:
    "The parameters of a function; of a method, without the first."
    args = function.args
    plain = args.posonlyargs + args.args
    missing = [None] * (len(plain) - len(args.defaults))
    rows = list(zip([arg.arg for arg in plain], plain, missing + args.defaults, strict=True))
    if args.vararg:
        rows.append(("*" + args.vararg.arg, args.vararg, None))
    rows += [(arg.arg, arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        rows.append(("**" + args.kwarg.arg, args.kwarg, None))
    if is_method and rows and rows[0][0] in ("self", "cls"):
        rows = rows[1:]
    found = []
    for name, arg, default in rows:
        last = arg if default is None else default
        found.append(Parameter(name, unparse(arg.annotation), unparse(default), last.end_lineno))
    return found


def parameter_notes(rows: list[Parameter], module: str) -> list[str]:
    "The comment of each parameter; where several share a line, it stands with the last of them."
    last_on_line = {row.line: row for row in rows}
    notes = []
    for row in rows:
        is_last = last_on_line[row.line] is row
        notes.append(comments(module).get(row.line, "") if is_last else "")
    return notes


def returns(function: ast.FunctionDef, module: str) -> tuple[str, str]:
    "The annotation of what comes back, and its comment."
    if function.returns is None:
        return "", ""
    return ast.unparse(function.returns), comments(module).get(function.returns.end_lineno, "")


# Markdown.


def safe(words: str) -> str:
    "A docstring or comment as Markdown: what looks like math or HTML is not; code stays code."
    parts = re.split(r"(`[^`]*`)", words)
    escaped = [part if part.startswith("`") else re.sub(r"([$<*_\[\]^~@])", r"\\\1", part) for part in parts]
    return "".join(escaped)


def cell(words: str) -> str:
    "Words as a cell of a Markdown table."
    return words.replace("|", "\\|").replace("\n", " ")


def code(words: str) -> str:
    "Code as a cell of a table, where a bar would end the cell, and a backslash before it would be shown."
    if not words:
        return ""
    if "|" in words:
        return f"<code>{html.escape(words).replace('|', '&#124;')}</code>"
    return f"`{words}`"


def heading(name: str) -> str:
    "A name as a heading: an underscore is no emphasis."
    return name.replace("_", "\\_")


def code_block(words: str) -> list[str]:
    return ["```python", words, "```", ""]


def front_matter(title: str, subtitle: str, description: str) -> list[str]:
    "The top of a page."
    return [
        "---",
        f"title: {json.dumps(title, ensure_ascii=False)}",
        f"subtitle: {json.dumps(subtitle, ensure_ascii=False)}",
        f"description: {json.dumps(description, ensure_ascii=False)}",
        "repo-actions: false",
        "---",
        "",
        "<!-- Made by web/make_api.py -->",
        "",
    ]


# What is written of functions, classes and constants.


def signature(name: str, function: ast.FunctionDef, is_method: bool) -> str:
    "One line, or one parameter a line where that is too long."
    parts = []
    for row in parameters(function, is_method):
        part = f"{row.name}: {row.type}" if row.type else row.name
        if row.default:
            part += f" = {row.default}" if row.type else f"={row.default}"
        parts.append(part)
    back = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    line = f"{name}({', '.join(parts)}){back}"
    if len(line) < LONGEST_SIGNATURE:
        return line
    return f"{name}(\n    " + ",\n    ".join(parts) + f",\n){back}"


def function_lines(name: str, function: ast.FunctionDef, module: str, is_method: bool = False) -> list[str]:
    "Signature, docstring, and a table where a comment says more than the signature."
    lines = code_block(signature(name, function, is_method))
    lines += [safe(ast.get_docstring(function) or ""), ""]
    rows = parameters(function, is_method)
    is_one_line = not rows or rows[-1].line == function.lineno
    if is_one_line:  # its comment speaks of everything
        note = comments(module).get(function.lineno)
        return lines + ([safe(note) + ".", ""] if note else [])
    notes = parameter_notes(rows, module)
    back_type, back_note = returns(function, module)
    if not any(notes) and not back_note:
        return lines
    lines += ["::: {.params}", "", "| | type | default | |", "|:---|:----|:---|:---------|"]
    for row, note in zip(rows, notes, strict=True):
        lines.append(f"| {code(row.name)} | {code(row.type)} | {code(row.default)} | {safe(cell(note))} |")
    if back_type:
        lines.append(f"| *returns* | {code(back_type)} | | {safe(cell(back_note))} |")
    return lines + ["", ":::", ""]


def class_lines(name: str, node: ast.ClassDef, module: str) -> list[str]:
    "Docstring, fields, constructor and public methods."
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    lines = code_block(f"class {name}({bases})" if bases else f"class {name}")
    lines += [safe(ast.get_docstring(node) or ""), ""]
    fields = [child for child in node.body if isinstance(child, ast.AnnAssign)]
    if fields:
        lines += ["| field | type | |", "|:---|:----|:---------|"]
        for field in fields:
            target = code(ast.unparse(field.target))
            type_ = code(ast.unparse(field.annotation))
            note = safe(cell(comments(module).get(field.end_lineno, "")))
            lines.append(f"| {target} | {type_} | {note} |")
        lines.append("")
    for child in node.body:
        if isinstance(child, FUNCTION):
            lines += method_lines(name, child, module)
    return lines


def method_lines(owner: str, method: ast.FunctionDef, module: str) -> list[str]:
    "A method under a heading of its own; nothing of a private one, or of a constructor without parameters."
    name = method.name
    if name == "__init__":
        if not parameters(method, True):
            return []
        title = owner
        shown = owner
    elif name.startswith("_") and name != "__call__":
        return []
    else:
        title = f"{owner}.{heading(name)}"
        shown = name
    lines = [f"### {title} {{#{owner}.{name} .unnumbered}}", ""]
    return lines + function_lines(shown, method, module, is_method=True)


def constant_lines(node: ast.stmt, module: str) -> list[str]:
    "The code of a constant, cut where it is long, and its comment."
    value = ast.get_source_segment(text(module), node)
    if len(value) > LONGEST_CONSTANT:
        value = value[:LONGEST_CONSTANT].rsplit("\n", 1)[0] + "\n..."
    return code_block(value) + [safe(comments(module).get(node.end_lineno, "")), ""]


def summary(name: str, module: str) -> str:
    "The first sentence of a docstring, or a constant's comment."
    node = defined(module)[name]
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        words = ast.get_docstring(node) or ""
    else:
        words = comments(module).get(node.end_lineno, "")
    return re.split(r"(?<=\.)\s", words.replace("\n", " "))[0]


# Pages.


def chapter_title(stem: str) -> str:
    cells = json.loads((ROOT / f"nbs/{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")


def module_page(module: str) -> str:
    "One module as Markdown."
    about = (ast.get_docstring(tree(module)) or "").split("\n\nDocs:")[0]
    stem = modules()[module]
    lines = front_matter(module, about, f"Reference of tune_a_video_nbs.{module}. {about}")
    chapter = f"[{chapter_title(stem)}](../nbs/{stem}.ipynb)"
    how = f"`from tune_a_video_nbs.{module} import ...`"
    lines += [f"Exported from {chapter}, where each is built and tested. {how}", ""]
    for name in public(module):
        node = defined(module)[name]
        lines += [f"## {heading(name)} {{#{name}}}", ""]
        if isinstance(node, FUNCTION):
            lines += function_lines(name, node, module)
        elif isinstance(node, ast.ClassDef):
            lines += class_lines(name, node, module)
        else:
            lines += constant_lines(node, module)
    return "\n".join(lines)


def index_page() -> str:
    "All modules and their names, each with its first sentence."
    lines = front_matter(
        "Reference",
        "Every public name, by module. A chapter is a module: each page links to where its names are built.",
        "Every public name of tune_a_video_nbs, by module.",
    )
    for module in modules():
        lines += [f"## [{module}]({module}.qmd) {{#{module}}}", "", "| | |", "|:----|:---------|"]
        for name in public(module):
            lines.append(f"| [`{name}`]({module}.qmd#{name}) | {safe(cell(summary(name, module)))} |")
        lines.append("")
    return "\n".join(lines)


def pages() -> dict[str, str]:
    "File name -> text, of the whole reference."
    return {"index.qmd": index_page()} | {f"{module}.qmd": module_page(module) for module in modules()}


def write_if_new(path: Path, words: str) -> None:
    "Write a file unless it holds these words already: Quarto renders again what has changed."
    if not path.exists() or path.read_text(encoding="utf-8") != words:
        path.write_text(words, encoding="utf-8")


if __name__ == "__main__":
    folder = ROOT / "api"
    folder.mkdir(exist_ok=True)
    made = pages()
    for old in folder.glob("*.qmd"):
        if old.name not in made:
            old.unlink()
    for name, words in made.items():
        write_if_new(folder / name, words)
