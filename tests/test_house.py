"""The rules of the house:

Imports point downward, modules are short, code is plain, and the network is light to import.
"""

import subprocess
import sys

import pytest
from house import COUNTS, MOST_LINES, count, house, upward_imports

MODULES = house()
ALLOWED = {"lambdas": 60, "bare_parameters": 0}  # of the whole library; every other count is zero


def test_imports_point_downward():
    assert upward_imports(MODULES) == []


def test_nobody_takes_a_private_name_of_another():
    assert [name for module in MODULES for name in module.private_imports] == []


def test_modules_are_short():
    assert {m.name: m.lines for m in MODULES if m.lines > MOST_LINES} == {}


@pytest.mark.parametrize("name", COUNTS)
def test_code_is_plain(name):
    by_module = {m.name: count(m, name) for m in MODULES if count(m, name)}
    assert sum(by_module.values()) <= ALLOWED.get(name, 0), by_module


@pytest.mark.parametrize("module", ["errors", "files", "clips", "video", "attention", "inflate", "tune"])
def test_light_to_import(module):
    "A fresh interpreter: what draws and displays is loaded only by what shows."
    heavy = "('matplotlib', 'IPython', 'mediapy')"
    code = f"import sys, tune_a_video_nbs.{module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stdout + done.stderr
