"""A short job arrives beside a long one under SRTF: how long until its first iteration? See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, percentile, progress
from benchmarks.gpu.notebooks import SEEN, several
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene

QUESTION = (
    "A short job arrives beside a long one under SRTF: how long from Run to its first iteration?"
)
KIND = "conv"
ITERATIONS = 4
"""Iterations in a step of this kind (`benchmarks/gpu/workloads.py`)."""
GAPS = (0.61, 0.83, 0.77, 0.97, 0.69)
"""Seconds between two arrivals, in turn: in step with nobody's turns."""
LONG = """
import gpushare_kernel as gpushare
with gpushare.lane("4GiB", time=3000):
    done = work({kind!r}, {path!r}, 0, {until}, {stop!r})
"""
SHORT = """
import gpushare_kernel as gpushare
with gpushare.lane("2GiB", time=0.5):
    first = time.monotonic()
    repeat({kind!r}, 4)
"""
EMPTY = "first = time.monotonic()"


def measure(options: Options) -> Sequence[Figure]:
    """Let a long job run; send short ones again and again, and empty cells to a third notebook for what Run itself takes."""
    number = 6 if options.quick else 40
    pace = Pace.of(options, 1, 1.0)
    with scene(options, several(SEEN, 3), [KIND], "--policy", "srtf") as (
        floor,
        (long, short, idle),
    ):
        iteration = _iteration(long)
        until = time.monotonic() + pace.settle + number * 3.0 + 30.0
        stop = floor.stage.folder / "stop"
        long.begin(
            LONG.format(kind=KIND, path=str(floor.counters.path), until=until, stop=str(stop)),
            "done",
        )
        time.sleep(pace.settle)
        waited, run = [], []
        for n in range(number):
            time.sleep(GAPS[n % len(GAPS)])
            waited.append(_until_first(short, SHORT.format(kind=KIND)))
            run.append(_until_first(idle, EMPTY))
        stop.touch()
        long.finish(timeout=120)
    beyond = [one - iteration for one in waited]
    progress(f"p95 {percentile(waited, 95) * 1000:.0f} ms, an iteration {iteration * 1000:.0f} ms")
    return [
        Figure("beyond_the_iteration_p95", "s", [percentile(beyond, 95)], at_most=0.05),
        Figure("run_to_first_iteration", "s", waited),
        Figure("iteration_of_the_long_one", "s", [iteration]),
        Figure("run_to_first_line_of_an_empty_cell", "s", run),
    ]


def _iteration(notebook) -> float:
    notebook.run(f"repeat({KIND!r}, 20)")
    return float(notebook.run(f"took = repeat({KIND!r}, 40)", "took")) / 40 / ITERATIONS


def _until_first(notebook, code: str) -> float:
    sent = time.monotonic()
    return float(notebook.run(code, "first")) - sent


if __name__ == "__main__":
    sys.exit(row("gpu_arrival", QUESTION, measure))
