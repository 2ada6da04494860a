"""A virtual host for the scheduler: it carries out instructions, lets time pass, and checks every rule after every event."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.validate import validate
from gpushare_kernel.core.values import (
    GiB,
    JobId,
    MoveStatus,
    PauseStatus,
    SessionId,
    Usage,
    UserId,
)


@dataclass
class Kernel:
    """What really happens in one session: how many cores it would use, and whether it stands still."""

    demand: float = 1.0
    paused: bool = False
    running: set[str] = field(default_factory=set)
    device_time: float = 0.0
    wanted: float = 0.0
    #: A plain cell runs without anybody's leave.
    plain: bool = False
    #: Seconds between boundaries of its cooperative jobs; None: it never meets one.
    interval: float | None = None

    @property
    def works(self) -> bool:
        return not self.paused and bool(self.running or self.plain)


class World:
    """A scheduler and its kernels on a virtual clock. Work is shared equally where cores are overbooked."""

    step = 0.005

    def __init__(
        self, *, compute: float = 2.0, capacity: int = 10 * GiB, **settings: object
    ) -> None:
        self.core = Scheduler(Config(capacity=capacity, compute=compute, **settings))  # type: ignore[arg-type]
        self.kernels: dict[str, Kernel] = {}
        self.now = 0.0
        self.wake: float | None = None
        self.alarm: float | None = None
        self.log: list[do.Instruction] = []
        self.refused: dict[str, str] = {}
        self.dropped: set[str] = set()
        self.asked: dict[str, tuple[bool, bool]] = {}
        #: Pauses in flight: (done at, session, ticket).
        self.drains: list[tuple[float, SessionId, int]] = []
        self.drain = 0.0
        #: Memory on its way out or back: (done at, the event that says so).
        self.moves: list[tuple[float, ev.Parked | ev.Restored]] = []
        self.move_takes = 0.02
        #: What the next moves come to, and why; after these they are done.
        self.comes: list[tuple[MoveStatus, str]] = []

    # --- events -------------------------------------------------------------------------------------

    def send(self, event: ev.Event) -> list[do.Instruction]:
        out = self.core.handle(event)
        validate(self.core)
        for instruction in out:
            self.carry_out(instruction)
        return out

    def carry_out(self, instruction: do.Instruction) -> None:
        self.log.append(instruction)
        match instruction:
            case do.Grant(job, session):
                self.kernels[session].running.add(job)
                self.asked.pop(job, None)
            case do.Pause(session, _, _, ticket):
                self.drains.append((self.now + self.drain, session, ticket))
            case do.Resume(session):
                if session in self.kernels:
                    self.kernels[session].paused = False
                self.drains = [d for d in self.drains if d[1] != session]
            case do.Ask(job, _, turn, lane):
                self.asked[job] = (turn, lane)
            case do.Refuse(job, _, message):
                self.refused[job] = message
            case do.Drop(job):
                self.dropped.add(job)
            case do.Park(session, ticket):
                self.kernels[session].paused = True
                self.drains = [d for d in self.drains if d[1] != session]
                held = self.core.sessions[session]
                self.move(
                    ev.Parked(
                        at=0.0, session=session, ticket=ticket, freed=held.charged + held.context
                    )
                )
            case do.Restore(session, ticket):
                self.move(ev.Restored(at=0.0, session=session, ticket=ticket))
            case do.Wake(at):
                self.wake = at
            case do.Alarm(at):
                self.alarm = at

    def move(self, event: ev.Parked | ev.Restored) -> None:
        status, why = self.comes.pop(0) if self.comes else (MoveStatus.DONE, "")
        freed = (
            {"freed": 0} if isinstance(event, ev.Parked) and status is not MoveStatus.DONE else {}
        )
        event = replace(event, status=status, why=why, took=self.move_takes, **freed)
        self.moves.append((self.now + self.move_takes, event))

    def finish_moves(self) -> None:
        due = [m for m in self.moves if m[0] <= self.now]
        self.moves = [m for m in self.moves if m[0] > self.now]
        for _, event in due:
            self.send(replace(event, at=self.now))

    def finish_drains(self) -> None:
        due, self.drains = (
            [d for d in self.drains if d[0] <= self.now],
            [d for d in self.drains if d[0] > self.now],
        )
        for _, session, ticket in due:
            kernel = self.kernels.get(session)
            status = PauseStatus.PAUSED if kernel else PauseStatus.GONE
            if kernel:
                kernel.paused = True
            self.send(
                ev.Paused(
                    at=self.now, session=session, ticket=ticket, status=status, drain=self.drain
                )
            )

    def usage(self, session: str) -> Usage:
        kernel = self.kernels[session]
        return Usage(kernel.device_time, kernel.wanted)

    def sample(self) -> None:
        used = {s: self.usage(s) for s in self.core.watched(self.now) if s in self.kernels}
        self.send(ev.Sampled(at=self.now, used=used))

    # --- time -----------------------------------------------------------------------------------------

    def _let_work(self, seconds: float) -> None:
        working = sorted((k for k in self.kernels.values() if k.works), key=lambda k: k.demand)
        left = self.core.config.compute
        for n, kernel in enumerate(working):
            # Max-min, as Linux divides its cores between kernels (each is its own session: autogroup).
            got = min(kernel.demand, left / (len(working) - n))
            left -= got
            kernel.device_time += got * seconds
            kernel.wanted += kernel.demand * seconds

    def run(self, seconds: float, *, step: float | None = None) -> None:
        """Let `seconds` pass in small steps: boundaries are met, drains end, wakes are answered."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            until = min(
                [
                    end,
                    self.now + (step or self.step),
                    *(d[0] for d in self.drains if d[0] > self.now),
                    *(m[0] for m in self.moves if m[0] > self.now),
                ]
            )
            for due in (self.wake, self.alarm):
                if due is not None and self.now < due < until:
                    until = due
            self._let_work(until - self.now)
            self.now = until
            self.finish_drains()
            self.finish_moves()
            self.meet_boundaries()
            if self.alarm is not None and self.alarm <= self.now:
                self.alarm = None
                self.send(ev.Rung(at=self.now))
            if self.wake is not None and self.wake <= self.now:
                self.wake = None
                self.sample()
                self.finish_drains()

    def meet_boundaries(self) -> None:
        for job, (turn, lane) in [*self.asked.items()]:
            record = self.core.jobs.get(JobId(job))
            if record is None or not (turn or lane):
                self.asked.pop(job, None)
                continue
            kernel = self.kernels[record.session]
            if kernel.interval is not None and job in kernel.running and not kernel.paused:
                self.boundary(job, trimmed=lane)

    # --- shorthand -------------------------------------------------------------------------------------

    def open(
        self,
        session: str,
        user: str = "ann",
        *,
        demand: float = 1.0,
        weight: float = 1.0,
        interval: float | None = None,
    ) -> Kernel:
        self.send(
            ev.SessionOpened(
                at=self.now, session=SessionId(session), user=UserId(user), weight=weight
            )
        )
        self.send(ev.SessionReady(at=self.now, session=SessionId(session), bare=False, context=0))
        kernel = self.kernels[session] = Kernel(demand, interval=interval)
        return kernel

    def submit(
        self,
        job: str,
        session: str,
        persistent: int | None = None,
        ephemeral: int | None = None,
        **more: object,
    ) -> None:
        more.setdefault("cooperative", self.kernels[session].interval is not None)
        self.send(
            ev.JobSubmitted(
                at=self.now, job=JobId(job), session=SessionId(session), persistent=persistent, ephemeral=ephemeral,
                **more,  # type: ignore[arg-type]
            )
        )  # fmt: skip

    def boundary(
        self, job: str, *, trimmed: bool = True, persistent: int = 0, peak: int = 0
    ) -> None:
        record = self.core.jobs[JobId(job)]
        kernel = self.kernels[record.session]
        kernel.running.discard(job)
        self.asked.pop(job, None)
        self.send(
            ev.BoundaryReached(
                at=self.now,
                job=JobId(job),
                trimmed=trimmed,
                persistent=persistent,
                interval=kernel.interval or 0.0,
                ephemeral=peak,
            )
        )

    def end(self, job: str, persistent: int = 0) -> None:
        session = self.core.jobs[JobId(job)].session
        self.kernels[session].running.discard(job)
        self.asked.pop(job, None)
        self.send(
            ev.JobEnded(
                at=self.now, job=JobId(job), persistent=persistent, usage=self.usage(session)
            )
        )

    def cell(self, session: str) -> None:
        self.kernels[session].plain = True
        self.send(
            ev.CellStarted(at=self.now, session=SessionId(session), usage=self.usage(session))
        )

    def cell_ends(self, session: str, persistent: int = 0) -> None:
        self.kernels[session].plain = False
        self.send(ev.CellEnded(at=self.now, session=SessionId(session), persistent=persistent))

    def close(self, session: str) -> None:
        del self.kernels[session]
        self.send(ev.SessionClosed(at=self.now, session=SessionId(session)))

    def running(self, job: str) -> bool:
        record = self.core.jobs.get(JobId(job))
        return record is not None and job in self.kernels[record.session].running
