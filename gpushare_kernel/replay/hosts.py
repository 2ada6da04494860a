"""Several hosts on one virtual clock: each with a scheduler of its own, and jobs that are sent to one of them when they come.

Where a job goes is decided as a gateway decides (`hub/placement.py`), by reports that are up to `REPORTED` seconds old and
what was sent since; or, to compare, in other ways. One pool of everything is what no placement can reach: there a job is
bound to no host.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from random import Random
from types import MappingProxyType

from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.values import JobState
from gpushare_kernel.hub.placement import GPU, DeviceState, HostState, Wish, order
from gpushare_kernel.replay.engine import Engine, Settings, auto_turn
from gpushare_kernel.replay.machine import Run
from gpushare_kernel.replay.outcome import Outcome
from gpushare_kernel.replay.pool import pooled
from gpushare_kernel.replay.trace import TraceJob, check_fits

REPORTED = 2.0
"""Seconds between two reports of a host, as a gateway asks for them."""


class Place(Engine):
    """One of the hosts."""

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__([], settings)
        self.name = name
        self.here: list[TraceJob] = []
        self._open_of: Counter[str] = Counter()
        self._known: tuple[int, DeviceState] | None = None

    def take(self, job: TraceJob) -> None:
        """`job` comes here, at its time; everything before has happened."""
        self.here.append(job)
        self.jobs = self.here
        self._left += 1
        self._open_of[job.owner] += 1
        while not self.step(job.submitted):
            pass
        self._arrive(job)

    @property
    def open(self) -> int:
        """How many jobs are here that have not ended."""
        return self._left

    def open_of(self, owner: str) -> int:
        """How many of those are one person's."""
        return self._open_of[owner]

    def _reached(self, run: Run) -> None:
        super()._reached(run)
        if run.ended is not None:
            self._open_of[run.job.owner] -= 1

    def state(self) -> DeviceState:
        """Return what its broker would say now."""
        if self._known is None or self._known[0] != self.events:
            self._known = (self.events, self._asked())
        return self._known[1]

    def _asked(self) -> DeviceState:
        core = self.core
        queued = [job for job in core.jobs.values() if job.state is JobState.QUEUED]
        etas = [why(core, job).eta for job in queued]
        known = [eta for eta in etas if eta is not None]
        return DeviceState(
            GPU,
            self.settings.capacity,
            max(0, core.book.table.free),
            wanting=self._left,
            waiting=len(queued),
            sessions=self._left,
            wait=max(known, default=0.0) if len(known) == len(etas) else None,
        )


class Placing(ABC):
    """A way to decide where a job goes."""

    def __init__(self, places: Sequence[Place], seed: int) -> None:
        self.places = places
        self.chance = Random(seed)  # noqa: S311  no secret: a draw that can be repeated

    @abstractmethod
    def choose(self, job: TraceJob) -> int:
        """Return the number of the host that `job` goes to."""


class Soonest(Placing):
    """As a gateway does, knowing what each job needs."""

    knows_needs = True

    def __init__(self, places: Sequence[Place], seed: int) -> None:
        super().__init__(places, seed)
        self._numbers = {place.name: n for n, place in enumerate(places)}
        self._said = [HostState(place.name, (place.state(),)) for place in places]
        self._asked_at = [-inf] * len(places)

    def choose(self, job: TraceJob) -> int:
        """Rank what hosts said last, with what was sent there since."""
        needs = job.persistent + job.ephemeral if self.knows_needs else 0
        number = self._numbers[
            order(self.reports(job.submitted), Wish(needs, salt=job.name)).hosts[0]
        ]
        said = self._said[number]
        self._said[number] = dataclasses.replace(said, coming=(*said.coming, needs))
        return number

    def reports(self, now: float) -> Sequence[HostState]:
        """Return what each host said last; one that is due is asked."""
        for n, place in enumerate(self.places):
            if now - self._asked_at[n] >= REPORTED:
                self._asked_at[n] = now
                self._said[n] = HostState(place.name, (place.state(),))
        return self._said


