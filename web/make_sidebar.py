"""Write the chapters and the modules into the sidebars of `_quarto.yml`, by the chapters' numbers.

`make export` runs this; `tests/check_docs.py` checks that nothing has changed since."""

import re
from pathlib import Path

from make_api import ROOT, modules

QUARTO = ROOT / "_quarto.yml"
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
PARTS = {  # the first number of each part; the workshop comes last, although the code stands on it
    1: "I. Diffusion from nothing",
    10: "II. Tune-A-Video",
    34: "III. Real models",
    50: "IV. Beyond the paper",
    60: "Tools",
    80: "Workshop",
}


def part(path: Path) -> str:
    "The part of the book that a chapter belongs to, by its number."
    number = int(path.stem[:2])
    return PARTS[max(first for first in PARTS if first <= number)]


def sections(pages: list[tuple[str, str]]) -> str:
    "The lines of a sidebar from (part, page): one section for each part that has pages."
    lines = []
    last = None
    for name, page in pages:
        if name != last:
            lines += [f'        - section: "{name}"', "          contents:"]
            last = name
        lines.append(f"            - {page}")
    return "\n".join(lines)


def with_sidebars(text: str) -> str:
    "The text of `_quarto.yml`, its two lists written anew."
    chapters = [(part(path), f"nbs/{path.name}") for path in CHAPTERS]
    reference = [(part(ROOT / "nbs" / stem), f"api/{name}.qmd") for name, stem in modules().items()]
    for name, pages in (("chapters", chapters), ("modules", reference)):
        begin = f"        # {name} (written by web/make_sidebar.py)\n"
        end = f"        # end of {name}\n"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text, count = re.subn(pattern, begin + sections(pages) + "\n" + end, text, flags=re.S)
        if count != 1:
            raise SystemExit(f"_quarto.yml has no line `{begin.strip()}` with its end after it")
    return text


if __name__ == "__main__":
    QUARTO.write_text(with_sidebars(QUARTO.read_text(encoding="utf-8")), encoding="utf-8")
