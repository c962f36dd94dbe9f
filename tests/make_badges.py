"Give every chapter its *Open in Colab* badge and the cell that installs the library there."

import json
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPO = PYPROJECT["project"]["urls"]["Repository"]
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
COLAB = "https://colab.research.google.com"
IDS = ("colab-badge", "colab-setup")
SETUP = f"""#| hide
import importlib.util

if importlib.util.find_spec("tune_a_video_nbs") is None:  # in Colab
    %pip install -q git+{REPO}"""


def cells(path: Path) -> list[dict]:
    "The badge and the setup cell of one chapter."
    repo = REPO.removeprefix("https://").replace("github.com", "github")
    address = f"{COLAB}/{repo}/blob/main/nbs/{path.name}"
    badge = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({address})"
    markdown = dict(cell_type="markdown", id=IDS[0], metadata={}, source=badge.splitlines(keepends=True))
    code = dict(
        cell_type="code",
        id=IDS[1],
        execution_count=None,
        metadata={},
        outputs=[],
        source=SETUP.splitlines(keepends=True),
    )
    return [markdown, code]


def with_badge(path: Path) -> dict:
    "The notebook, these two cells right after its title."
    nb = json.loads(path.read_text(encoding="utf-8"))
    title, *rest = [cell for cell in nb["cells"] if cell.get("id") not in IDS]
    return nb | {"cells": [title, *cells(path), *rest]}


if __name__ == "__main__":
    for path in CHAPTERS:
        path.write_text(json.dumps(with_badge(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
