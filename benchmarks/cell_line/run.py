"""A loop of 1 ms steps in a declared cell, with its line and without. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress, staged
from benchmarks.kernels import SHARED, Kernel, kernels

QUESTION = "The line of a running cell: what does a loop of 1 ms steps lose to it?"
CELL = Path(__file__).with_name("cell.py").read_text(encoding="utf-8")


def measure(options: Options) -> Sequence[Figure]:
    """Run the loop with and without the line in turns; whoever is first alternates."""
    pairs, number = (3, 1500) if options.quick else (25, 3000)
    losses, beside, without, lengths = [], [], [], []
    with staged() as stage, stage.broker(), kernels(SHARED) as (kernel,):
        kernel.run(CELL)
        for line in (True, False):
            _loop(kernel, 500, line=line)
        for n in range(pairs):
            took = {line: _loop(kernel, number, line=line) for line in (n % 2 == 0, n % 2 != 0)}
            (wall, own, others), (wall_off, own_off, others_off) = took[True], took[False]
            # Both over the loop's own seconds of CPU: how fast the machine is just now cancels out.
            losses.append(100 * (1 - wall_off / own_off * own / wall))
            beside.append(100 * others / wall)
            without.append(100 * others_off / wall_off)
            lengths.append(1000 * own_off / number)
            progress(f"pair {n + 1} of {pairs}: {losses[-1]:+.2f} %, {beside[-1]:.2f} % of a core")
    return (
        Figure("loss", "%", losses, at_most=1.0),
        Figure("other_threads", "% of a core", beside, at_most=1.0),
        Figure("other_threads_without", "% of a core", without),
        Figure("step", "ms", lengths),
    )


def _loop(kernel: Kernel, number: int, *, line: bool) -> tuple[float, float, float]:
    """Run the loop; a front end that may be asked for input and names no cell is a console, and gets no line."""
    kernel.client.allow_stdin = not line
    wall, own, others = kernel.run(f"%%gpulane 256MiB\ntook = steps({number})", "took")
    return wall, own, others


if __name__ == "__main__":
    sys.exit(main("cell_line", QUESTION, measure))
