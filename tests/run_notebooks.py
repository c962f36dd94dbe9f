"Run notebooks from the top, each on a fresh shell, and save their outputs: `run_notebooks.py nbs/*.ipynb`."

import json
import os
import sys
import time
from pathlib import Path

from execnb.shell import CaptureShell

KERNEL = dict(display_name="python3", language="python", name="python3")


def run(path: Path) -> None:
    "Run a notebook in its folder, as Jupyter does, and stop at the first error."
    home = os.getcwd()
    shell = CaptureShell(path.parent)
    os.chdir(path.parent)
    try:
        shell.execute(path.name, path.name, exc_stop=True)
    finally:
        os.chdir(home)


def tidy(path: Path) -> None:
    "Drop what was said on stderr (progress bars, libraries' advice): it is of the moment."
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    nb["metadata"]["kernelspec"] = KERNEL
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        start = time.time()
        run(path)
        tidy(path)
        print(f"{path}: {time.time() - start:.0f} s", flush=True)
