"One-shot video tuning, built from nothing. The modules are exported from the notebooks in `nbs/`."

import importlib
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tune_a_video_nbs")
except PackageNotFoundError:  # imported from a checkout that was never installed
    __version__ = "0+unknown"

MAIN_NAMES = {  # name -> the module that holds it; nothing is loaded before it is asked for
    "TuneAVideoPipeline": "pipeline",
    "TuneAVideoError": "errors",
    "VideoUNet": "inflate",
    "inflate": "inflate",
    "read_clip": "clips",
    "write_clip": "clips",
}
__all__ = ["__version__", *MAIN_NAMES]


def __getattr__(name: str) -> object:
    "Load a main name when it is first used."
    if name not in MAIN_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{MAIN_NAMES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    "List what can be had, loaded or not."
    return sorted({*globals(), *MAIN_NAMES})
