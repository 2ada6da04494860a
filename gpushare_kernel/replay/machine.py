"""The virtual device: those who run at the same time, and when the next of them is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from gpushare_kernel.replay.law import Law
from gpushare_kernel.replay.trace import TraceJob


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
    #: Since when it has stood still, and the longest time that it did; since when it is parked, and when it was.
    still_since: float = 0.0
    longest_still: float = 0.0
    parked_since: float | None = None
    parks: list[tuple[float, float]] = field(default_factory=list)
    turns: int = 0
    #: When it ran: pairs of begin and end, joined where nothing lies between.
    stretches: list[tuple[float, float]] = field(default_factory=list)
    running_since: float | None = None
    #: Its next boundary gives its lane up.
    asked_lane: bool = False
    #: It is paused from outside; whether it ran then, or had just come to a boundary and not said so yet.
    paused: bool = False
    goes_on: bool = False
    arriving: bool = False

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
