"""What is replayed: the trace as Salus ran it, what may have been otherwise, and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from random import Random

import benchmarks.salus_table.policies  # noqa: F401  they register themselves
from gpushare_kernel.core.policies import AGEING
from gpushare_kernel.core.values import GiB
from gpushare_kernel.replay.costs import FREE
from gpushare_kernel.replay.engine import Settings, replay
from gpushare_kernel.replay.law import STREAMS
from gpushare_kernel.replay.outcome import JobRecord, percentile
from gpushare_kernel.replay.salus import CAPACITY, read_salus
from gpushare_kernel.replay.trace import TraceJob

Jobs = Sequence[TraceJob]
Change = Callable[[Jobs, Random], Jobs]

CELLS = ("makespan", "avg_queue", "avg_jct", "p95_jct")
PUBLISHED = {
    "fifo": (303.4, 167.6, 170.6, 251.1),
    "srtf": (306.0, 28.6, 53.4, 217.0),
    "pack": (287.4, 129.9, 145.5, 266.1),
    "fair": (301.6, 58.5, 96.6, 281.2),
}
"""Table 1 of the paper, in minutes, in the order of `CELLS`."""
OVERHEAD = {
    "alexnet": 1.042, "googlenet": 1.021, "inception3": 1.006, "inception4": 1.015, "overfeat": 1.019,
    "resnet50": 1.012, "resnet101": 1.014, "resnet152": 1.013, "vgg11": 1.003, "vgg16": 1.006,
    "vgg19": 1.004,
}  # fmt: skip
"""Seconds of an iteration under Salus over those without it (figure 12, read out)."""
EVERY = 1000.0
"""As many devices as no set of jobs asks for: whatever has a lane runs beside the others, and the law says how fast."""
EVERYTHING = 100 * CAPACITY
"""Bytes that the memory of all jobs fits into."""
START = (0.0, 10.0)
"""Seconds of a job's start that are not in the device's way: figure 8a shows 1.7, 5.9 and 10.0 from a submission until a lane
is asked for. How many of them the trace's durations hold was not published: each draw has its own."""


def fudged(jobs: Jobs, _: Random) -> Jobs:
    """(1.1 P + E) x 1.05, at most all: what the code reserves for a job (lanemgr.cpp)."""

    def one(job: TraceJob) -> TraceJob:
        persistent = round(job.persistent * 1.1 * 1.05)
        most = 14 * GiB - persistent
        return replace(job, persistent=persistent, ephemeral=min(most, round(job.ephemeral * 1.05)))

    return [one(job) for job in jobs]


def slowed(jobs: Jobs, _: Random) -> Jobs:
    """Iterations take what figure 12 says longer."""

    def one(job: TraceJob) -> TraceJob:
        work = job.duration * OVERHEAD[job.kind.rpartition("_")[0]]
        return replace(job, duration=work, declared=job.declared and work)

    return [one(job) for job in jobs]


def started(jobs: Jobs, chance: Random) -> Jobs:
    """What a job needs to start is no work of the device: it comes before its lane, beside the work of others."""
    start = chance.uniform(*START)

    def one(job: TraceJob) -> TraceJob:
        work = max(job.iteration, job.duration - start)
        return replace(
            job, submitted=job.submitted + start, duration=work, declared=job.declared and work
        )

    return [one(job) for job in jobs]


def undeclared(jobs: Jobs, _: Random) -> Jobs:
    """Nobody says how long it takes."""
    return [replace(job, declared=None) for job in jobs]


def saturating(jobs: Jobs, _: Random) -> Jobs:
    """Each takes all of the device while it runs."""
    return [replace(job, demand=1.0) for job in jobs]


