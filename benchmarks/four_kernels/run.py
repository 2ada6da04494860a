"""Four one-thread kernels: what does sharing cost in all? See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress, staged
from benchmarks.kernels import LOCAL, SHARED, Counters, Window, beside, kernels, window

QUESTION = "Four one-thread kernels: how much of the free total is left when they take turns?"
KERNELS = 4


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows of four shared and four local kernels."""
    pairs, seconds = (2, 5.0) if options.quick else (7, 10.0)
    shared: list[Window] = []
    free: list[Window] = []
    with (
        staged() as stage,
        stage.broker(),
        kernels(SHARED, KERNELS) as ours,
        kernels(LOCAL, KERNELS) as theirs,
    ):
        counters = Counters(stage.folder / "counters")
        for n in range(pairs):
            shared.append(window(counters, ours, seconds=seconds, besides=stage.pids))
            free.append(window(counters, theirs, seconds=seconds))
            progress(f"pair {n + 1} of {pairs}: {shared[-1].total:.0f}, free {free[-1].total:.0f}")
        counters.close()
    ratios = [100 * a.total / b.total for a, b in zip(shared, free, strict=True)]
    return (
        Figure("total_of_free", "%", ratios, at_least=95.0),
        Figure("share_of_each", "%", [share for one in shared for share in one.shares]),
        *beside(shared, "shared"),
        *beside(free, "free"),
    )


if __name__ == "__main__":
    sys.exit(main("four_kernels", QUESTION, measure))
