"""A virtual broker round a scheduler: it makes the events of a named mix, in steady state, and carries out what comes of them.

Everything is drawn from one seeded generator, so the same seed gives the same events.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from random import Random
from time import perf_counter_ns
from typing import Any, Generic, TypeVar

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import JobId, MiB, PauseStatus, SessionId, Usage, UserId

T = TypeVar("T")

#: Events that come from outside, of each kind in a thousand. Answers (`Paused`, `BoundaryReached`) come besides: one step
#: after the scheduler asked for them, as many as it asked for.
MIX = {
    "CellStarted": 215,
    "CellEnded": 215,
    "Sampled": 290,
    "JobSubmitted": 62,
    "JobEnded": 60,
    "JobCancelled": 2,
    "SessionOpened": 20,
    "SessionReady": 26,
    "SessionClosed": 20,
    "SessionRestarted": 6,
    "Exempted": 28,
    "WeightChanged": 17,
    "Released": 27,
    "CapacityChanged": 12,
}
COMPUTE = 8.0
STEP = 0.002
"""Seconds between two events."""
JOBS, CELLS = 0.2, 0.1
"""Sessions with a declared job, and sessions with an open plain cell, of all."""
_WORKING_CELLS = 0.1
_KNOWN = 0.95
"""Sessions that have run before: their demand is known (one core); the others have their first turn alone."""


class Bag(Generic[T]):
    """A set that a random member can be drawn from."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._at: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: T) -> bool:
        return item in self._at

    def add(self, item: T) -> None:
        if item not in self._at:
            self._at[item] = len(self._items)
            self._items.append(item)

    def discard(self, item: T) -> None:
        at = self._at.pop(item, None)
        if at is not None:
            last = self._items.pop()
            if last != item:
                self._items[at] = last
                self._at[last] = at

    def draw(self, random: Random) -> T:
        return self._items[random.randrange(len(self._items))]


