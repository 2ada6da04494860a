"""Four LSTM kernels that are bound by launches: what does sharing cost them? See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import FREE, SEEN, several
from benchmarks.gpu.reckoning import ratios
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job, Seen, warm_clock

QUESTION = "4 kernels bound by launches (LSTM training): how much of what they do freely is left?"
NUMBER = 4
KIND = "lstm"


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows: four shared kernels, four free ones, one free one alone."""
    pace = Pace.of(options, 5, 5.0)
    shared: list[Seen] = []
    free: list[Seen] = []
    alone: list[Seen] = []
    wanted = [*several(SEEN, NUMBER), *several(FREE, NUMBER)]
    with scene(options, wanted, [KIND]) as (floor, both):
        ours, theirs = ([Job(one, KIND) for one in half] for half in (both[:4], both[4:]))
        warm_clock(both[4:], KIND, floor)
        for n in range(pace.rounds):
            shared.append(floor.window(ours, seconds=pace.seconds, settle=pace.settle))
            free.append(floor.window(theirs, seconds=pace.seconds, settle=pace.settle_free))
            alone.append(floor.window(theirs[:1], seconds=2.0, settle=pace.settle_free))
            progress(f"round {n + 1} of {pace.rounds}: {shared[-1].total / free[-1].total:.3f}")
        explained = floor.explained()
    totals = [[one.total for one in windows] for windows in (shared, free, alone)]
    return [
        Figure("total_of_free", "", ratios(totals[0], totals[1]), at_least=0.95),
        Figure("least_share", "%", [min(one.shares) for one in shared]),
        Figure("total_of_alone", "", ratios(totals[0], totals[2])),
        Figure("total_shared", "steps/s", totals[0]),
        Figure("total_free", "steps/s", totals[1]),
        Figure("alone", "steps/s", totals[2]),
        *explained,
    ]


if __name__ == "__main__":
    sys.exit(row("gpu_launch_bound", QUESTION, measure))
