"""How well lanes fill the memory, against the exact optimum. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.validate import validate
from gpushare_kernel.core.values import JobId, MiB, SessionId, UserId

QUESTION = "Of the memory that jobs could have together at best, how much do lanes give them?"
CAPACITY = 1000
"""MiB; jobs are drawn in parts of it."""
Mix = list[tuple[int, int]]


def uniform(random: Random) -> Mix:
    """2 to 8 jobs that keep up to a fifth of the device and take up to three fifths."""
    return [(random.randint(0, 200), random.randint(10, 600)) for _ in range(random.randint(2, 8))]


def salus(random: Random) -> Mix:
    """2 to 8 trainings as Salus' table has them: 0.7 to 5 % of 16 GB to keep, 3 to 90 % to take."""
    return [(random.randint(7, 50), random.randint(30, 900)) for _ in range(random.randint(2, 8))]


def optimum(jobs: Mix) -> int:
    """Return the most P + E of jobs that fit together: all their P and, in one lane, the largest E. By trying all sets."""
    return max(
        sum(p + e for p, e in chosen)
        for n in range(len(jobs) + 1)
        for chosen in combinations(jobs, n)
        if sum(p for p, _ in chosen) + max((e for _, e in chosen), default=0) <= CAPACITY
    )


def filled(jobs: Mix) -> int:
    """Return the P + E of those who fit together when each that still fits is taken, in the order of `jobs`."""
    kept = largest = whole = 0
    for p, e in jobs:
        if kept + p + max(largest, e) <= CAPACITY:
            kept, largest, whole = kept + p, max(largest, e), whole + p + e
    return whole


def admitted(jobs: Mix, policy: str) -> int:
    """Return the P + E of those let in, after all have waited for the whole memory; each meets a boundary when asked."""
    core = Scheduler(Config(capacity=CAPACITY * MiB, compute=1.0, policy=policy, divisible=False))
    asked: list[JobId] = []
    at = 0.0

    def send(event: ev.Event) -> None:
        out = core.handle(event)
        asked.extend(each.job for each in out if isinstance(each, do.Ask) and each.lane)
        validate(core)

    for n, (p, e) in enumerate([(CAPACITY, 0), *jobs]):
        name = SessionId(f"s{n}")
        send(ev.SessionOpened(at=at, session=name, user=UserId(name)))
        send(ev.SessionReady(at=at, session=name, bare=False, context=0))
        send(
            ev.JobSubmitted(
                at=at,
                job=JobId(f"{name}/1"),
                session=name,
                persistent=p * MiB,
                ephemeral=e * MiB,
                cooperative=True,
            )
        )
    send(ev.SessionClosed(at=at, session=SessionId("s0")))
    while asked:
        at += 0.01
        job = core.jobs[asked.pop(0)]
        send(
            ev.BoundaryReached(
                at=at,
                job=job.id,
                trimmed=True,
                persistent=job.need.persistent,
                interval=0.01,
            )
        )
    here = [job.need for job in core.jobs.values() if job.lane is not None]
    return sum(need.persistent + need.ephemeral for need in here) // MiB


def measure(options: Options) -> Sequence[Figure]:
    """Both kinds of mixes, under PACK (all wait, the largest first) and FAIR (in the order of arrival); and by filling alone, in two orders."""
    random, number = Random(2020), 40 if options.quick else 400
    found = []
    for kind in (uniform, salus):
        mixes = [kind(random) for _ in range(number)]
        best = [optimum(mix) for mix in mixes]
        for policy in ("pack", "fair"):
            parts = [admitted(m, policy) / b for m, b in zip(mixes, best, strict=True) if b]
            least = 0.95 if policy == "pack" else None
            found.append(
                Figure(f"{policy}_{kind.__name__}", "of the optimum", parts, at_least=least)
            )
        for name, largest in (("largest_first", True), ("smallest_first", False)):
            ordered = [sorted(mix, key=sum, reverse=largest) for mix in mixes]
            parts = [filled(m) / b for m, b in zip(ordered, best, strict=True) if b]
            found += [
                Figure(f"filled_{name}_{kind.__name__}", "of the optimum", parts),
                Figure(f"filled_{name}_{kind.__name__}_mean", "of the optimum", [mean(parts)]),
            ]
    return found


if __name__ == "__main__":
    sys.exit(main("lane_packing", QUESTION, measure))
