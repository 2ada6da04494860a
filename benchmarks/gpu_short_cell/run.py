"""A cell with 50 ms of GPU work beside three hogs: how long until it is done? See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, percentile, progress
from benchmarks.gpu.notebooks import FREE, SEEN, Notebook, several
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Floor

QUESTION = "A plain cell with 50 ms of GPU work beside 3 hogs: how long from Run to done?"
HOGS = 3
KIND = "matmul"
WORK = 0.05
GAPS = (0.11, 0.23, 0.37, 0.17, 0.29)
"""Seconds between two cells, in turn: in step with nobody's turns."""


def measure(options: Options) -> Sequence[Figure]:
    """Run the cell again and again: nobody else there, beside shared hogs, beside free ones."""
    number = 8 if options.quick else 40
    pace = Pace.of(options, 1, 1.0)
    wanted = [*several(SEEN, HOGS + 1), *several(FREE, HOGS + 1)]
    with scene(options, wanted, [KIND]) as (floor, both):
        ours, theirs = both[: HOGS + 1], both[HOGS + 1 :]
        times = _calibrated(ours[0])
        alone = _cells(ours[0], times, max(4, number // 4))
        shared = _beside(floor, ours, times, number, pace)
        free = _beside(floor, theirs, times, max(4, number // 2), pace)
        progress(f"p95 {percentile(shared, 95):.3f} s, free {percentile(free, 95):.3f} s")
        explained = floor.explained()
    return [
        Figure("completion_p95", "s", [percentile(shared, 95)], at_most=0.25),
        Figure("completion", "s", shared),
        Figure("completion_free", "s", free),
        Figure("completion_free_p95", "s", [percentile(free, 95)]),
        Figure("completion_alone", "s", alone),
        *explained,
    ]


def _calibrated(notebook: Notebook) -> int:
    """Return how many steps take 50 ms on a warm GPU."""
    notebook.run(f"repeat({KIND!r}, 200)")
    seconds = notebook.run(f"took = repeat({KIND!r}, 50)", "took")
    return max(1, round(WORK * 50 / seconds))


def _beside(
    floor: Floor, notebooks: Sequence[Notebook], times: int, number: int, pace: Pace
) -> list[float]:
    """Return the completion times of the last notebook's cells while the others work without a break."""
    *hogs, short = notebooks
    most = (
        pace.settle + number * 2.0 + 30.0
    )  # a stop file ends them; this is for a benchmark that died
    until = time.monotonic() + most
    stop = floor.stage.folder / f"stop-{time.monotonic_ns()}"
    sent = time.monotonic()
    for slot, hog in enumerate(hogs):
        hog.begin(
            f"done = work({KIND!r}, {str(floor.counters.path)!r}, {slot}, {until}, {str(stop)!r})",
            "done",
        )
    time.sleep(pace.settle)
    found = _cells(short, times, number)
    stop.touch()
    for hog in hogs:
        floor.note(hog, hog.finish(timeout=120), sent)
    return found


def _cells(notebook: Notebook, times: int, number: int) -> list[float]:
    found = []
    for n in range(number):
        time.sleep(GAPS[n % len(GAPS)])
        start = time.monotonic()
        notebook.run(f"took = repeat({KIND!r}, {times})")
        found.append(time.monotonic() - start)
    return found


if __name__ == "__main__":
    sys.exit(row("gpu_short_cell", QUESTION, measure))
