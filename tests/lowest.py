"""Print constraints that hold every library at the lower bound that settings.ini gives:

`python tests/lowest.py`.
"""

import re
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser()
config.read(Path(__file__).parent.parent / "settings.ini", encoding="utf-8")
for requirement in config["DEFAULT"]["requirements"].split():
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
    if found and found[1] != "torch":  # its older builds are chosen by hand: see the Makefile
        print(f"{found[1]}=={found[2]}")
print(
    "notebook<7"
)  # which ipywidgets 7 stood on; newer ones keep pip's resolver busy for a quarter of an hour
