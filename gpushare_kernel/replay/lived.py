"""What the jobs of one device did while it was recorded: as jobs of a trace, and as it was.

After each event only those are looked at whom it is about, and who has the device: not everybody who waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.records import Job, Session
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobId, SessionId
from gpushare_kernel.replay.outcome import JobRecord
from gpushare_kernel.replay.trace import ITERATION, TraceJob

LEAST = 1e-3
"""Seconds below which a job has done nothing that could be replayed."""
_LIGHTEST = 0.01


@dataclass(slots=True)
class Lived:
    """A job that is there. Seconds: with the device in all, up to its first sample, and up to its latest."""

    job: Job
    session: Session
    on: float = 0.0
    first: float | None = None
    latest: float = 0.0
    used: float = 0.0
    #: Cores it could use, as last known.
    demand: float | None = None
    #: The session's while the job was there; another one follows its end.
    weight: float = 1.0
    #: Since when it runs or stands still, and is parked; and when it ran and was parked before.
    runs_since: float | None = None
    still_since: float = 0.0
    longest_still: float = 0.0
    parked_since: float | None = None
    stretches: list[tuple[float, float]] = field(default_factory=list)
    parks: list[tuple[float, float]] = field(default_factory=list)

    def look(self, at: float) -> None:
        """After an event that may have changed something of it."""
        session = self.session
        runs = session.phase in {Phase.ON, Phase.LEAVING} and self.job.granted is not None
        if runs and self.runs_since is None:
            self.runs_since = at
            self.longest_still = max(self.longest_still, at - self.still_since)
        elif not runs:
            self.stands(at)
        if self.first is None and session.used is not None:
            self.first = self.on
        used = session.device_time - self.job.device_time_before
        if used != self.used:
            self.used, self.latest = used, self.on
        self.demand = session.demand or self.demand
        away = session.parked is not None or session.moving is not None
        if away and self.parked_since is None:
            self.parked_since = at
        elif not away:
            self.back(at)

    def stands(self, at: float) -> None:
        """It runs no more."""
        if self.runs_since is not None:
            self.stretches.append((self.runs_since, at))
            self.runs_since, self.still_since = None, at

    def back(self, at: float) -> None:
        """It is not parked any more."""
        if self.parked_since is not None:
            self.parks.append((self.parked_since, at))
            self.parked_since = None

    def duration(self, demand: float) -> float:
        """Seconds alone: what it had the device for, at the pace that its samples show (no sample: at full pace)."""
        sampled = self.latest - (self.first or 0.0)
        return self.on * min(1.0, self.used / demand / sampled) if sampled > 0 else self.on


@dataclass(slots=True)
class Device:
    """What is known of the jobs of one device: those that are there, and those that are over."""

    core: Scheduler
    done: list[tuple[TraceJob, JobRecord]] = field(default_factory=list)
    there: dict[JobId, Lived] = field(default_factory=dict)
    of: dict[SessionId, dict[JobId, Lived]] = field(default_factory=dict)
    #: Who has the device, since the event before.
    running: dict[JobId, Lived] = field(default_factory=dict)
    #: How often a job of this name is over: a cell that is run again has the same.
    runs: Counter[JobId] = field(default_factory=Counter)
    at: float = 0.0

    def look(self, event: ev.Event, out: Sequence[do.Instruction]) -> None:
        """After `event` and what followed: who is new, who is over, who had the device meanwhile?"""
        passed, self.at = self.core.at - self.at, self.core.at
        for lived in self.running.values():
            lived.on += passed
        sessions = {*_sessions(event, self.there), *_moved(out), *self.core.turns.using}
        sessions.update(lived.session.id for lived in self.running.values())
        for session in sorted(sessions):
            self._look_at(session)
        if len(self.there) != len(self.core.jobs):  # by a timer, or with somebody's memory: seldom
            for session in sorted({*self.of, *(job.session for job in self.core.jobs.values())}):
                self._look_at(session)
        self.running = {
            name: self.there[name]
            for session in self.core.turns.using.values()
            for name, job in session.jobs.items()
            if job.granted is not None
        }

    def _look_at(self, name: SessionId) -> None:
        known, session = self.of.setdefault(name, {}), self.core.sessions.get(name)
        jobs: Mapping[JobId, Job] = {} if session is None else session.jobs
        for job, lived in [*known.items()]:
            lived.look(self.at)
            if jobs.get(job) is lived.job:
                lived.weight = lived.session.weight
            else:
                self._over(lived)
        for job, record in jobs.items():
            if job not in known and session is not None:
                lived = Lived(record, session, weight=session.weight, still_since=record.submitted)
                self.there[job] = known[job] = lived
                lived.look(self.at)
        if not known:
            del self.of[name]

    def finish(self) -> list[tuple[TraceJob, JobRecord]]:
        """Return the jobs, as they came, and what became of them; those that are there still end here."""
        for lived in [*self.there.values()]:
            self._over(lived)
        return sorted(self.done, key=lambda pair: pair[0].submitted)

    def _over(self, lived: Lived) -> None:
        job, session = lived.job, lived.session
        del self.there[job.id], self.of[session.id][job.id]
        lived.stands(self.at)
        lived.back(self.at)
        demand = lived.demand or self.core.config.compute
        duration = lived.duration(demand)
        if duration < LEAST or job.granted is None:
            return
        number, self.runs[job.id] = self.runs[job.id], self.runs[job.id] + 1
        kept = max(job.need.persistent, session.measured)
        # A SIZE is for both: what is kept of it is no E as well.
        beside = job.need.ephemeral if job.size is None else min(job.need.ephemeral, max(0, job.size - kept))  # fmt: skip
        named = f"{job.id}#{number + 1}" if number else job.id
        made = TraceJob(
            name=named,
            submitted=job.submitted,
            duration=duration,
            user=session.user.id,
            persistent=kept,
            ephemeral=beside,
            iteration=min(job.interval or ITERATION, duration),
            realtime=job.realtime,
            demand=min(1.0, max(_LIGHTEST, demand / self.core.config.compute)),
            declared=duration,
            weight=lived.weight,
            user_weight=session.user.weight,
        )
        was = JobRecord(
            name=named,
            user=session.user.id,
            submitted=job.submitted,
            lane_at=job.granted if job.admitted is None else job.admitted,
            first_run=job.granted,
            ended=self.at,
            longest_wait=lived.longest_still,
            turns=job.turns,
            device_time=lived.used,
            stretches=tuple(lived.stretches),
            parks=tuple(lived.parks),
            notebook=session.id,
        )
        self.done.append((made, was))


def _sessions(event: ev.Event, there: Mapping[JobId, Lived]) -> Iterator[SessionId]:
    """Whom `event` is about."""
    session, job = getattr(event, "session", None), getattr(event, "job", None)
    if session is not None:
        yield session
    if job is not None and job in there:
        yield there[job].session.id
    if isinstance(event, ev.Sampled):
        yield from event.used


def _moved(out: Sequence[do.Instruction]) -> Iterator[SessionId]:
    """Whose memory goes or comes, or whose turn, by the instructions that followed."""
    for instruction in out:
        session = getattr(instruction, "session", None)
        if session is not None:
            yield session
