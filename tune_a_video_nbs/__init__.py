"One-shot video tuning, built from nothing. The modules are exported from the notebooks in `nbs/`."
from importlib.metadata import PackageNotFoundError, version

try: __version__ = version("tune_a_video_nbs")
except PackageNotFoundError: __version__ = "0+unknown"   # imported from a checkout that was never installed
