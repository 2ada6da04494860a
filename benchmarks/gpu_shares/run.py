"""Two saturating kernels by weight: equal, 75/25, 30/70 over 30 s, and the broker's own ledger. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import SEEN
from benchmarks.gpu.reckoning import pooled, share_error
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job, Seen, warm_clock

QUESTION = "Two kernels that saturate the GPU, by weight: how far off is a share over 30 s, and the ledger?"
KERNELS = (1.0, 1.0, 3.0, 7.0)
"""The weights of the kernels that live."""
SPLITS = {"equal": ((0, 1), 1.0), "75_25": ((2, 1), 2.0), "30_70": ((2, 3), 2.0)}
"""Which two of them, and the error allowed in points."""
KIND = "matmul"


def measure(options: Options) -> Sequence[Figure]:
    """For each split one run of six windows of 5 s without a break between them: 30 s."""
    pace = Pace.of(options, 6, 5.0)
    found: list[Figure] = []
    wanted = [(SEEN, weight) for weight in KERNELS]
    with scene(options, wanted, [KIND]) as (floor, kernels):
        warm_clock(kernels, KIND, floor)
        for name, (pair, allowed) in SPLITS.items():
            jobs = [Job(kernels[n], KIND) for n in pair]
            windows = floor.series(
                jobs, seconds=pace.seconds, settle=pace.settle, number=pace.rounds
            )
            found += _figures(name, windows, [KERNELS[n] for n in pair], allowed)
            progress(f"{name}: {found[-4].median:.2f} points off")
        explained = floor.explained()
    return [*found, *explained]


def _figures(
    name: str, windows: Sequence[Seen], weights: Sequence[float], allowed: float
) -> list[Figure]:
    counted = pooled([one.shares for one in windows], [one.total for one in windows])
    ledger = pooled([one.ledger for one in windows], [1.0] * len(windows))
    return [
        Figure(f"error_{name}", "points", [share_error(counted, weights)], at_most=allowed),
        Figure(f"share_{name}", "%", [one.shares[0] for one in windows]),
        Figure(f"ledger_error_{name}", "points", [abs(counted[0] - ledger[0])], at_most=1.0),
        Figure(f"ledger_{name}", "%", [one.ledger[0] for one in windows]),
    ]


if __name__ == "__main__":
    sys.exit(row("gpu_shares", QUESTION, measure))
