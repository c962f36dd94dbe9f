"What tests of runs and of the terminal share: three sentences, and a look at a folder."

from pathlib import Path

RED = "a red star is bouncing on the grass"
BLUE = "a blue star is bouncing on the grass"
NIGHT = "a red star is bouncing on a night sky"


def everything(folder: Path) -> list[str]:
    "The paths of all that is in a folder."
    return sorted(str(path) for path in folder.rglob("*"))
