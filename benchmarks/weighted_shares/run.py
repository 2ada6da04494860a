"""Two kernels of one user with weights 3 and 1, each able to use every core. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, machine, main, progress, staged
from benchmarks.kernels import LOCAL, SHARED, Counters, Window, beside, kernels, window

QUESTION = "Two kernels that use every core, weights 3:1: who gets how much, and of what total?"
WEIGHTS = (3.0, 1.0)


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows: both shared kernels; both local ones (free); one local kernel alone."""
    rounds, seconds = (2, 5.0) if options.quick else (5, 20.0)
    threads = max(1, round(machine()["cores"]))
    shared: list[Window] = []
    free: list[Window] = []
    alone: list[Window] = []
    with (
        staged() as stage,
        stage.broker(),
        kernels(SHARED, weights=WEIGHTS) as ours,
        kernels(LOCAL, len(WEIGHTS)) as theirs,
    ):
        counters = Counters(stage.folder / "counters")
        for n in range(rounds):
            shared.append(
                window(counters, ours, threads=threads, seconds=seconds, besides=stage.pids)
            )
            free.append(window(counters, theirs, threads=threads, seconds=seconds / 2))
            alone.append(window(counters, theirs[:1], threads=threads, seconds=seconds / 2))
            progress(
                f"round {n + 1} of {rounds}: {shared[-1].shares[0]:.1f} %, total {shared[-1].total:.0f}, "
                f"alone {alone[-1].total:.0f}"
            )
        counters.close()
    shares = [one.shares[0] for one in shared]
    ratios = [100 * a.total / b.total for a, b in zip(shared, alone, strict=True)]
    return (
        Figure("share_of_weight_3", "%", shares, at_least=73.0, at_most=77.0, worst=True),
        Figure("total_of_one_alone", "%", ratios, at_least=95.0),
        Figure("share_free", "%", [one.shares[0] for one in free]),
        *beside(shared, "shared"),
        *beside(alone, "alone"),
    )


if __name__ == "__main__":
    sys.exit(main("weighted_shares", QUESTION, measure))
