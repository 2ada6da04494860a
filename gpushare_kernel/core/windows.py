"""When a device belongs to its real-time jobs: each has a window from a little before its release until it is done.

A job's releases are known where it works on a grid (`every_period`); then the window opens as much earlier as those who
run beside it take to drain, so that the device is free when it starts. A sporadic release opens it at once, and the
drain is part of the proven bound (blocking). A window ends with the job's word that it is done, and when it was
proven to be at the latest, reckoned from when the others stand still: who overruns has no windows until it has been
within its bound again for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import floor, inf

from gpushare_kernel.core.deadlines import backoff
from gpushare_kernel.core.values import JobId, Promise, SessionId

_MOST_UNDONE, _LATEST = 64, 32
_TICK = 0.01
"""By what part of a period a release may come before its tick."""
BEHAVES = 3
"""Jobs in a row that must be within their bound before one that overran has its windows again."""
FIRST_TRIAL, LONGEST_TRIAL = 1.0, 600.0
"""Seconds after which it has windows for a trial: beside others' work it may be late by that alone. At first, and at most; twice as long each time."""


@dataclass(slots=True, eq=False)
class Standing:
    """One real-time job that runs: what it was promised, and where it stands."""

    job: JobId
    session: SessionId
    promise: Promise
    #: Its next release, where that is known.
    next: float | None = None
    #: Since when its window is open (None: it is not), for which release, and until when at most.
    opened: float | None = None
    release: float = 0.0
    until: float = 0.0
    releases: int = 0
    #: How often it was not done at its bound, and how often not at its deadline; the releases that it is not done with.
    late: int = 0
    missed: int = 0
    undone: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_UNDONE))
    #: Its longest response so far, and the latest ones (seconds).
    longest: float | None = None
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=_LATEST))
    #: Whether a job was released in the window that is open: a notebook may pass a tick over.
    started: bool = False
    #: It overran: no windows until so many jobs were within their bound, or until it is tried again, and how often it was.
    owes: int = 0
    again: float = 0.0
    tries: int = 0
    #: When somebody who is to stand still in this window was last seen not to do so yet.
    busy: float = -inf

    @property
    def own(self) -> float:
        """What it is proven to take once others' work has stopped (seconds): its own, and real-time work before it."""
        return max(0.0, self.promise.bound - self.promise.drain)

    def bound(self, drain: float) -> float:
        """Return how long after its release it is done, where others' work drains within `drain` seconds."""
        promise = self.promise
        return min(promise.deadline, promise.bound + max(0.0, drain - promise.drain))

    def misses(self, at: float) -> int:
        """Return how many deadlines were missed by now."""
        return self.missed + sum(at > release + self.promise.deadline for release in self.undone)


