"""Measure the house: who imports whom, how long each module is, and the counts that tell dense code
from plain.

`python tests/house.py` prints it; tests/test_house.py holds it to its rules.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "tune_a_video_nbs"
MOST_LINES = 330  # of a module: about 300 of its own, and nbdev's marks
WIDTH = 110
WORKSHOP = range(80, 100)  # chapters that stand under all others, though they come last on the site


@dataclass
class Module:
    "What one module is made of."

    name: str
    lines: int
    imports: set[str] = field(default_factory=set)  # modules of ours
    private_imports: list[str] = field(default_factory=list)  # names with an underscore, from modules of ours
    one_line_blocks: int = 0
    semicolons: int = 0
    lambdas: int = 0
    named_lambdas: int = 0
    wide_lines: int = 0
    bare_parameters: list[str] = field(default_factory=list)  # without an annotation


COUNTS = ("one_line_blocks", "semicolons", "named_lambdas", "lambdas", "wide_lines", "bare_parameters")


def chapter_numbers() -> dict[str, int]:
    """Return the place of each module in the house, the lowest floor first:

    The workshop, then chapter by chapter.
    """
    order = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        number = int(path.stem[:2])
        in_workshop = number in WORKSHOP
        order[path.stem[3:]] = (0 if in_workshop else 1, path.stem)
    ranked = sorted(order, key=lambda name: order[name])
    return {name: rank for rank, name in enumerate(ranked)}


def imported_modules(node: ast.AST) -> list[tuple[str, list[str]]]:
    "Return (module of ours, names taken from it) of an import statement."
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        names = [alias.name for alias in node.names]
        if node.level == 1 and module:
            return [(module, names)]
        if node.level == 1:
            return [(name, []) for name in names]
        if module.startswith(PACKAGE + "."):
            return [(module.removeprefix(PACKAGE + "."), names)]
    if isinstance(node, ast.Import):
        ours = [alias.name for alias in node.names if alias.name.startswith(PACKAGE + ".")]
        return [(name.removeprefix(PACKAGE + "."), []) for name in ours]
    return []


def bare_parameters(function: ast.FunctionDef) -> list[str]:
    "Return the parameters of a function that say nothing of their type."
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    skipped = ("self", "cls", "ctx")
    return [f"{function.name}:{a.arg}" for a in named if a.annotation is None and a.arg not in skipped]


def is_one_line_block(node: ast.AST) -> bool:
    "Return whether a compound statement has its body on its own line."
    compound = (
        ast.If,
        ast.For,
        ast.While,
        ast.With,
        ast.Try,
        ast.FunctionDef,
        ast.ClassDef,
        ast.ExceptHandler,
    )
    return isinstance(node, compound) and bool(node.body) and node.body[0].lineno == node.lineno


def measure(path: Path) -> Module:
    "Read one module."
    text = path.read_text(encoding="utf-8")
    found = Module(path.stem, text.count("\n"))
    for node in ast.walk(ast.parse(text)):
        for module, names in imported_modules(node):
            found.imports.add(module.split(".")[0])
            found.private_imports += [f"{module}.{n}" for n in names if n.startswith("_")]
        found.one_line_blocks += is_one_line_block(node)
        found.lambdas += isinstance(node, ast.Lambda)
        found.named_lambdas += isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
        if isinstance(node, ast.FunctionDef):
            found.bare_parameters += bare_parameters(node)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found.semicolons = sum(token.type == tokenize.OP and token.string == ";" for token in tokens)
    own_text = re.sub(r"^__all__ = \[.*?\]$", "", text, flags=re.M | re.S)  # nbdev's own lines
    found.wide_lines = sum(len(line) > WIDTH for line in own_text.split("\n"))
    return found


def house() -> list[Module]:
    "Return every module, the lowest floor first."
    order = chapter_numbers()
    modules = [measure(ROOT / PACKAGE / f"{name}.py") for name in order]
    for module in modules:
        module.imports &= set(order)
    return modules


def upward_imports(modules: list[Module]) -> list[str]:
    "Return imports of a module that stands beside or above."
    order = chapter_numbers()
    return [
        f"{module.name} imports {other}"
        for module in modules
        for other in sorted(module.imports)
        if order[other] >= order[module.name]
    ]


def count(module: Module, name: str) -> int:
    "Return one of the `COUNTS`."
    value = getattr(module, name)
    return value if isinstance(value, int) else len(value)


def report(modules: list[Module]) -> str:
    "Return the house as a table, and who imports whom."
    head = ["module", "lines", *(name.replace("_", " ") for name in COUNTS)]
    rows = [[m.name, str(m.lines), *(str(count(m, name)) for name in COUNTS)] for m in modules]
    totals = [str(sum(count(m, name) for m in modules)) for name in COUNTS]
    rows.append(["all", str(sum(m.lines for m in modules)), *totals])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *rows]
    ]
    lines.append("")
    lines += [f"{m.name}: {', '.join(sorted(m.imports)) or '-'}" for m in modules]
    lines.append(f"\nimports that do not point downward: {upward_imports(modules) or 'none'}")
    lines.append(f"private names across walls: {[n for m in modules for n in m.private_imports] or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(house()))
