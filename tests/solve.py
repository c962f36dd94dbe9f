"Run a notebook as a diligent reader does: after each exercise its folded solution, and the check. `python tests/solve.py chapter.ipynb`."

import copy
import re
import sys

import nbdev.test
from nbdev.process import NBProcessor

FOLDED = re.compile(r"<details><summary>Solution.*?```python\n(.*?)```.*?</details>", re.S)
UNSOLVED = """try: {check}({mine})
except Exception: pass
else: raise AssertionError("{check} lets the empty stub pass")
"""
NAMES = re.compile(r"^(?:def|class) (\w+)", re.M)


def solutions(cells):
    "Index of each exercise's cell (a stub, and the `check` that judges it) -> code that solves and checks it."
    found, stub = {}, None
    for i, c in enumerate(cells):
        if (
            c.cell_type == "code"
            and re.search(r"^def check\w*\(\w+", c.source, re.M)
            and not c.source.startswith("#| export")
        ):
            stub = i
        for code in FOLDED.findall(c.source) if c.cell_type == "markdown" else ():
            assert stub is not None, f"a solution without an exercise before it: {code[:60]!r}"
            mine, check = (
                next((n for n in NAMES.findall(cells[stub].source) if n in NAMES.findall(code)), None),
                re.search(r"def (check\w*)\(", cells[stub].source)[1],
            )
            assert mine, f"the solution defines nothing of the stub's: {code[:60]!r}"
            found[stub], stub = UNSOLVED.format(check=check, mine=mine) + f"{code}\n{check}({mine})", None
    return found


def solved(*args, **kwargs):
    "A notebook with its exercises done."
    notebook = NBProcessor(*args, **kwargs)
    cells = notebook.nb.cells
    for i, code in sorted(solutions(cells).items(), reverse=True):
        cell = copy.deepcopy(cells[i])
        cell.source, cell.id, cell.directives_ = code, cell.get("id", "") + "s", {}
        cells.insert(i + 1, cell)
    return notebook


if __name__ == "__main__":
    nbdev.test.NBProcessor = solved
    sys.exit(not nbdev.test.test_nb(sys.argv[1], skip_flags=["notest", "cuda"])[0])
