"Run notebooks from the top, each on a fresh shell, and save their outputs: `python tests/run_notebooks.py nbs/*.ipynb`."

import json
import os
import sys
import time
from pathlib import Path

from execnb.shell import CaptureShell

KERNEL = dict(display_name="python3", language="python", name="python3")


def tidy(path: Path):
    "Drop what was said on stderr (progress bars, libraries' advice): it is of the moment, not of the chapter."
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    nb["metadata"]["kernelspec"] = KERNEL
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        here, start = os.getcwd(), time.time()
        shell = CaptureShell(path.parent)
        os.chdir(path.parent)  # as Jupyter does
        try:
            shell.execute(path.name, path.name, exc_stop=True)
        finally:
            os.chdir(here)
        tidy(path)
        print(f"{path}: {time.time() - start:.0f} s", flush=True)
