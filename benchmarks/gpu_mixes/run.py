"""Mixes of saturating and launch-bound kernels: each job's share, and the sum of all progress. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.mixes import ARMS, Windows, of_mix
from benchmarks.gpu.notebooks import several
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job, warm_clock

QUESTION = "Mixes of four kernels: has each its share of progress, and what is left of free co-run?"
HEAVY, LIGHT, CONV = "matmul", "lstm", "conv"
MIXES = (
    (HEAVY, HEAVY, LIGHT, LIGHT),
    (HEAVY, LIGHT, LIGHT, LIGHT),
    (CONV, CONV, LIGHT, LIGHT),
    (HEAVY, CONV, CONV, LIGHT),
)
"""Four of the five: four times conv is measured in `gpu_saturating`, whose windows it shares."""
NUMBER = 4
SINGLE = 2.0


def measure(options: Options) -> Sequence[Figure]:
    """In each round: every kind alone, then each mix in every arm."""
    pace = Pace.of(options, 5, 5.0)
    alone: dict[str, list[float]] = {kind: [] for kind in (HEAVY, LIGHT, CONV)}
    seen: list[Windows] = [{name: [] for name in ARMS} for _ in MIXES]
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
        one for mix, windows in zip(MIXES, seen, strict=True) for one in of_mix(mix, windows, alone)
    ]
    return [
        *found,
        *explained,
        *(Figure(f"{kind}_alone", "steps/s", rates) for kind, rates in alone.items()),
    ]


if __name__ == "__main__":
    sys.exit(row("gpu_mixes", QUESTION, measure))
