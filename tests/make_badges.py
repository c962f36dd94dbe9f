"Give every chapter its *Open in Colab* badge and the cell that installs the library there; the address is pyproject.toml's."

import json
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parent.parent
REPO = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
SETUP = f"""#| hide
import importlib.util
if importlib.util.find_spec("tune_a_video_nbs") is None:   # in Colab
    %pip install -q git+{REPO}"""


def cells(path: Path) -> list[dict]:
    "The badge and the setup cell of one chapter."
    colab = f"https://colab.research.google.com/{REPO.removeprefix('https://').replace('github.com', 'github')}/blob/main/nbs/{path.name}"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"

    def lines(text):
        return text.splitlines(keepends=True)

    return [
        dict(cell_type="markdown", id="colab-badge", metadata={}, source=lines(badge)),
        dict(
            cell_type="code",
            id="colab-setup",
            execution_count=None,
            metadata={},
            outputs=[],
            source=lines(SETUP),
        ),
    ]


def with_badge(path: Path) -> dict:
    "The notebook, these two cells right after its title."
    nb = json.loads(path.read_text(encoding="utf-8"))
    rest = [c for c in nb["cells"] if c.get("id") not in ("colab-badge", "colab-setup")]
    return nb | dict(cells=[rest[0], *cells(path), *rest[1:]])


if __name__ == "__main__":
    for path in CHAPTERS:
        path.write_text(json.dumps(with_badge(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