class Blind(Soonest):
    """As a gateway does, where nobody knows what a job needs."""

    knows_needs = False


class Fewest(Placing):
    """Where the fewest of those that were sent are, as gateway_provisioners' least-connection."""

    def choose(self, job: TraceJob) -> int:  # noqa: ARG002  whatever it is
        """Count those that have not ended."""
        return min(range(len(self.places)), key=lambda n: self.places[n].open)


class Own(Placing):
    """The same by everybody's own count: each person's server knows of its own kernels only."""

    def __init__(self, places: Sequence[Place], seed: int) -> None:
        super().__init__(places, seed)
        self._next = 0

    def choose(self, job: TraceJob) -> int:
        """Count those of the same person; of several hosts with as few, the next one."""
        self._next += 1
        number = len(self.places)
        return min(
            ((self._next + n) % number for n in range(number)),
            key=lambda n: self.places[n].open_of(job.owner),
        )


class Turns(Placing):
    """One after the other, as its round-robin."""

    def __init__(self, places: Sequence[Place], seed: int) -> None:
        super().__init__(places, seed)
        self._next = 0

    def choose(self, job: TraceJob) -> int:  # noqa: ARG002  whatever it is
        """Take the next one."""
        self._next += 1
        return (self._next - 1) % len(self.places)


class Anywhere(Placing):
    """Anywhere."""

    def choose(self, job: TraceJob) -> int:  # noqa: ARG002  whatever it is
        """Draw one."""
        return self.chance.randrange(len(self.places))


POOL = "pool"
PLACINGS: Mapping[str, type[Placing]] = MappingProxyType(
    {
        "soonest": Soonest,
        "blind": Blind,
        "fewest": Fewest,
        "own": Own,
        "turns": Turns,
        "random": Anywhere,
    }
)


def replay_hosts(
    jobs: Sequence[TraceJob], settings: Settings, number: int, placing: str, seed: int = 0
) -> Outcome:
    """Return what becomes of `jobs` on `number` hosts of `settings` each.

    `placing` is one of `PLACINGS`, or `pool`: no job is bound to a host (`replay/pool.py`). `seed` draws what is drawn.

    Raises
    ------
    BadTrace
        Where a job never fits one host.
    """
    check_fits(jobs, settings.capacity)
    if placing == POOL:
        return pooled(jobs, settings, number)
    turn = settings.turn or auto_turn(jobs)
    one = dataclasses.replace(settings, turn=turn)
    places = [Place(f"h{n}", one) for n in range(number)]
    chosen = PLACINGS[placing](places, seed)
    _run(jobs, places, chosen)
    records = {one.name: one for place in places for one in place.outcome().jobs}
    return Outcome(
        jobs=tuple(records[job.name] for job in jobs),
        settings=one,
        turn=turn,
        events=sum(place.events for place in places),
        busy=sum(place.machine.busy for place in places),
    )


def _run(jobs: Sequence[TraceJob], places: Sequence[Place], chosen: Placing) -> None:
    """Let time pass, whatever happens first on any host first, until the last job has ended."""
    due = [(inf, n) for n in range(len(places))]
    heapify(due)
    at = [inf] * len(places)

    def until(time: float) -> None:
        """Have happen what is before `time`, and of what is then what comes before arrivals: ends and answers."""
        now = []
        while due and due[0][0] <= time and due[0][0] < inf:
            when, n = heappop(due)
            if when != at[n]:
                continue  # it has been put there anew since
            if when < time:
                places[n].step()
                renew(n)
                continue
            while not places[n].step(time):
                pass
            now.append(n)
        for n in now:
            renew(n)

    def renew(n: int) -> None:
        at[n] = places[n].next() if places[n].open else inf
        heappush(due, (at[n], n))

    for job in jobs:
        until(job.submitted)
        n = chosen.choose(job)
        places[n].take(job)
        renew(n)
    until(inf)
