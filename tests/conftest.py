import os
import sys
from pathlib import Path

import pytest

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
