"""Cells that wait, share and stand still: does each say why? See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import SEEN, several
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job

QUESTION = "Cells that wait for memory and turns: is there a pause over 5 s that the cell does not explain?"
CAPACITY = {"cuda": "24GiB", "host": "6GiB"}
DECLARED = {"cuda": "%%gpulane 12GiB", "host": "%%gpulane 4GiB"}
"""One such cell has room beside two plain ones, two have not: the second waits until the first has ended."""


def measure(options: Options) -> Sequence[Figure]:
    """Two plain hogs, an LSTM, and two declared cells of which one must wait for the other, again and again."""
    pace = Pace.of(options, 3, 10.0)
    kinds = ("matmul", "conv", "lstm")
    wanted = several(SEEN, 5)
    with scene(options, wanted, kinds, "--capacity", CAPACITY[options.device]) as (floor, five):
        magic = DECLARED[options.device]
        jobs = [
            Job(worker, kind, magic if n > 2 else "")
            for n, (worker, kind) in enumerate(zip(five, (*kinds, *kinds[:2]), strict=True))
        ]
        for n in range(pace.rounds):
            floor.window(jobs, seconds=pace.seconds, settle=pace.settle)
            progress(f"round {n + 1} of {pace.rounds}: {len(floor.pauses)} unexplained")
        for pause in floor.pauses:
            progress(f"nobody said why it stood for {pause.seconds:.1f} s")
        return floor.explained()


if __name__ == "__main__":
    sys.exit(row("gpu_unexplained_pauses", QUESTION, measure))
