"""One pool of all hosts, as an ideal that no placement reaches: a job is bound to no host, memory and switching cost nothing.

What is left is the policy: under FIFO the first so many run, under SRTF those with the least left (as if it were known), under
FAIR people have equal parts, and under PACK jobs have; nobody runs on more than one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType

from gpushare_kernel.replay.engine import Settings
from gpushare_kernel.replay.law import max_min
from gpushare_kernel.replay.machine import Run
from gpushare_kernel.replay.outcome import Outcome, record
from gpushare_kernel.replay.trace import TraceJob

_DONE = 1e-9
Speeds = Callable[[Sequence[Run], int], list[float]]


def pooled(jobs: Sequence[TraceJob], settings: Settings, number: int) -> Outcome:
    """Return what becomes of `jobs`, in the order of their arrival, on `number` devices at once."""
    speeds = _POLICIES[settings.policy]
    runs = [Run(job, job.duration, job.duration, still_since=job.submitted) for job in jobs]
    there: list[Run] = []
    now, busy, events, arriving = 0.0, 0.0, 0, 0
    while there or arriving < len(runs):
        comes = runs[arriving].job.submitted if arriving < len(runs) else inf
        ends = min((now + run.left / run.speed for run in there if run.speed), default=inf)
        at = max(now, min(comes, ends))
        for run in there:
            run.left -= (at - now) * run.speed
            run.device_time += (at - now) * run.speed * run.job.demand
        busy += at - now if there else 0.0
        now, events = at, events + 1
        if comes <= at:
            there.append(runs[arriving])
            arriving += 1
        for run in there:
            # Late in a long trace what rounding leaves is less than the clock can tell.
            over = run.speed and now + run.left / run.speed <= now
            if over or run.left <= _DONE * run.job.duration:
                run.ended = now
                run.stretches.append((run.first_run or 0.0, now))
        there = [run for run in there if run.ended is None]
        for run, speed in zip(there, speeds(there, number), strict=True):
            _go(run, speed, now)
    return Outcome(tuple(record(run) for run in runs), settings, 0.0, events, busy)


def _go(run: Run, speed: float, now: float) -> None:
    if speed and not run.speed:
        run.turns += 1
        run.longest_still = max(run.longest_still, now - run.still_since)
        if run.first_run is None:
            run.first_run = run.lane_at = now
    elif run.speed and not speed:
        run.still_since = now
    run.speed = speed


def _first(there: Sequence[Run], number: int) -> list[float]:
    return [1.0 if n < number else 0.0 for n in range(len(there))]


def _shortest(there: Sequence[Run], number: int) -> list[float]:
    chosen = set(sorted(range(len(there)), key=lambda n: there[n].left)[:number])
    return [1.0 if n in chosen else 0.0 for n in range(len(there))]


def _equal(there: Sequence[Run], number: int) -> list[float]:
    demands = [run.job.demand for run in there]
    shares = max_min(demands, float(number))
    return [share / demand for share, demand in zip(shares, demands, strict=True)]


def _by_people(there: Sequence[Run], number: int) -> list[float]:
    of: dict[str, list[int]] = {}
    for n, run in enumerate(there):
        of.setdefault(run.job.owner, []).append(n)
    wanted = [sum(there[n].job.demand for n in mine) for mine in of.values()]
    speeds = [0.0] * len(there)
    for mine, part in zip(of.values(), max_min(wanted, float(number)), strict=True):
        demands = [there[n].job.demand for n in mine]
        for n, share in zip(mine, max_min(demands, part), strict=True):
            speeds[n] = share / there[n].job.demand
    return speeds


_POLICIES: Mapping[str, Speeds] = MappingProxyType(
    {"fifo": _first, "srtf": _shortest, "fair": _by_people, "pack": _equal}
)
