"""A scheduler on a virtual clock: a trace's jobs come, its instructions are carried out by a virtual device, nothing is real.

Event by event: nothing happens between two of them but progress, which the machine reckons. The same jobs, settings and
costs give the same outcome, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import InternalError
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import GiB, JobId, PauseStatus, SessionId, Usage, UserId
from gpushare_kernel.replay.costs import MEASURED, Costs
from gpushare_kernel.replay.law import DRIVER, Law
from gpushare_kernel.replay.machine import Machine, Run
from gpushare_kernel.replay.outcome import Outcome, record
from gpushare_kernel.replay.rows import BadTrace
from gpushare_kernel.replay.trace import TraceJob, check_fits

CAPACITY = 16 * GiB
SHORTEST_TURN, MOST_TURNS = 0.1, 20_000
"""Seconds of a turn, and how many of them a replay may have: longer traces have longer turns, else they take too long."""
_STALLED = 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """How a trace is replayed. `turn` in seconds (None: see `auto_turn`), `capacity` in bytes."""

    policy: str = "fifo"
    admission: str = "policy"
    parking: bool = False
    capacity: int = CAPACITY
    turn: float | None = None
    law: Law = DRIVER
    costs: Costs = MEASURED
    #: Pause whose next boundary is farther than this (seconds); inf: everybody is waited for.
    boundary_grace: float = 0.025
    #: How much of the device may be asked for at once before there are turns; more than 1: what has memory runs beside others.
    compute: float = 1.0
    #: One lane for all, as Salus' SRTF and FAIR were run; no lane but a job's own, nearly as its PACK was.
    single_lane: bool = False
    own_lanes: bool = False


def replay(jobs: Sequence[TraceJob], settings: Settings) -> Outcome:
    """Return what becomes of `jobs`, which are in the order of their arrival.

    Raises
    ------
    BadTrace
        Where a job never fits the device.
    InternalError
        Where jobs wait for ever: a bug of ours.
    """
    check_fits(jobs, settings.capacity)
    return Engine(jobs, settings).run()


def auto_turn(jobs: Sequence[TraceJob]) -> float:
    """Return the seconds of a turn where none are given: 0.1, as live, or what makes 20,000 turns of the whole work."""
    return max(SHORTEST_TURN, sum(job.duration for job in jobs) / MOST_TURNS)


class Engine:
    """One replay."""

    def __init__(self, jobs: Sequence[TraceJob], settings: Settings) -> None:
        self.jobs, self.settings = jobs, settings
        self.turn = settings.turn or auto_turn(jobs)
        self.core = Scheduler(_config(settings, self.turn))
        self.machine = Machine(settings.law)
        self.runs: dict[str, Run] = {}
        self.events = 0
        self._left = len(jobs)
        self._idle_wakes = 0
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._wake: float | None = None
        self._sampled = -inf
        #: Pauses that are under way: session -> ticket.
        self._pausing: dict[SessionId, int] = {}
        self._does: dict[type[do.Instruction], Callable[..., None]] = {
            do.Grant: self._grant,
            do.Ask: self._ask,
            do.Pause: self._pause,
            do.Resume: self._resume,
            do.Park: self._park,
            do.Restore: self._restore,
            do.Refuse: self._refuse,
            do.Wake: self._set_wake,
            do.Queue: _ignore,
            do.Slow: _ignore,
            do.Returned: _ignore,
            do.Drop: _ignore,
        }

    def run(self) -> Outcome:
        """Let time pass until the last job has ended."""
        arrivals = iter(self.jobs)
        arriving = next(arrivals, None)
        while self._left:
            if self.step(inf if arriving is None else arriving.submitted) and arriving is not None:
                self._arrive(arriving)
                arriving = next(arrivals, None)
        return self.outcome()

    def step(self, comes: float = inf) -> bool:
        """Let the next thing happen. True where that is what comes at the time `comes`, which is for the caller to do."""
        done = self.machine.next()
        ends = inf if done is None else done[0]
        answer = self._later[0][0] if self._later else inf
        at = max(self.machine.at, min(ends, answer, comes, self._next_look()))
        if at == inf or self._idle_wakes > _STALLED:
            raise InternalError(self._stalled())
        self.machine.advance(at)
        self._idle_wakes = self._idle_wakes + 1 if ends == answer == comes == inf else 0
        if done is not None and ends <= at:
            self._reached(done[1])
        elif answer <= at:
            heappop(self._later)[2]()
        elif comes <= at:
            return True
        else:
            self._sample()
        return False

    def next(self) -> float:
        """Return when the next thing happens, if nobody comes; inf where nothing does."""
        done = self.machine.next()
        ends = inf if done is None else done[0]
        answer = self._later[0][0] if self._later else inf
        return max(self.machine.at, min(ends, answer, self._next_look()))

    def outcome(self) -> Outcome:
        """Return what became of the jobs, which have ended."""
        return Outcome(
            jobs=tuple(record(self.runs[job.name]) for job in self.jobs),
            settings=self.settings,
            turn=self.turn,
            events=self.events,
            busy=self.machine.busy,
        )

    @property
    def now(self) -> float:
        """The virtual time in seconds."""
        return self.machine.at

    # --- what happens -----------------------------------------------------------------------------------

    def _send(self, event: ev.Event) -> None:
        self.events += 1
        for instruction in self.core.handle(event):
            self._does[type(instruction)](instruction)

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._later, (self.now + seconds, self._order, then))

    def _next_look(self) -> float:
        """When the scheduler's wish to see how much everybody has used is met: at the end of its frame, and once a turn at most."""
        if self._wake is None:
            return inf
        turns = self.core.turns
        frame = turns.frame_end if turns.accounts.policy.rotates else None
        soonest = self._sampled + self.turn
        return max(self._wake, soonest if frame is None else min(frame, soonest))

    def _arrive(self, job: TraceJob) -> None:
        """A kernel of its own for each job: it comes with the job and goes with it."""
        session, at = SessionId(job.name), self.now
        self.runs[job.name] = Run(job, job.duration, job.duration, still_since=at)
        self._send(
            ev.SessionOpened(
                at=at,
                session=session,
                user=UserId(job.owner),
                weight=job.weight,
                user_weight=job.user_weight,
            )
        )
        self._send(ev.SessionReady(at=at, session=session, bare=False, context=0))
        self._send(
            ev.JobSubmitted(
                at=at,
                job=JobId(job.name),
                session=session,
                persistent=job.persistent,
                ephemeral=job.ephemeral,
                weight=job.weight,
                cooperative=not self.settings.own_lanes,
                time=job.declared,
                realtime=job.realtime,
            )
        )

    def _reached(self, run: Run) -> None:
        """`run` is at its end, or at the boundary at which it was asked to stop."""
        run.left = run.target
        self.machine.stop(run)
        if run.target > 0:
            run.mark, run.target = run.left, 0.0
            trim = self.settings.costs.trim if run.asked_lane else 0.0
            self._after(trim + self.settings.costs.handover, lambda: self._at_boundary(run))
            return
        run.ended, run.left = self.now, 0.0
        name = run.job.name
        run.lane_at = self.core.jobs[JobId(name)].admitted
        self._pausing.pop(SessionId(name), None)
        self._left -= 1
        self._send(ev.JobEnded(at=self.now, job=JobId(name), persistent=0, usage=_usage(run)))
        self._send(ev.SessionClosed(at=self.now, session=SessionId(name)))

    def _at_boundary(self, run: Run) -> None:
        run.arriving = run.paused  # stopped on its way: it says so once it runs again
        if run.arriving:
            return
        self._send(
            ev.BoundaryReached(
                at=self.now,
                job=JobId(run.job.name),
                trimmed=True,
                persistent=run.job.persistent,
                interval=run.job.iteration,
            )
        )

    def _sample(self) -> None:
        self._wake, self._sampled = None, self.now
        used = {name: _usage(self.runs[name]) for name in sorted(self.core.watched(self.now))}
        self._send(ev.Sampled(at=self.now, used=used))

    # --- instructions -------------------------------------------------------------------------------------

    def _grant(self, grant: do.Grant) -> None:
        run = self.runs[grant.job]
        run.target, run.asked_lane = 0.0, False  # as live: a grant clears the job's word
        self.machine.start(run)

    def _ask(self, ask: do.Ask) -> None:
        run = self.runs[ask.job]
        run.asked_lane = ask.lane
        self.machine.aim(run, run.boundary_ahead() if ask.turn or ask.lane else 0.0)

    def _pause(self, pause: do.Pause) -> None:
        """It runs on until its queue has drained, then it stands still."""
        session, ticket = pause.session, pause.ticket
        run, costs = self.runs[session], self.settings.costs
        self._pausing[session] = ticket

        def stand() -> None:
            if self._pausing.get(session) != ticket:
                return  # it was resumed meanwhile, or is done
            del self._pausing[session]
            run.paused, run.goes_on = True, run.job.name in self.machine.running
            self.machine.stop(run)
            self._send(
                ev.Paused(
                    at=self.now,
                    session=session,
                    ticket=ticket,
                    status=PauseStatus.PAUSED,
                    drain=costs.pause,
                )
            )

        self._after(costs.pause, stand)

    def _resume(self, resume: do.Resume) -> None:
        run = self.runs[resume.session]
        self._pausing.pop(resume.session, None)
        if not run.paused:
            return
        run.paused = False
        if run.goes_on:
            run.cost(self.settings.costs.resume)
            self.machine.start(run)
        elif run.arriving:
            self._after(self.settings.costs.resume, lambda: self._at_boundary(run))

    def _park(self, park: do.Park) -> None:
        """It stands still; what it keeps goes to the host."""
        run, session, ticket = self.runs[park.session], park.session, park.ticket
        costs = self.settings.costs
        run.parked_since = self.now

        def parked() -> None:
            left = min(run.job.persistent, costs.stays)
            self._send(ev.Parked(at=self.now, session=session, ticket=ticket, persistent=left))

        self._after(costs.park(run.job.persistent), parked)

    def _restore(self, restore: do.Restore) -> None:
        run, session, ticket = self.runs[restore.session], restore.session, restore.ticket

        def restored() -> None:
            if run.parked_since is not None:
                run.parks.append((run.parked_since, self.now))
                run.parked_since = None
            self._send(ev.Restored(at=self.now, session=session, ticket=ticket))

        self._after(self.settings.costs.restore(run.job.persistent), restored)

    def _refuse(self, refuse: do.Refuse) -> None:
        where = self.runs[refuse.job].job.where
        msg = f"{f'{where}: ' if where else ''}job {refuse.job}: {refuse.message}"
        raise BadTrace(msg)

    def _set_wake(self, wake: do.Wake) -> None:
        self._wake = wake.at

    def _stalled(self) -> str:
        waiting = [name for name, run in self.runs.items() if run.ended is None]
        named = ", ".join(waiting[:5]) + (" ..." if len(waiting) > 5 else "")  # noqa: PLR2004
        return f"replay: at {self.now:.3f} s nothing more happens, and {len(waiting)} jobs are not done: {named}"


def _usage(run: Run) -> Usage:
    return Usage(run.device_time, max(run.wanted, run.device_time))


def _config(settings: Settings, turn: float) -> Config:
    return Config(
        capacity=settings.capacity,
        compute=settings.compute,
        policy=settings.policy,
        turn=turn,
        lane_turn=max(1.0, turn),
        boundary_grace=settings.boundary_grace,
        by_policy=settings.admission == "policy",
        single_lane=settings.single_lane,
        can_park=settings.parking,
        park_cost=max(settings.costs.park(0), settings.costs.restore(0)),
        park_speed=settings.costs.park_rate,
        restore_speed=settings.costs.restore_rate,
        tell_shared=inf,
        tell_paused=inf,
    )


def _ignore(_: do.Instruction) -> None:
    """Nothing of it is for a virtual device."""
