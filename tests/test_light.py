"What a network needs loads no drawing library, and changes no other library's settings."

import subprocess
import sys

import pytest

HEAVY = "matplotlib", "IPython", "mediapy", "imageio_ffmpeg", "ipywidgets"
LIGHT = "errors", "files", "films", "pictures", "writing", "clips", "video"


@pytest.mark.parametrize("module", LIGHT)
def test_light(module):
    code = f"import sys, tune_a_video_nbs.{module}; print(*[m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
