"""Forty-two small models resident, about four requests a second in all (Salus). See README.md."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, percentile, progress
from benchmarks.gpu.notebooks import FREE, SEEN, Notebook, several
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene

QUESTION = (
    "42 small models resident, some 4 requests/s in all: what does gpushare add to a request?"
)
KIND = "small"
MODELS, FREE_KERNELS = 42, 6
RATE = 4.0
LEAD = 2.0
"""Seconds between sending the cells and the first request."""


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows: requests to 42 shared kernels, the same requests to a few free ones."""
    models, few = (6, 2) if options.quick or options.device == "host" else (MODELS, FREE_KERNELS)
    pace = Pace.of(options, 5, 6.0)
    shared: list[list[float]] = []
    free: list[list[float]] = []
    wanted = [*several(SEEN, models), *several(FREE, few)]
    with scene(options, wanted, [KIND]) as (_, both):
        ours, theirs = both[:models], both[models:]
        for n in range(pace.rounds):
            chance = random.Random(n)
            offsets = _arrivals(chance, pace.seconds)
            shared.append(_requests(ours, offsets, chance))
            free.append(_requests(theirs, offsets, chance))
            progress(f"round {n + 1} of {pace.rounds}: {len(offsets)} requests")
    added = [
        1000 * (_mean(ours) - _mean(theirs)) for ours, theirs in zip(shared, free, strict=True)
    ]
    every, every_free = ([1000 * one for each in arm for one in each] for arm in (shared, free))
    return [
        Figure("added_mean", "ms", added, at_most=5.0),
        Figure("latency_p99", "ms", [percentile(every, 99)]),
        Figure("latency_p99_free", "ms", [percentile(every_free, 99)]),
        Figure("latency_median", "ms", [percentile(every, 50)]),
        Figure("latency_median_free", "ms", [percentile(every_free, 50)]),
        Figure("latency", "ms", every),
        Figure("models", "", [float(models)]),
    ]


def _arrivals(chance: random.Random, seconds: float) -> list[float]:
    """Return when requests come, in seconds from the first moment: a Poisson stream, one at least."""
    found, at = [], chance.expovariate(RATE)
    while at < seconds or not found:
        found.append(min(at, seconds))
        at += chance.expovariate(RATE)
    return found


def _requests(
    notebooks: Sequence[Notebook], offsets: Sequence[float], chance: random.Random
) -> list[float]:
    """Send every request to one of the notebooks; return the latencies in seconds. All of them have a cell that serves."""
    start = time.monotonic() + LEAD
    each: list[list[float]] = [[] for _ in notebooks]
    for offset in offsets:
        chance.choice(each).append(start + offset)
    for notebook, arrivals in zip(notebooks, each, strict=True):
        notebook.begin(f"took = serve({KIND!r}, {arrivals})", "took")
    return [one for notebook in notebooks for one in notebook.finish(timeout=120)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(row("gpu_resident_models", QUESTION, measure))
