"""Run a notebook as a diligent reader does: after each exercise its folded solution, and the check.

python tests/solve.py chapter.ipynb"""

import copy
import re
import sys

import nbdev.test
from nbdev.process import NBProcessor

FOLDED = re.compile(r"<details><summary>Solution.*?```python\n(.*?)```.*?</details>", re.S)
DEFINED = re.compile(r"^(?:def|class) (\w+)", re.M)
CHECK = re.compile(r"^def (check\w*)\(\w+", re.M)
STUB_FAILS = """\
try:
    {check}({name})
except Exception:
    pass
else:
    raise AssertionError("{check} lets the empty stub pass")
"""


def is_exercise(cell) -> bool:
    "Whether a cell holds a stub and the `check` that judges it."
    return cell.cell_type == "code" and CHECK.search(cell.source) and not cell.source.startswith("#| export")


def solving_code(stub: str, solution: str) -> str:
    "Code that shows that the stub fails its check, solves the exercise, and checks that."
    check = CHECK.search(stub)[1]
    solved = DEFINED.findall(solution)
    names = [name for name in DEFINED.findall(stub) if name in solved]
    assert names, f"the solution defines nothing of the stub's: {solution[:60]!r}"
    return STUB_FAILS.format(check=check, name=names[0]) + f"{solution}\n{check}({names[0]})"


def solutions(cells) -> dict[int, str]:
    "Index of each exercise's cell -> code that solves it."
    found = {}
    exercise = None
    for i, cell in enumerate(cells):
        if is_exercise(cell):
            exercise = i
        if cell.cell_type != "markdown":
            continue
        for solution in FOLDED.findall(cell.source):
            assert exercise is not None, f"a solution without an exercise before it: {solution[:60]!r}"
            found[exercise] = solving_code(cells[exercise].source, solution)
            exercise = None
    return found


def solved(*args, **kwargs) -> NBProcessor:
    "A notebook with its exercises done; takes what nbdev's `NBProcessor` takes."
    notebook = NBProcessor(*args, **kwargs)
    cells = notebook.nb.cells
    for i, code in sorted(solutions(cells).items(), reverse=True):
        cell = copy.deepcopy(cells[i])
        cell.source = code
        cell.id = cell.get("id", "") + "s"
        cell.directives_ = {}
        cells.insert(i + 1, cell)
    return notebook


if __name__ == "__main__":
    nbdev.test.NBProcessor = solved
    passed, _ = nbdev.test.test_nb(sys.argv[1], skip_flags=["notest", "cuda"])
    sys.exit(0 if passed else 1)
