"""Every chapter runs from the top on a fresh process, is clean, exports what the package holds, and
stays small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_with_its_exercises_solved(path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "solve.py"), path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_saved_with_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert outputs, f"{path.name} has no saved output: make notebooks"
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert path.stat().st_size < 2_000_000


def test_package_is_what_the_notebooks_export():
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        name = next((s.split()[-1] for s in code if s.startswith("#| default_exp")), None)
        if name is None:
            continue
        module = (ROOT / "tune_a_video_nbs" / f"{name}.py").read_text(encoding="utf-8")
        for source in code:
            if source.startswith("#| export"):
                body = source.split("\n", 1)[1].strip()
                assert body.split("from tune_a_video_nbs")[0].strip() in module, (
                    f"{path.name} and {name}.py differ: make export"
                )


def test_every_chapter_opens_in_colab():
    from make_badges import CHAPTERS, with_badge

    for path in CHAPTERS:
        assert with_badge(path)["cells"] == json.loads(path.read_text(encoding="utf-8"))["cells"], (
            f"{path.name}: make export"
        )


def test_readme_is_made_from_the_index():
    from make_readme import readme

    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(), "make export writes README.md"
