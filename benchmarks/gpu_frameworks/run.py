"""The same work in torch, CuPy and JAX, three notebooks at once. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import SEEN, several, together
from benchmarks.gpu.reckoning import by_job, progress_of_share
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job, Seen, warm_clock

QUESTION = (
    "The same products in torch, CuPy and JAX side by side: does each run, and has each its share?"
)
FRAMEWORKS = {"torch": "matmul", "cupy": "cupy", "jax": "jax"}


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows: each alone, then all three. Nothing is declared, and none has a line of ours in it."""
    pace = Pace.of(options, 5, 5.0)
    alone: list[list[float]] = []
    shared: list[Seen] = []
    with scene(options, several(SEEN, len(FRAMEWORKS)), []) as (floor, kernels):
        for kernel, kind in zip(kernels, FRAMEWORKS.values(), strict=True):
            together([kernel], f"prepare({kind!r}, {options.device!r})")
        jobs = [Job(*one) for one in zip(kernels, FRAMEWORKS.values(), strict=True)]
        warm_clock(kernels, "matmul", floor)
        for n in range(pace.rounds):
            alone.append(
                [
                    floor.window(
                        [job], seconds=min(pace.seconds, 2.0), settle=pace.settle_free
                    ).total
                    for job in jobs
                ]
            )
            shared.append(floor.window(jobs, seconds=pace.seconds, settle=pace.settle))
            progress(f"round {n + 1} of {pace.rounds}")
        explained = floor.explained()
    shares = [
        progress_of_share(one.rates, single) for one, single in zip(shared, alone, strict=True)
    ]
    return [
        Figure("least_of_share", "", by_job(shares), at_least=0.9, worst=True),
        *(
            Figure(f"{name}_of_share", "", [each[n] for each in shares])
            for n, name in enumerate(FRAMEWORKS)
        ),
        *explained,
    ]


if __name__ == "__main__":
    sys.exit(row("gpu_frameworks", QUESTION, measure))
