"""Three trainings that start one after the other (Salus, figure 9). See README.md."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import SEEN, several
from benchmarks.gpu.reckoning import share_error
from benchmarks.gpu.row import row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Floor, Job, Mark, between, warm_clock

QUESTION = "Three trainings started at 0, 15 and 30 s: are they equal while they are together?"
KIND = "conv"
JOIN = 2.0
"""Seconds after each start that count for nobody: the newcomer is being looked at."""


def measure(options: Options) -> Sequence[Figure]:
    """Count each second; judge the time of two and the time of three together."""
    gap = 4 if options.quick else 15
    with scene(options, several(SEEN, 3), [KIND]) as (floor, three):
        warm_clock(three, KIND, floor)
        jobs = [Job(worker, KIND) for worker in three]
        marks = _run(floor, jobs, gap)
        explained = floor.explained()
    seconds = [between(one, next_) for one, next_ in itertools.pairwise(marks)]
    alone = between(marks[0], marks[gap])
    two = between(marks[gap + round(JOIN)], marks[2 * gap])
    three_of = between(marks[2 * gap + round(JOIN)], marks[3 * gap])
    return [
        Figure("error_of_two", "points", [share_error(_parts(two.rates[:2]), (1, 1))], at_most=2.0),
        Figure("error_of_three", "points", [share_error(three_of.shares, (1, 1, 1))], at_most=2.0),
        Figure("two_of_alone", "", [two.total / alone.total]),
        Figure("three_of_alone", "", [three_of.total / alone.total]),
        *(
            Figure(f"steps_of_{n + 1}_each_second", "steps/s", [one.rates[n] for one in seconds])
            for n in range(3)
        ),
        *explained,
    ]


def _run(floor: Floor, jobs: Sequence[Job], gap: int) -> list[Mark]:
    """Start one after the other; return a mark for every second."""
    began = time.monotonic()
    until, sent, marks = began + 3 * gap + 0.5, [], []
    for second in range(3 * gap + 1):
        marks.append(floor.mark(jobs, began + second))
        if second % gap == 0 and len(sent) < len(jobs):
            worker, slot = jobs[len(sent)].worker, len(sent)
            sent.append(time.monotonic())
            call = f"done = work({KIND!r}, {str(floor.counters.path)!r}, {slot}, {until})"
            worker.begin(call, "done")
            progress(f"{second} s: {len(sent)} at work")
    for job, at in zip(jobs, sent, strict=True):
        floor.note(job.worker, job.worker.finish(timeout=60), at)
    return marks


def _parts(rates: Sequence[float]) -> list[float]:
    return [100 * rate / sum(rates) for rate in rates]


if __name__ == "__main__":
    sys.exit(row("gpu_three_trainings", QUESTION, measure))
