"""Five mixes of saturating and launch-bound kernels: each job's share, and the sum of all progress. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import ENFORCED, FREE, SEEN, several
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.statistics import by_job, progress_of_share, ratios, total_progress
from benchmarks.gpu.windows import Job, Seen, warm_clock

QUESTION = (
    "Five mixes of four kernels: has each its share of progress, and what is left of free co-run?"
)
HEAVY, LIGHT, CONV = "matmul", "lstm", "conv"
MIXES = (
    (HEAVY, HEAVY, LIGHT, LIGHT),
    (HEAVY, LIGHT, LIGHT, LIGHT),
    (CONV, CONV, LIGHT, LIGHT),
    (CONV, CONV, CONV, CONV),
    (HEAVY, CONV, CONV, LIGHT),
)
NUMBER = 4
ARMS = {
    "seen": (SEEN, 5.0, 0.95, 0.90),
    "enforced": (ENFORCED, 2.0, 0.92, 0.80),
    "free": (FREE, 5.0, None, None),
}
"""Arm, length of a window, and what each job must have of its share, and the sum of free co-run."""
SINGLE = 2.0
_Windows = dict[str, list[Seen]]


def measure(options: Options) -> Sequence[Figure]:
    """In each round: every kind alone, then each mix in every arm."""
    pace = Pace.of(options, 5, 5.0)
    alone: dict[str, list[float]] = {kind: [] for kind in (HEAVY, LIGHT, CONV)}
    seen: list[_Windows] = [{name: [] for name in ARMS} for _ in MIXES]
    wanted = [one for arm, *_ in ARMS.values() for one in several(arm, NUMBER)]
    with scene(options, wanted, list(alone)) as (floor, every):
        arms = {name: every[n * NUMBER :][:NUMBER] for n, name in enumerate(ARMS)}
        warm_clock(arms["free"], HEAVY, floor)
        for n in range(pace.rounds):
            for kind, rates in alone.items():
                single = [Job(arms["free"][0], kind)]
                seconds = min(SINGLE, pace.seconds)
                rates.append(floor.window(single, seconds=seconds, settle=pace.settle_free).total)
            for mix, windows in zip(MIXES, seen, strict=True):
                for name, (_, seconds, *_) in ARMS.items():
                    jobs = [Job(*one) for one in zip(arms[name], mix, strict=True)]
                    settle = pace.settle_free if name == "free" else pace.settle
                    windows[name].append(
                        floor.window(jobs, seconds=min(seconds, pace.seconds), settle=settle)
                    )
            progress(f"round {n + 1} of {pace.rounds}")
        explained = floor.explained()
    found = [
        one
        for mix, windows in zip(MIXES, seen, strict=True)
        for one in _of_mix(mix, windows, alone)
    ]
    return [
        *found,
        *explained,
        *(Figure(f"{kind}_alone", "steps/s", rates) for kind, rates in alone.items()),
    ]


def _of_mix(mix: Sequence[str], windows: _Windows, alone: dict[str, list[float]]) -> list[Figure]:
    """Return the figures of one mix; what is compared is of the same round."""
    singles = list(zip(*(alone[kind] for kind in mix), strict=True))
    sums = {
        name: [
            total_progress(one.rates, single)
            for one, single in zip(windows[name], singles, strict=True)
        ]
        for name in ARMS
    }
    found = []
    for name, (_, _, least, of_free) in ARMS.items():
        jobs = [
            progress_of_share(one.rates, single)
            for one, single in zip(windows[name], singles, strict=True)
        ]
        title = f"{'_'.join(mix)}_{name}"
        found += [
            Figure(f"{title}_jobs_of_share", "", by_job(jobs), at_least=least, worst=True),
            Figure(f"{title}_least_of_share", "", [min(each) for each in jobs]),
            Figure(f"{title}_sum", "", sums[name]),
        ]
        if of_free is not None:
            found.append(
                Figure(f"{title}_of_free", "", ratios(sums[name], sums["free"]), at_least=of_free)
            )
    return found


if __name__ == "__main__":
    sys.exit(row("gpu_mixes", QUESTION, measure))
