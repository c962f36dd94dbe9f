"""A table and a picture of what run.py measured. `python benchmarks/report.py RESULT.json` makes them again."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"ours": "#2b6cb0", "theirs": "#c05621", "before": "#718096"}
NAMES = {"ours": "this library", "theirs": "the authors' code", "before": "this library, before"}


def gb(n):
    return f"{n / 1e9:.1f} GB"


def about(found):
    m, sides = found["machine"], ", ".join(f"{NAMES[k]} at {v}" for k, v in found["commits"].items())
    return (
        f"{m['processor']}, {m['threads']} of {m['cores']} cores, {m['device']}, torch {m['torch']}; {sides}. "
        f"Load average at the start {m['load']:.1f}. Made by `{found['command']}` in {found['minutes']} minutes."
    )


def compare_table(found):
    "One row per job: seconds of each side, the ratio, memory, and the share of the machine's rate that we reach."
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


def growth_table(found):
    heads = ["", "forward + backward, s", "its memory", "forward, s", "its memory"]
    cell = {
        (r["along"], r["value"], r["job"]): [f"{r['seconds']:.2f}", gb(r["bytes_above_start"])]
        for r in found["rows"]
    }
    keys = dict.fromkeys(k[:2] for k in cell)
    words = dict(frames="{} frames, latents 32x32", size="8 frames, latents {0}x{0}")
    return table(
        heads,
        [[words[a].format(v), *cell[a, v, "forward_backward"], *cell[a, v, "forward"]] for a, v in keys],
    )


def table(heads, rows):
    def line(cells):
        return "| " + " | ".join(cells) + " |"

    return "\n".join([line(heads), line(["---"] + ["---:"] * (len(heads) - 1)), *map(line, rows)])


def compare_plot(found):
    "Bars of seconds, one group for each job."
    jobs, sides = found["jobs"], list(found["commits"])
    fig, axes = plt.subplots(
        1, 2, figsize=(10, 0.55 * len(jobs) * len(sides) + 1.2), layout="constrained", sharey=True
    )
    for ax, what, unit, title in zip(
        axes, ("seconds", "bytes_above_start"), (1, 1e-9), ("seconds per step", "memory of a step, GB")
    ):
        for j, side in enumerate(sides):
            y, x = (
                [i + 0.8 * (j / len(sides)) for i in range(len(jobs))],
                [unit * job[side][what] for job in jobs.values()],
            )
            bars = ax.barh(y, x, 0.8 / len(sides), color=COLOURS[side], label=NAMES[side])
            own = [unit * job["ours"][what] for job in jobs.values()]
            ax.bar_label(
                bars,
                [f"{v:.1f}" + (f" ({v / o:.1f}x)" if side != "ours" else "") for v, o in zip(x, own)],
                padding=3,
                fontsize=8,
            )
        ax.set(
            title=title,
            yticks=[i + 0.4 * (1 - 1 / len(sides)) for i in range(len(jobs))],
            yticklabels=list(jobs),
        )
        ax.margins(x=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sides), frameon=False
    )
    return fig


def growth_plot(found):
    "Seconds and memory against frames and against size; the line goes through the origin and the last point."
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for ax, along, title in zip(
        axes, ("frames", "size"), ("frames, at latents 32x32", "places in a frame, at 8 frames")
    ):
        for job, colour, words in (
            ("forward_backward", COLOURS["ours"], "forward + backward"),
            ("forward", COLOURS["theirs"], "forward"),
        ):
            rows = [r for r in found["rows"] if r["along"] == along and r["job"] == job]
            x, y = (
                np.array([r["value"] ** (2 if along == "size" else 1) for r in rows]),
                np.array([r["seconds"] for r in rows]),
            )
            ax.plot(x, y, "o", c=colour, label=words)
            ax.plot([0, x[-1]], [0, y[-1]], ":", c=colour, label="in proportion")
        ax.set(xlabel=title, xticks=x, xlim=0, ylim=0)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False, fontsize=8)
    return fig


def report(path):
    "Write RESULT.md and RESULT.png beside RESULT.json."
    path = Path(path)
    found = json.loads(path.read_text())
    make, draw = dict(compare=(compare_table, compare_plot), growth=(growth_table, growth_plot))[
        found["kind"]
    ]
    path.with_suffix(".md").write_text(f"{make(found)}\n\n{about(found)}\n")
    draw(found).savefig(path.with_suffix(".png"), dpi=110)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    report(sys.argv[1])
