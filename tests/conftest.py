import os
import shutil
import sys
from pathlib import Path

import pytest
from small_runs import RED

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "web"))  # the site's scripts


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    "Type a command in an empty folder: exit code, stdout, stderr."
    from tune_a_video_nbs.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*args):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            app([str(a) for a in args], prog_name="tune-a-video")
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


@pytest.fixture(scope="session")
def star_mp4(tmp_path_factory):
    "An mp4 of four frames."
    from tune_a_video_nbs.clips import write_clip
    from tune_a_video_nbs.sprites import draw_clip

    return write_clip(tmp_path_factory.mktemp("clips") / "star.mp4", draw_clip(RED, 4))


@pytest.fixture(scope="session")
def tuned_run(star_mp4, tmp_path_factory):
    "A run, tuned for two steps; copy it before you change it."
    from tune_a_video_nbs.runs import run_tune

    out = tmp_path_factory.mktemp("runs") / "star"
    run_tune(star_mp4, RED, out, frames=4, steps=2, progress=False)
    return out


@pytest.fixture
def run(tuned_run, tmp_path):
    "A run of one's own, to be changed."
    return Path(shutil.copytree(tuned_run, tmp_path / "star"))