class World:
    """A scheduler with `number` sessions and a tenth as many users."""

    def __init__(self, number: int, seed: int = 8, **settings: Any) -> None:
        self.number = number
        self.random = Random(seed)
        # Plain cells are there whatever the policy; FIFO and PACK would let nobody else in beside so many.
        self.working = _WORKING_CELLS if settings.get("policy") in {None, "fair", "srtf"} else 0.0
        self.core = Scheduler(self._config(settings))
        self.now = 0.0
        self.spent = self.ran = 0
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.digest = hashlib.sha256()
        self._made = 0
        self._used: dict[SessionId, float] = {}
        self._working: set[SessionId] = set()
        #: Sessions by what may happen to them next; jobs that were asked, pauses under way.
        self._opened: deque[SessionId] = deque()
        self._idle: Bag[SessionId] = Bag()
        self._cells: Bag[SessionId] = Bag()
        #: Jobs that we submitted; the core has others: of plain cells, of what is brought back.
        self._submitted: set[JobId] = set()
        self._queued: Bag[JobId] = Bag()
        self._running: Bag[JobId] = Bag()
        self._asked: dict[JobId, bool] = {}
        self._pauses: deque[tuple[SessionId, int]] = deque()
        self._moves: deque[tuple[SessionId, int, bool]] = deque()
        self._kinds: list[str] = []
        self._jobs = 0
        self._sampled = 0.0
        self._fill()

    def _config(self, settings: dict[str, Any]) -> Config:
        return Config(capacity=self.number * 256 * MiB, compute=COMPUTE, can_park=True, **settings)

    def _fill(self) -> None:
        for _ in range(self.number):
            self._session_opened()
            self._session_ready()
        for _ in range(int(self.number * JOBS)):
            self._job_submitted()
        for _ in range(int(self.number * CELLS)):
            self._cell_started()

    def run(self, events: int) -> float:
        """Take in `events` events of the mix, and the answers between them; return the microseconds for one of all."""
        self.ran += events
        spent, before = self.spent, self.counts.copy()
        for _ in range(events):
            self.now += STEP
            self._answer()
            self._next()
        handled = self.counts - before
        outside = sum(number for kind, number in handled.items() if kind in MIX)
        if outside != events:
            msg = f"{events} events of the mix were due, and {outside} were handled"
            raise AssertionError(msg)
        return (self.spent - spent) / sum(handled.values()) / 1000

    def _answer(self) -> None:
        for _ in range(len(self._pauses)):
            self._paused()
        for _ in range(len(self._moves)):
            self._moved()
        for job in [*self._asked]:
            if job in self._asked:
                self._boundary(job)

    def _next(self) -> None:
        if not self._kinds:
            self._kinds = [kind for kind, number in MIX.items() for _ in range(number)]
            self.random.shuffle(self._kinds)
        kind = self._balanced(self._kinds.pop())
        if not self.make(kind):
            self._sampled_now()  # nobody it could happen to just now

    def make(self, kind: str) -> bool:
        """Have an event of this kind; False where there is nobody it could happen to."""
        return _MAKERS[kind](self)

    def _balanced(self, kind: str) -> str:
        """Let beginnings and ends take turns, so that as many are open all the time (and the mix is kept)."""
        if kind in {"CellStarted", "CellEnded"}:
            return "CellStarted" if len(self._cells) < self.number * CELLS else "CellEnded"
        if kind in {"JobSubmitted", "JobEnded"}:
            return "JobSubmitted" if self._jobs < self.number * JOBS else "JobEnded"
        if kind in {"SessionOpened", "SessionClosed"}:
            return "SessionOpened" if len(self._used) < self.number else "SessionClosed"
        return kind

    def send(self, event: ev.Event) -> None:
        """Have one event handled, timed, and carry out what follows, untimed."""
        start = perf_counter_ns()
        out = self.core.handle(event)
        self.spent += perf_counter_ns() - start
        self.counts[type(event).__name__] += 1
        self.digest.update(repr(out).encode())
        for instruction in out:
            self._carry_out(instruction)

    def _carry_out(self, instruction: do.Instruction) -> None:
        self.outcomes[type(instruction).__name__] += 1
        match instruction:
            case do.Grant(job):
                self._asked.pop(job, None)
                self._queued.discard(job)
                if job in self._submitted:
                    self._running.add(job)
            case do.Ask(job, _, turn, lane):
                if turn or lane:
                    self._asked[job] = lane
                else:
                    self._asked.pop(job, None)
            case do.Pause(session, _, _, ticket):
                self._pauses.append((session, ticket))
            case do.Park(session, ticket) | do.Restore(session, ticket):
                self._moves.append((session, ticket, isinstance(instruction, do.Park)))
            case do.Drop(job) | do.Refuse(job):
                self.outcomes["lost"] += job in self._submitted
                self._over(job)

    def _over(self, job: JobId) -> None:
        if job not in self._submitted:
            return
        self._submitted.remove(job)
        self._jobs -= 1
        self._queued.discard(job)
        self._running.discard(job)
        self._asked.pop(job, None)
        session = SessionId(job.split("/")[0])
        if session in self._used:
            self._idle.add(session)

    def _usage(self, session: SessionId) -> Usage:
        return Usage(self._used[session], self._used[session])

    # --- one event each; False where there is nobody it could happen to -----------------------------------

    def _session_opened(self) -> bool:
        self._made += 1
        session = SessionId(f"s{self._made}")
        user = UserId(f"u{self.random.randrange(max(1, self.number // 10))}")
        self._used[session] = 0.0
        self._opened.append(session)
        self.send(ev.SessionOpened(at=self.now, session=session, user=user))
        return True

    def _session_ready(self) -> bool:
        if not self._opened:
            return False
        session = self._opened.popleft()
        if self.random.random() < self.working:
            self._working.add(session)
        self._idle.add(session)
        self.send(ev.SessionReady(at=self.now, session=session, bare=False, context=0))
        if self.random.random() < _KNOWN:
            self.core.sessions[session].demand = 1.0
        return True

    def _session_closed(self) -> bool:
        session = self._idle.draw(self.random)
        self._idle.discard(session)
        del self._used[session]
        self.send(ev.SessionClosed(at=self.now, session=session))
        return True

    def _session_restarted(self) -> bool:
        session = self._cells.draw(self.random)
        self._cells.discard(session)
        self._opened.append(session)
        self.send(ev.SessionRestarted(at=self.now, session=session))
        return True

    def _job_submitted(self) -> bool:
        session = self._idle.draw(self.random)
        self._idle.discard(session)
        self._made += 1
        job = JobId(f"{session}/{self._made}")
        self._queued.add(job)
        self._submitted.add(job)
        sort, size = self.random.random(), self.random.randrange(64, 2048) * MiB
        needs = {"size": size} if sort < 0.7 else {"persistent": 48 * MiB, "ephemeral": size}
        self.outcomes["submitted"] += 1
        self._jobs += 1
        self.send(
            ev.JobSubmitted(
                at=self.now,
                job=job,
                session=session,
                cooperative=self.random.random() < 0.5,
                time=self.random.choice((None, 5.0, 60.0, 3600.0)),
                **(needs if sort < 0.9 else {}),
            )
        )
        return True

    def _job_ended(self) -> bool:
        if not self._running:
            return False
        job = self._running.draw(self.random)
        session = self.core.jobs[job].session
        self._over(job)
        self.send(
            ev.JobEnded(at=self.now, job=job, persistent=32 * MiB, usage=self._usage(session))
        )
        return True

    def _job_cancelled(self) -> bool:
        if not self._queued:
            return False
        self.send(ev.JobCancelled(at=self.now, job=self._queued.draw(self.random)))
        return True

    def _boundary(self, job: JobId) -> None:
        trimmed = self._asked.pop(job)
        self._running.discard(job)
        self.send(
            ev.BoundaryReached(
                at=self.now, job=job, trimmed=trimmed, persistent=32 * MiB, interval=0.005
            )
        )

    def _paused(self) -> None:
        session, ticket = self._pauses.popleft()
        status = PauseStatus.PAUSED if session in self._used else PauseStatus.GONE
        self.send(
            ev.Paused(at=self.now, session=session, ticket=ticket, status=status, drain=0.001)
        )

    def _moved(self) -> None:
        session, ticket, out = self._moves.popleft()
        if out:
            self.send(ev.Parked(at=self.now, session=session, ticket=ticket, persistent=0))
        else:
            self.send(ev.Restored(at=self.now, session=session, ticket=ticket))

    def _cell_started(self) -> bool:
        session = self._idle.draw(self.random)
        self._idle.discard(session)
        self._cells.add(session)
        self.send(ev.CellStarted(at=self.now, session=session, usage=self._usage(session)))
        return True

    def _cell_ended(self) -> bool:
        session = self._cells.draw(self.random)
        self._cells.discard(session)
        self._idle.add(session)
        self.send(ev.CellEnded(at=self.now, session=session, persistent=32 * MiB))
        return True

    def _sampled_now(self) -> bool:
        """Sample as the broker does; who uses the device has worked since, and so have some open cells."""
        start = perf_counter_ns()
        watched = self.core.watched(self.now)
        self.spent += perf_counter_ns() - start
        passed, self._sampled = self.now - self._sampled, self.now
        for session in watched:
            starts = session in self._working and not self.core.sessions[session].jobs
            if session in self.core.turns.using or (starts and session in self._cells):
                self._used[session] += passed * self._pace()
        self.send(self._sample({session: self._usage(session) for session in watched}))
        return True

    def _pace(self) -> float:
        """How fast those go on that run at the same time: a core each."""
        return 1.0

    def _sample(self, used: dict[SessionId, Usage]) -> ev.Sampled:
        return ev.Sampled(at=self.now, used=used)

    def _exempted(self) -> bool:
        session = self._cells.draw(self.random)
        self.send(ev.Exempted(at=self.now, session=session, until=self.now + 3.0))
        return True

    def _weight_changed(self) -> bool:
        session = self._idle.draw(self.random)
        weight = self.random.choice((0.5, 1.0, 2.0))
        self.send(ev.WeightChanged(at=self.now, session=session, weight=weight))
        return True

    def _released(self) -> bool:
        session = self._idle.draw(self.random)
        self.send(ev.Released(at=self.now, session=session, persistent=16 * MiB))
        return True

    def _capacity_changed(self) -> bool:
        whole = self.core.config.capacity
        capacity = whole - self.random.randrange(whole // 20)
        self.send(ev.CapacityChanged(at=self.now, capacity=capacity))
        return True


_MAKERS = {
    "CellStarted": World._cell_started,
    "CellEnded": World._cell_ended,
    "Sampled": World._sampled_now,
    "JobSubmitted": World._job_submitted,
    "JobEnded": World._job_ended,
    "JobCancelled": World._job_cancelled,
    "SessionOpened": World._session_opened,
    "SessionReady": World._session_ready,
    "SessionClosed": World._session_closed,
    "SessionRestarted": World._session_restarted,
    "Exempted": World._exempted,
    "WeightChanged": World._weight_changed,
    "Released": World._released,
    "CapacityChanged": World._capacity_changed,
}
