"""One kernel alone on the GPU: what does it lose to gpushare? See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import FREE, SEEN
from benchmarks.gpu.reckoning import ratios
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job, warm_clock

QUESTION = "One kernel alone: how much of its rate without gpushare is left?"
KINDS = {"matmul": 1, "conv": 1, "lstm": 3}
"""Kinds of work, and how many windows of each a round has: one bound by launches goes as fast as the CPU just does."""
ARMS = {"seen": SEEN, "free": FREE}


def measure(options: Options) -> Sequence[Figure]:
    """Windows of one kernel: with and without gpushare, every other round the other way round."""
    pace = Pace.of(options, 6, 2.0)
    rates: dict[tuple[str, str], list[float]] = {(k, arm): [] for k in KINDS for arm in ARMS}
    wanted = [(arm, None) for arm in ARMS.values()]
    with scene(options, wanted, [*KINDS]) as (floor, every):
        arms = dict(zip(ARMS, every, strict=True))
        warm_clock([arms["free"]], "matmul", floor)
        for n in range(pace.rounds):
            for kind, turn in [(k, turn) for k, times in KINDS.items() for turn in range(times)]:
                for name in list(arms)[:: -1 if (n + turn) % 2 else 1]:
                    seen = floor.window(
                        [Job(arms[name], kind)], seconds=pace.seconds, settle=pace.settle_free
                    )
                    rates[kind, name].append(seen.total)
            progress(f"round {n + 1} of {pace.rounds}")
        explained = floor.explained()
    found = []
    for kind in KINDS:
        free = rates[kind, "free"]
        found += [
            Figure(f"{kind}_of_free", "", ratios(rates[kind, "seen"], free), at_least=0.99),
            Figure(f"{kind}_free", "steps/s", free),
        ]
    return [*found, *explained]


if __name__ == "__main__":
    sys.exit(row("gpu_alone", QUESTION, measure))