def part_of_bound(jobs: Jobs, done: Sequence[JobRecord]) -> float:
    """Return how near SRTF's bound on waiting comes: the latest submission that passed a job, over what S2 allows.

    S2 (docs/scheduling.md): a job that needs r seconds is passed only by those submitted within r / AGEING after it. 0 where
    nobody declares a time.
    """
    needs = {job.name: job.declared for job in jobs}
    return (
        max(
            (other.submitted - job.submitted) / (need / AGEING)
            for job in done
            for other in done
            if (need := needs[job.name]) and other.first_run <= job.first_run
        )
        if any(needs.values())
        else 0.0
    )


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run the trace."""

    settings: Settings
    changes: tuple[Change, ...] = ()

    def but(self, *changes: Change, **settings: object) -> Arm:
        """Return this arm with something otherwise."""
        return Arm(replace(self.settings, **settings), (*self.changes, *changes))  # type: ignore[arg-type]

    def figures(self, folder: Path, seed: int) -> dict[str, float]:
        """Return the cells of the table for one draw, in minutes, counted from the submission in the trace."""
        asked = read_salus(folder, seed)
        jobs: Jobs = asked
        for change in self.changes:
            jobs = change(jobs, Random(seed))
        submitted = {job.name: job.submitted for job in asked}
        done = replay(jobs, self.settings).jobs
        times = sorted(job.ended - submitted[job.name] for job in done)
        queues = [job.lane_at - submitted[job.name] for job in done]
        cells = (
            max(job.ended for job in done) - min(submitted.values()),
            sum(queues) / len(queues),
            sum(times) / len(times),
            percentile(times, 95),
        )
        return {
            **{name: value / 60 for name, value in zip(CELLS, cells, strict=True)},
            "p50_jct": percentile(times, 50) / 60,
            "longest_wait": max(job.longest_wait for job in done) / 60,
            "part_of_bound": part_of_bound(jobs, done),
        }


AS_RUN = Settings(
    admission="arrival", capacity=CAPACITY, law=STREAMS, costs=FREE, boundary_grace=inf
)
"""Lanes in one process, in the order of arrival; nobody is paused, an iteration is always waited for; switching is free."""
_srtf = Arm(replace(AS_RUN, policy="salus-srtf", single_lane=True))
_fair = Arm(replace(AS_RUN, policy="salus-fair", single_lane=True), (undeclared,))
_pack = Arm(replace(AS_RUN, policy="salus-pack", own_lanes=True, compute=EVERY), (fudged,))
_small = {"capacity": 14 * GiB}

SALUS: dict[str, dict[str, Arm]] = {
    "fifo": {"as run": Arm(replace(AS_RUN, policy="fifo"))},
    "srtf": {
        "as run": _srtf,
        "start, overhead": _srtf.but(slowed, started),
        "14 GiB, reserves": _srtf.but(fudged, **_small),
    },
    "pack": {
        "as run": _pack,
        "start, overhead": _pack.but(slowed, started),
        "Algorithm 1": _pack.but(own_lanes=False),
        "Algorithm 1, 14 GiB": _pack.but(own_lanes=False, **_small),
    },
    "fair": {
        "as run": _fair,
        "newcomers owed nothing": _fair.but(policy="fair"),
        "start, overhead": _fair.but(slowed, started),
        "14 GiB, reserves": _fair.but(fudged, **_small),
        "14 GiB, reserves, overhead": _fair.but(fudged, slowed, **_small),
    },
}
"""Each policy as Salus ran it, and what may have been otherwise (README.md)."""

_ours = Arm(Settings(capacity=CAPACITY))
_ideal = {"capacity": EVERYTHING, "costs": FREE, "law": STREAMS}
OURS: dict[str, Arm] = {
    "srtf": _ours.but(policy="srtf"),
    "srtf_parking": _ours.but(policy="srtf", parking=True),
    "unknown": _ours.but(undeclared, policy="srtf"),
    "unknown_parking": _ours.but(undeclared, policy="srtf", parking=True),
    "fair": _ours.but(policy="fair"),
    "fair_parking": _ours.but(policy="fair", parking=True),
    "pack": _ours.but(policy="pack"),
    "srtf_memory_not_kept": _ours.but(policy="open-srtf"),
    "srtf_ideal": _ours.but(saturating, policy="srtf", **_ideal),
    "fair_ideal": _ours.but(saturating, policy="fair", **_ideal),
}
"""Policy-aware admission, live costs, turns as live; processes that the driver switches between. Then without the rule that keeps
memory for who comes next, and what could be had at best: memory for all, and nothing costs anything."""
