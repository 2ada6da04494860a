"""Salus' trace, scaled to what a benchmark has time for, and what became of its jobs beside what a replay says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.common import Figure
from benchmarks.kernels import Kernel
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.values import MiB
from gpushare_kernel.replay.engine import Settings, replay
from gpushare_kernel.replay.salus import read_salus
from gpushare_kernel.replay.trace import TraceJob
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.messages import SetPolicy

DATA = Path(__file__).resolve().parents[1] / "salus_table" / "data"
POLICIES = ("fifo", "srtf", "pack", "fair")


@dataclass(frozen=True, slots=True)
class Live:
    """What became of one job: when it ended (seconds after the first was submitted), and what its work takes alone."""

    ended: float
    work: float


def scaled(number: int, whole: float, step: float, memory: float) -> list[TraceJob]:
    """Return every n-th job of the trace, scaled: one after the other they take `whole` seconds, in steps of `step`.

    Arrivals are scaled alike; sizes by `memory`. Each saturates the device and declares its time.
    """
    every = read_salus(DATA, 1)
    jobs = every[:: len(every) // number][:number]
    factor = whole / sum(job.duration for job in jobs)
    found = []
    for job in jobs:
        seconds = max(1, round(job.duration * factor / step)) * step
        found.append(
            replace(
                job,
                submitted=(job.submitted - jobs[0].submitted) * factor,
                duration=seconds,
                declared=seconds,
                persistent=max(MiB, round(job.persistent * memory)),
                ephemeral=max(MiB, round(job.ephemeral * memory)),
                iteration=step,
                demand=1.0,
            )
        )
    return found


def run(
    places: Places,
    kernels: Sequence[Kernel],
    jobs: Sequence[TraceJob],
    policy: str,
    cell: str,
    **more: object,
) -> list[Live]:
    """Run `jobs` under `policy`, each as a `cell` in a kernel of its own, sent when its time has come.

    The cell is formatted with the job's sizes, its `time`, the `number` of its iterations and `more`; it leaves `took` (what its
    work takes alone) and `ended` (monotonic clock).
    """
    with Line(places) as line:
        line.ask(SetPolicy(policy))
    start = time.monotonic() + 0.5
    for kernel, job in zip(kernels, jobs, strict=True):
        time.sleep(max(0.0, start + job.submitted - time.monotonic()))  # the trace's own times
        code = cell.format(
            persistent=job.persistent,
            ephemeral=job.ephemeral,
            time=job.duration,
            number=round(job.duration / job.iteration),
            **more,
        )
        kernel.begin(code, "[took, ended]")
    found = []
    for kernel in kernels:
        took, ended = kernel.finish(600.0)
        found.append(Live(ended - start, took))
    return found


class Beside:
    """Live runs beside their replays, under each policy."""

    def __init__(self) -> None:
        self._ratios: dict[str, list[float]] = {}

    def add(self, jobs: Sequence[TraceJob], found: Sequence[Live], settings: Settings) -> str:
        """Replay what was run, each job with the work it was; return a line on both."""
        worked = [replace(job, duration=one.work) for job, one in zip(jobs, found, strict=True)]
        there = replay(worked, settings).summary()
        times = [one.ended - job.submitted for job, one in zip(jobs, found, strict=True)]
        for name, live, played in (
            ("avg_jct", mean(times), float(there["avg_jct_s"])),
            ("makespan", max(one.ended for one in found), float(there["makespan_s"])),
        ):
            self._ratios.setdefault(f"{settings.policy}_{name}", []).append(live / played)
        return f"{settings.policy}: avg JCT {mean(times):.2f} s live, {there['avg_jct_s']:.2f} s replayed"

    def figures(self) -> list[Figure]:
        """Return live over replayed, for each policy."""
        return [
            Figure(name, "of the replay", values, at_least=0.95, at_most=1.05)
            for name, values in self._ratios.items()
        ]
