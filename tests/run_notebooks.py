"Run notebooks from the top, each on a fresh shell, and save their outputs: `python tests/run_notebooks.py nbs/*.ipynb`."
import os, sys, time
from pathlib import Path
from execnb.shell import CaptureShell

if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        here, start = os.getcwd(), time.time()
        shell = CaptureShell(path.parent)
        os.chdir(path.parent)   # as Jupyter does
        try: shell.execute(path.name, path.name, exc_stop=True)
        finally: os.chdir(here)
        print(f"{path}: {time.time() - start:.0f} s")
        if shell.exc: sys.exit(f"{path} failed: {shell.exc}")
