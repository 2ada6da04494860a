"""The virtual device: how fast jobs go on that run at the same time, and when the next of them is done.

The co-run law (docs/replay.md has its fit). Alone, a job goes at speed 1 and takes `demand` of the device's time. Beside
others,

    speed_i = min(1 / (1 + k * sum of the others' demands),  share_i / demand_i)

where the shares divide C of the device's time max-min: what one cannot use goes to others. `k` is what light jobs lose to
each other where the device has time for all, `C` what is left of a device whose driver switches between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from gpushare_kernel.replay.trace import TraceJob


@dataclass(frozen=True, slots=True)
class Law:
    """The two constants of the co-run law: `together` is C (a part of 1), `friction` is k (per unit of demand)."""

    together: float
    friction: float

    def speeds(self, demands: Sequence[float]) -> list[float]:
        """Return the speed of each of those who run together, as a part of its speed alone."""
        if len(demands) < 2:  # noqa: PLR2004
            return [1.0] * len(demands)
        whole = sum(demands)
        return [
            min(1.0 / (1.0 + self.friction * (whole - demand)), share / demand)
            for demand, share in zip(demands, max_min(demands, self.together), strict=True)
        ]


DRIVER = Law(together=0.92, friction=0.35)
"""Processes that the driver switches between: fitted to the mixes in `MIXES` (docs/replay.md)."""


def max_min(demands: Sequence[float], whole: float) -> list[float]:
    """Divide `whole`: equal parts, but nobody gets more than it demands, and what is left over is divided again."""
    shares = [0.0] * len(demands)
    left = whole
    for n, at in enumerate(sorted(range(len(demands)), key=demands.__getitem__)):
        shares[at] = min(demands[at], left / (len(demands) - n))
        left -= shares[at]
    return shares


@dataclass(slots=True, eq=False)
class Run:
    """What becomes of one job. Times in seconds of the virtual clock; `left` and `mark` in seconds alone."""

    job: TraceJob
    #: Work that is left, costs included, and where of it the last boundary was met.
    left: float
    mark: float
    #: Where of it the machine stops it: 0 is its end, else the boundary at which it was asked to stop.
    target: float = 0.0
    speed: float = 0.0
    #: Costs that were added to its work.
    costs: float = 0.0
    device_time: float = 0.0
    wanted: float = 0.0
    lane_at: float | None = None
    first_run: float | None = None
    ended: float | None = None
    #: Since when it has stood still, and the longest time that it did; since when it is parked, and for how long in all.
    still_since: float = 0.0
    longest_still: float = 0.0
    parked_since: float | None = None
    parked: float = 0.0
    turns: int = 0
    #: When it ran: pairs of begin and end, joined where nothing lies between.
    stretches: list[tuple[float, float]] = field(default_factory=list)
    running_since: float | None = None
    #: Its next boundary gives its lane up; it is paused from outside.
    asked_lane: bool = False
    paused: bool = False

    def cost(self, seconds: float) -> None:
        """Have it lose `seconds` when it runs next."""
        self.left += seconds
        self.costs += seconds

    def boundary_ahead(self) -> float:
        """Return where of its work the next boundary is, at or below `left`; 0 where its end comes first."""
        step = self.job.iteration
        passed = max(0.0, self.mark - self.left)
        steps = max(1.0, -(-(passed - 1e-9) // step))
        return max(0.0, self.mark - steps * step)


class Machine:
    """Those who run, brought forward in time from event to event."""

    def __init__(self, law: Law) -> None:
        self.law = law
        self.at = 0.0
        self.running: dict[str, Run] = {}
        #: Seconds in which at least one ran.
        self.busy = 0.0
        self._next: tuple[float, Run] | None = None
        self._stale = True

    def start(self, run: Run) -> None:
        """`run` goes on from now."""
        self.running[run.job.name] = run
        run.turns += 1
        run.running_since = self.at
        if run.first_run is None:
            run.first_run = self.at
        run.longest_still = max(run.longest_still, self.at - run.still_since)
        self._change()

    def stop(self, run: Run) -> None:
        """`run` stands still from now."""
        if self.running.pop(run.job.name, None) is None:
            return
        began, run.running_since, run.still_since = run.running_since, None, self.at
        if began is not None:
            if run.stretches and run.stretches[-1][1] == began:
                began = run.stretches.pop()[0]
            run.stretches.append((began, self.at))
        self._change()

    def aim(self, run: Run, target: float) -> None:
        """Stop `run` once `target` seconds of its work are left."""
        run.target = target
        self._stale = True

    def next(self) -> tuple[float, Run] | None:
        """Return when the next of them reaches its target, and who that is."""
        if self._stale:
            self._stale = False
            best, first = inf, None
            for run in self.running.values():
                when = (run.left - run.target) / run.speed
                if when < best:
                    best, first = when, run
            self._next = None if first is None else (self.at + max(0.0, best), first)
        return self._next

    def advance(self, at: float) -> None:
        """Let time pass until `at`, which is not after `next()`."""
        passed = at - self.at
        if passed > 0:
            for run in self.running.values():
                run.left -= passed * run.speed
                used = passed * run.job.demand
                run.device_time += used * run.speed
                run.wanted += used
            if self.running:
                self.busy += passed
        self.at = at

    def _change(self) -> None:
        self._stale = True
        runs = self.running.values()
        for run, speed in zip(runs, self.law.speeds([r.job.demand for r in runs]), strict=True):
            run.speed = speed
