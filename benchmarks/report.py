"""Draw a table and a picture of what run.py measured: `python benchmarks/report.py RESULT.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"ours": "#2b6cb0", "theirs": "#c05621", "before": "#718096"}
NAMES = {"ours": "this library", "theirs": "the authors' code", "before": "this library, before"}


def gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def about(found: dict[str, Any]) -> str:
    "Return which machine and which code was measured."
    machine = found["machine"]
    cores = f"{machine['threads']} of {machine['cores']} cores"
    sides = ", ".join(f"{NAMES[side]} at {commit}" for side, commit in found["commits"].items())
    return (
        f"{machine['processor']}, {cores}, {machine['device']}, torch {machine['torch']}; {sides}. "
        f"Load average at the start {machine['load']:.1f}. "
        f"Made by `{found['command']}` in {found['minutes']} minutes."
    )


def compare_table(found: dict[str, Any]) -> str:
    "Return a row per job: seconds of each side, the ratio, memory, and the share of the matmul rate."
    others = [k for k in found["commits"] if k != "ours"]
    heads = [
        "",
        *(f"{NAMES[k]}, s" for k in ("ours", *others)),
        *(f"{NAMES[k]} takes" for k in others),
        *("by processor time" for k in others),
        *(f"{NAMES[k]}, memory of a step (process)" for k in ("ours", *others)),
        "share of the matmul rate",
    ]
    rows = []
    for words, job in found["jobs"].items():
        sides = [job[k] for k in ("ours", *others)]
        rows.append(
            [
                words,
                *(f"{s['seconds']:.2f}" for s in sides),
                *(f"{job[k][r]:.2f}x" for r in ("times_ours", "cpu_times_ours") for k in others),
                *(f"{gb(s['bytes_above_start'])} ({gb(s['peak_bytes'])})" for s in sides),
                f"{job['share_of_matmul']:.0%}",
            ]
        )
    return table(heads, rows)


def growth_table(found: dict[str, Any]) -> str:
    "Return a row per length or size."
    heads = ["", "forward + backward, s", "its memory", "forward, s", "its memory"]
    cells = {}
    for row in found["rows"]:
        key = row["along"], row["value"], row["job"]
        cells[key] = [f"{row['seconds']:.2f}", gb(row["bytes_above_start"])]
    words = dict(frames="{} frames, latents 32x32", size="8 frames, latents {0}x{0}")
    rows = []
    for along, value in dict.fromkeys(key[:2] for key in cells):
        both = [*cells[along, value, "forward_backward"], *cells[along, value, "forward"]]
        rows.append([words[along].format(value), *both])
    return table(heads, rows)


def table(heads: list[str], rows: list[list[str]]) -> str:
    "Return a Markdown table with all columns but the first to the right."
    dashes = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, dashes, *rows])


def compare_plot(found: dict[str, Any]) -> Figure:
    "Draw bars of seconds and of memory, one group for each job."
    num_bars = len(found["jobs"]) * len(found["commits"])
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(10, 0.55 * num_bars + 1.2), layout="constrained", sharey=True
    )
    draw_bars(left, found, "seconds", 1, "seconds per step")
    draw_bars(right, found, "bytes_above_start", 1e-9, "memory of a step, GB")
    left.invert_yaxis()
    handles = left.get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=len(found["commits"]), frameon=False)
    return fig


def draw_bars(ax: Axes, found: dict[str, Any], what: str, unit: float, title: str) -> None:
    "Draw one bar for each job and side, with how many times ours it is."
    jobs = found["jobs"]
    sides = list(found["commits"])
    own = [unit * job["ours"][what] for job in jobs.values()]
    for j, side in enumerate(sides):
        values = [unit * job[side][what] for job in jobs.values()]
        labels = [f"{value:.1f}" for value in values]
        if side != "ours":
            labels = [f"{label} ({v / o:.1f}x)" for label, v, o in zip(labels, values, own)]
        places = [i + 0.8 * (j / len(sides)) for i in range(len(jobs))]
        bars = ax.barh(places, values, 0.8 / len(sides), color=COLOURS[side], label=NAMES[side])
        ax.bar_label(bars, labels, padding=3, fontsize=8)
    middles = [i + 0.4 * (1 - 1 / len(sides)) for i in range(len(jobs))]
    ax.set(title=title, yticks=middles, yticklabels=list(jobs))
    ax.margins(x=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def growth_plot(found: dict[str, Any]) -> Figure:
    "Draw seconds against frames and against size."
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    draw_growth(left, found, "frames", 1, "frames, at latents 32x32")
    draw_growth(right, found, "size", 2, "places in a frame, at 8 frames")
    left.set_ylabel("seconds")
    left.legend(frameon=False, fontsize=8)
    return fig


def draw_growth(ax: Axes, found: dict[str, Any], along: str, power: int, title: str) -> None:
    "Draw points, and a line through the origin and the last of them."
    for job, side, words in (
        ("forward_backward", "ours", "forward + backward"),
        ("forward", "theirs", "forward"),
    ):
        rows = [row for row in found["rows"] if row["along"] == along and row["job"] == job]
        x = np.array([row["value"] ** power for row in rows])
        y = np.array([row["seconds"] for row in rows])
        ax.plot(x, y, "o", c=COLOURS[side], label=words)
        ax.plot([0, x[-1]], [0, y[-1]], ":", c=COLOURS[side], label="in proportion")
    ax.set(xlabel=title, xticks=x, xlim=0, ylim=0)
    ax.spines[["top", "right"]].set_visible(False)


def report(path: str | Path) -> None:
    "Write RESULT.md and RESULT.png beside RESULT.json."
    path = Path(path)
    found = json.loads(path.read_text())
    if found["kind"] == "compare":
        text, picture = compare_table(found), compare_plot(found)
    else:
        text, picture = growth_table(found), growth_plot(found)
    path.with_suffix(".md").write_text(f"{text}\n\n{about(found)}\n")
    picture.savefig(path.with_suffix(".png"), dpi=110)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    report(sys.argv[1])