class Windows:
    """The windows of one device."""

    def __init__(self) -> None:
        self.standing: dict[JobId, Standing] = {}
        #: The longest drain on record of those who run beside.
        self.drain = 0.0
        self._open = 0

    @property
    def open(self) -> bool:
        """Whether the device belongs to a real-time job now."""
        return self._open > 0

    @property
    def alone(self) -> bool:
        """Whether all real-time jobs are of one session: else these stand aside for each other, too."""
        return len({one.session for one in self.standing.values()}) <= 1

    def owner(self, at: float) -> Standing | None:
        """Return who has the device of those that are released: the largest weight, of equals the first."""
        released = (o for o in self.standing.values() if o.opened is not None and o.release <= at)
        return min(released, key=lambda one: (-one.promise.weight, one.release), default=None)

    def at_work(self, session: SessionId, at: float) -> bool:
        """Whether a job of `session` is released and not done."""
        mine = (one for one in self.standing.values() if one.session == session)
        return any(one.opened is not None and one.release <= at for one in mine)

    @property
    def left(self) -> float:
        """The least that jobs leave of their periods (seconds), by their latest responses; who overran counts for nothing."""
        return min(
            (
                one.promise.period - min(max(one.latest, default=0.0), one.promise.bound)
                for one in self.standing.values()
                if not one.owes
            ),
            default=inf,
        )

    def stands(self, session: SessionId, at: float) -> bool:
        """Whether a real-time session stands still for another one.

        At work it does for whose released job comes first. With no window of its own nothing of it has a deadline now, and it
        stands in those of no less weight: a job that it released then would wait for them all the same. Who overran has none.
        """
        others = [o for o in self.standing.values() if o.opened is not None and o.session != session]  # fmt: skip
        mine = [o for o in self.standing.values() if o.session == session]
        if any(one.opened is not None for one in mine):
            owner = self.owner(at)
            return owner is not None and owner.session != session and self.at_work(session, at)
        weight = max((one.promise.weight for one in mine if not one.owes), default=-inf)
        return any(one.promise.weight >= weight for one in others)

    @property
    def absorbs(self) -> float:
        """The longest drain (seconds) of others with which every deadline is proven; inf where there is none."""
        return min((one.promise.absorbs for one in self.standing.values()), default=inf)

    def begin(self, job: JobId, session: SessionId, promise: Promise) -> None:
        """`job` runs from now on."""
        self.standing[job] = Standing(job, session, promise)

    def end(self, job: JobId) -> None:
        """`job` is over."""
        one = self.standing.pop(job, None)
        if one is not None:
            self._close(one)

    def grid(self, job: JobId, first: float) -> None:
        """`job` is released at `first` and every period from then on."""
        one = self.standing.get(job)
        if one is not None:
            one.next = first

    def sporadic(self, job: JobId) -> None:
        """When `job` is released next is not known any more."""
        one = self.standing.get(job)
        if one is not None:
            one.next = None

    def released(self, job: JobId, at: float) -> None:
        """`job` is released now. Where its releases are not known before, that opens its window."""
        one = self.standing.get(job)
        if one is None:
            return
        if one.opened is None and one.next is None:
            self._release(one, at, at)
        if one.next is not None:  # its tick, whether that has its window already or not
            period = one.promise.period
            at = one.next + period * floor((at - one.next) / period + _TICK)
        one.undone.append(at)
        one.started = True

    def done(self, job: JobId, at: float, left: int = 0) -> float:
        """`job` has done a release, the oldest, and `left` are still to be done; return for how long the device was its own (seconds)."""
        one = self.standing.get(job)
        if one is None:
            return 0.0
        within = [self._finish(one, at) for _ in range(len(one.undone) - max(0, left))]
        if one.owes and within:
            one.owes = one.owes - 1 if all(within) else BEHAVES
            one.tries = one.tries if one.owes else 0
        ahead = not one.started and at < one.release and bool(within)
        if one.opened is None or ahead:  # a window that is open ahead is another job's
            return 0.0
        half = one.promise.period / 2
        if any(abs(release - one.release) < half for release in one.undone):
            return 0.0
        used = max(0.0, at - max(one.opened, one.release))
        self._close(one)
        if one.undone and one.next is None:  # released in the window of the one before
            self._release(one, one.undone[-1], at)
        return used

    def _finish(self, one: Standing, at: float) -> bool:
        """The oldest release is done; return whether within its bound."""
        release = one.undone.popleft()
        response = max(0.0, at - release)
        one.missed += at > release + one.promise.deadline
        one.latest.append(response)
        one.longest = response if one.longest is None else max(one.longest, response)
        return response <= one.bound(self.drain)

    def draining(self, at: float) -> None:
        """Somebody who is to stand still did not do so until now: windows are as much longer, up to the deadline."""
        for one in self.standing.values():
            if one.opened is not None:
                one.busy = at
                latest = max(at, one.release) + one.own
                one.until = min(max(one.until, latest), one.release + one.promise.deadline)

    def tick(self, at: float, lead: float) -> list[Standing]:
        """Open the windows that are due, `lead` seconds before their release; close and return those that are over."""
        over = []
        for one in self.standing.values():
            if one.opened is not None and at >= one.until:
                self._close(one)
                one.late += one.started
                if one.started and not self._excused(one):
                    self._overran(one, at)
                    over.append(one)
            if one.next is None or one.opened is not None:
                continue
            # Releases whose time has passed unnoticed (the machine slept) are nobody's any more.
            behind = at - one.next - one.promise.bound
            if behind >= 0:
                one.next += one.promise.period * (floor(behind / one.promise.period) + 1)
            if at >= one.next - lead:
                release = one.next
                one.next += one.promise.period
                self._release(one, release, at)
        return over

    def next_alarm(self, lead: float, at: float) -> float | None:
        """When the next window opens or ends, or its job is released; None where nobody knows of one."""
        return min(self._alarms(lead, at), default=None)

    def next_release(self) -> float | None:
        """When the next release is that is known and has no window yet; None where there is none."""
        standing = self.standing.values()
        known = (one.next for one in standing if one.next is not None and not one.owes)
        return min(known, default=None)

    def _alarms(self, lead: float, at: float) -> Iterator[float]:
        for one in self.standing.values():
            if one.opened is not None:
                yield one.until if one.release <= at else one.release
            elif one.next is not None:
                yield one.next - lead

    @staticmethod
    def _excused(one: Standing) -> bool:
        """Whether others' work left it less time in its window than it was proven to take."""
        return max(one.busy, one.release) + one.own > one.until and one.busy > -inf

    @staticmethod
    def _overran(one: Standing, at: float) -> None:
        one.owes = BEHAVES
        one.again = at + backoff(FIRST_TRIAL, LONGEST_TRIAL, one.tries)
        one.tries += 1

    def _release(self, one: Standing, release: float, at: float) -> None:
        one.releases += 1
        period, last = one.promise.period, one.undone[-1] if one.undone else -inf
        one.release, one.started = release, abs(last - release) < period / 2
        if one.owes and at < one.again:
            return
        one.opened, one.until, one.busy = at, release + one.bound(self.drain), -inf
        self._open += 1

    def _close(self, one: Standing) -> None:
        if one.opened is not None:
            one.opened = None
            self._open -= 1
