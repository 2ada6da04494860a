"""One CPU cell alone on the machine, shared against local. See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, Stage, main, progress, staged
from benchmarks.kernels import LOCAL, SHARED, Kernel, kernels
from gpushare_kernel import procfs

QUESTION = "A CPU cell alone: what does it lose to gpushare, and what do our threads use?"
CELL = Path(__file__).with_name("cell.py").read_text(encoding="utf-8")


def measure(options: Options) -> Sequence[Figure]:
    """Run pairs of cells, shared then local and local then shared in turns."""
    pairs, seconds = (3, 1.5) if options.quick else (15, 4.0)
    losses, inside, broker = [], [], []
    with staged() as stage, stage.broker(), kernels(SHARED) as (ours,), kernels(LOCAL) as (theirs,):
        for kernel in (ours, theirs):
            kernel.run(CELL)
            kernel.run("alone(0.5)")
        if not ours.run("", "ours()") or theirs.run("", "ours()"):
            msg = "the shared kernel must have a thread of ours, and the local one none"
            raise AssertionError(msg)
        for n in range(pairs):
            if n % 2:
                local, (rate, threads, outside) = (
                    _rate(theirs, seconds),
                    _watched(ours, stage, seconds),
                )
            else:
                (rate, threads, outside), local = (
                    _watched(ours, stage, seconds),
                    _rate(theirs, seconds),
                )
            losses.append(100 * (1 - rate / local))
            inside.append(threads)
            broker.append(outside)
            progress(f"pair {n + 1} of {pairs}: {losses[-1]:+.2f} %")
    return (
        Figure("loss", "%", losses, at_most=1.0),
        Figure("our_threads", "% of a core", inside, at_most=0.2, worst=True),
        Figure("broker_and_guardian", "% of a core", broker),
    )


def _rate(kernel: Kernel, seconds: float) -> float:
    return float(kernel.run(f"rate = alone({seconds})", "rate"))


def _watched(kernel: Kernel, stage: Stage, seconds: float) -> tuple[float, float, float]:
    """Run the cell in a shared kernel; return its rate, and what our threads and our processes used of a core, in percent."""
    pids = stage.pids
    outside, start = _cpu(pids), time.monotonic()
    rate, before, after = kernel.run(
        f"before = ours(); rate = alone({seconds}); after = ours()", "[rate, before, after]"
    )
    passed = time.monotonic() - start
    inside = sum(after[name] - before.get(name, 0.0) for name in after)
    return rate, 100 * inside / passed, 100 * (_cpu(pids) - outside) / passed


def _cpu(pids: Sequence[int]) -> float:
    return sum(procfs.cpu_seconds(pid) or 0.0 for pid in pids)


if __name__ == "__main__":
    sys.exit(main("alone", QUESTION, measure))
