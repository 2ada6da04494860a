"""Make docs/salus.svg: Salus' published table beside our replays of it, and how soon jobs are done under our policies.

python benchmarks/salus_table/picture.py      (needs matplotlib; reads benchmarks/results/salus_table.json)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.salus_table.arms import CELLS, OURS, PUBLISHED, SALUS
from benchmarks.salus_table.run import DATA
from gpushare_kernel.replay.engine import replay
from gpushare_kernel.replay.outcome import percentile
from gpushare_kernel.replay.salus import read_salus

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "makespan": "makespan",
    "avg_queue": "queue",
    "avg_jct": "completion",
    "p95_jct": "95th percentile",
}
AS_RUN, OTHERWISE, OUR, POINT = "#0072B2", "#E69F00", "#009E73", "#000000"
OUR_ARM = {"srtf": "srtf", "pack": "pack", "fair": "fair_parking"}
CURVES = {
    "FIFO, one at a time": (SALUS["fifo"]["as run"], "#000000", "-"),
    "SRTF": (OURS["srtf"], "#0072B2", "-"),
    "no time declared, parking": (OURS["unknown_parking"], "#CC79A7", ":"),
    "FAIR, parking": (OURS["fair_parking"], "#009E73", "--"),
    "PACK": (OURS["pack"], "#D55E00", "-."),
}


def cells(axes: Any, figures: dict[str, Any]) -> None:
    """Each published cell, our 5-95 % range as Salus ran it, what may have been otherwise, and ours."""
    rows = [(policy, cell) for policy in ("srtf", "pack", "fair") for cell in CELLS]
    for at, (policy, cell) in enumerate(rows):
        published = PUBLISHED[policy][CELLS.index(cell)]
        for n, name in enumerate(SALUS[policy]):
            values = sorted(figures[f"{policy}_{cell} ({name})"]["values"])
            low, high = percentile(values, 5), percentile(values, 95)
            colour, width, y = (
                (AS_RUN, 5, at) if name == "as run" else (OTHERWISE, 2, at + 0.1 + 0.09 * n)
            )
            axes.plot(
                [low, max(high, low + 0.8)], [y, y], color=colour, lw=width, solid_capstyle="butt"
            )
        ours = figures[f"our_{OUR_ARM[policy]}_{cell}"]["values"]
        axes.plot(percentile(sorted(ours), 50), at, "D", color=OUR, ms=5)
        axes.plot(published, at, "|", color=POINT, ms=14, mew=2)
    axes.set_yticks(range(len(rows)), [f"{policy.upper()} {NAMES[cell]}" for policy, cell in rows])
    axes.invert_yaxis()
    axes.set_xlabel("minutes")
    axes.set_xlim(0, 330)
    axes.grid(axis="x", color="#E5E5E5")
    axes.legend(
        handles=[
            Line2D([], [], color=POINT, marker="|", ls="", ms=12, mew=2, label="published"),
            Line2D([], [], color=AS_RUN, lw=5, label="replayed as Salus ran it, 5-95 % of 20 draws"),
            Line2D([], [], color=OTHERWISE, lw=2, label="something may have been otherwise"),
            Line2D([], [], color=OUR, marker="D", ls="", ms=5, label="ours, median (FAIR with parking)"),
        ],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=2,
        frameon=False,
    )  # fmt: skip


def completions(axes: Any) -> None:
    """Which part of the 100 jobs is done so long after its submission; one draw."""
    jobs = read_salus(DATA, 1)
    for name, (arm, colour, style) in CURVES.items():
        changed = jobs
        for change in arm.changes:
            changed = change(changed, None)  # type: ignore[arg-type]  # of ours none is drawn
        times = sorted(job.completion / 60 for job in replay(changed, arm.settings).jobs)
        parts = [n / len(times) for n in range(1, len(times) + 1)]
        mean = sum(times) / len(times)
        axes.step(
            [0, *times, 330], [0, *parts, 1], where="post", color=colour, ls=style, label=f"{name}: {mean:.0f} min on average"
        )  # fmt: skip
    axes.set_xlabel("minutes from submission to end")
    axes.set_ylabel("jobs done")
    axes.set_xlim(0, 330)
    axes.set_ylim(0, 1)
    axes.grid(color="#E5E5E5")
    axes.legend(loc="lower right", frameon=False)


def main() -> None:
    """Draw it."""
    matplotlib.rcParams["svg.hashsalt"] = "gpushare"
    figures = json.loads((ROOT / "benchmarks/results/salus_table.json").read_text())["figures"]
    figure = Figure(figsize=(9.5, 9.5), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[5.5, 4])
    cells(above, figures)
    completions(below)
    figure.savefig(ROOT / "docs" / "salus.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
