"The module of version 0.1 whose names are found in `families`, `bases`, `lora`, `authors`, `memory` and `plan` now."

from typing import Any

from tune_a_video_nbs.moved import moved_name


def __getattr__(name: str) -> Any:
    "Find what stood in this module in version 0.1."
    return moved_name(__name__, name)
