"""The scheduler against the model GPU: any order of events keeps every rule, and nobody is forgotten."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core import parking
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.validate import validate
from gpushare_kernel.core.values import (
    GiB,
    JobId,
    JobState,
    MiB,
    MoveStatus,
    PauseReason,
    PauseStatus,
    Presence,
    ProcessKey,
    SessionId,
    Usage,
    UserId,
)
from gpushare_kernel.devices.base import MoveOutcome, PauseOutcome, Target
from gpushare_kernel.devices.model import ModelDevice

T = TypeVar("T")
CAPACITY = 8 * GiB
RESERVE = 512 * MiB
OWED = 2.0
"""Device seconds that a session is owed before it counts as starving: a turn, and drains of those before it."""
sizes = st.integers(0, 40).map(lambda n: n * 128 * MiB)
suspensions = st.sampled_from([PauseReason.OVER_GRANT, PauseReason.OWNER])


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        outcome: T = done.value
        return outcome
    msg = "the model waited"
    raise AssertionError(msg)


class Machine(RuleBasedStateMachine):
    """Sessions, jobs, faults and time in any order."""

    divisible = True
    can_park = False
    #: Whether the device may be asked to park somebody in the middle of its work.
    by_force = False
    #: Bytes that a restore must find to spare.
    margin = 0
    sessions: Bundle[SessionId] = Bundle("sessions")
    jobs: Bundle[JobId] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.device = ModelDevice(capacity=CAPACITY, reserve=RESERVE)
        self.core = Scheduler(
            Config(
                capacity=CAPACITY,
                compute=1.0,
                reserve=RESERVE,
                divisible=self.divisible,
                enforce=not self.divisible,
                can_park=self.can_park,
                restore_margin=self.margin,
                residency=0.2,
                park_cost=0.001,
            )
        )
        self.at = 0.0
        self.wake: float | None = None
        self.targets: dict[SessionId, Target] = {}
        self.pids = iter(range(1000, 10**6))
        self.names = iter(range(10**6))
        self.granted: set[JobId] = set()
        self.in_flight: list[tuple[float, ev.Paused]] = []
        self.moves: list[tuple[float, ev.Parked | ev.Restored]] = []
        self.late_resumes: set[SessionId] = set()
        #: What every move comes to, where that is not up to the device.
        self.refuses: MoveOutcome | None = None

    # --- the broker's part ---------------------------------------------------------------------------

    def send(self, event: ev.Event) -> None:
        out = self.core.handle(event)
        validate(self.core)
        for instruction in out:
            match instruction:
                case do.Grant(job, session):
                    assert job not in self.granted, "granted twice"
                    self.granted.add(job)
                    assert session in self.targets
                case do.Pause():
                    self._pause(instruction)
                case do.Resume(session):
                    self.in_flight = [f for f in self.in_flight if f[1].session != session]
                    self._resume(session)
                case do.Drop(job) | do.Refuse(job):
                    self.granted.discard(job)
                case do.Wake(at):
                    self.wake = at
                case do.Park(session, ticket):
                    self._park(session, ticket)
                case do.Restore(session, ticket):
                    self._restore(session, ticket)

    def _park(self, session: SessionId, ticket: int) -> None:
        assert self.can_park
        jobs = self.core.sessions[session].jobs.values()
        assert self.by_force or all(job.waits for job in jobs)
        assert not any(job.realtime for job in jobs)
        came = self.refuses or now(self.device.park(self.targets[session], limit=0.5))
        parked = ev.Parked(at=self.at, session=session, ticket=ticket, persistent=MiB, status=came.status, freed=came.freed, took=0.01, why=came.why)  # fmt: skip
        self.moves.append((self.at + 0.01, parked))

    def _restore(self, session: SessionId, ticket: int) -> None:
        assert self.core.sessions[session].charged <= self.core.book.table.used
        came = self.refuses or now(self.device.restore(self.targets[session], margin=self.margin))
        back = ev.Restored(at=self.at, session=session, ticket=ticket, status=came.status, took=0.01, why=came.why)  # fmt: skip
        self.moves.append((self.at + 0.01, back))

    def _resume(self, session: SessionId) -> None:
        self.late_resumes.discard(session)
        if (
            session in self.targets
            and now(self.device.resume(self.targets[session])).status is PauseStatus.STOPPED
        ):
            self.late_resumes.add(
                session
            )  # the driver answers only after SIGCONT: asked again until then

    def _pause(self, pause: do.Pause) -> None:
        target = self.targets.get(pause.session)
        outcome = (
            PauseOutcome(PauseStatus.GONE)
            if target is None
            else now(self.device.pause(target, limit=pause.limit))
        )
        if outcome.status is PauseStatus.BUSY:
            outcome = PauseOutcome(PauseStatus.BUSY, pause.limit)
        self.in_flight.append(
            (
                self.at + outcome.drain,
                ev.Paused(
                    at=self.at,
                    session=pause.session,
                    ticket=pause.ticket,
                    status=outcome.status,
                    drain=outcome.drain,
                ),
            )
        )

    def pass_time(self, seconds: float) -> None:
        end = self.at + seconds
        while self.at < end - 1e-9:
            due = [end, self.at + 0.05, *(f[0] for f in (*self.in_flight, *self.moves))]
            if self.wake is not None:
                due.append(self.wake)
            until = max(min(due), self.at)
            self.device.advance(until - self.at)
            self.at = until
            ready = [f for f in self.in_flight if f[0] <= self.at + 1e-12]
            self.in_flight = [f for f in self.in_flight if f[0] > self.at + 1e-12]
            for _, paused in ready:
                if paused.session in self.core.sessions:
                    self.send(
                        ev.Paused(
                            at=self.at,
                            session=paused.session,
                            ticket=paused.ticket,
                            status=paused.status,
                        )
                    )
            moved = [m for m in self.moves if m[0] <= self.at + 1e-12]
            self.moves = [m for m in self.moves if m[0] > self.at + 1e-12]
            for _, event in moved:
                self.send(replace(event, at=self.at))
            if self.wake is not None and self.wake <= self.at:
                self.wake = None
                self.sample()
            if not ready and until >= end:
                return

    def sample(self) -> None:
        used: dict[SessionId, Usage] = {}
        for session in self.core.watched(self.at):
            target = self.targets.get(session)
            usage = None if target is None else self.device.usage(target)
            if usage is not None:
                used[session] = usage
        busy = self.device.utilization()
        self.send(
            ev.Sampled(
                at=self.at,
                used=used,
                utilization=None if busy is None else busy.part,
                utilization_since=0.0 if busy is None else busy.since,
            )
        )

    # --- sessions --------------------------------------------------------------------------------------

    @rule(
        target=sessions,
        user=st.sampled_from("abc"),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        bare=st.booleans(),
    )
    def open(self, user: str, weight: float, bare: bool) -> Any:
        if len(self.core.sessions) >= 12:
            return multiple()
        session = SessionId(f"s{next(self.names)}")
        self.targets[session] = Target(ProcessKey(next(self.pids), 1))
        self.device.launch(self.targets[session])
        self.send(ev.SessionOpened(at=self.at, session=session, user=UserId(user), weight=weight))
        self.send(ev.SessionReady(at=self.at, session=session, bare=bare))
        return session

    @rule(session=consumes(sessions))
    def close(self, session: SessionId) -> None:
        self.device.kill(self.targets.pop(session))
        self.send(ev.SessionClosed(at=self.at, session=session))

    @rule(session=sessions)
    def restart(self, session: SessionId) -> None:
        if session in self.targets:
            self.device.kill(self.targets[session])
            self.send(ev.SessionRestarted(at=self.at, session=session))
            self.targets[session] = Target(ProcessKey(next(self.pids), 1))
            self.device.launch(self.targets[session])
            self.send(ev.SessionReady(at=self.at, session=session, bare=False))

    # --- jobs --------------------------------------------------------------------------------------------

    @rule(
        target=jobs,
        session=sessions,
        persistent=st.none() | sizes,
        ephemeral=st.none() | sizes,
        size=st.none() | sizes,
        cooperative=st.booleans(),
        time=st.none() | st.sampled_from([0.1, 3.0, 100.0]),
        realtime=st.sampled_from([False, False, False, True]),
    )
    def submit(  # noqa: PLR0917
        self,
        session: SessionId,
        persistent: int | None,
        ephemeral: int | None,
        size: int | None,
        cooperative: bool,
        time: float | None,
        realtime: bool,
    ) -> Any:
        if session not in self.targets or len(self.core.sessions[session].jobs) >= 4:
            return multiple()
        job = JobId(f"{session}/{next(self.names)}")
        if size is not None:
            persistent = ephemeral = None
        self.send(
            ev.JobSubmitted(
                at=self.at,
                job=job,
                session=session,
                size=size,
                persistent=persistent,
                ephemeral=ephemeral,
                cooperative=cooperative,
                time=time,
                realtime=realtime,
            )
        )
        self._work(session, 1.0, 0.0)
        return job

    def _work(self, session: SessionId, demand: float, depth: float) -> None:
        self.device.work(self.targets[session], demand=demand, depth=depth)

    @rule(job=jobs, held=sizes)
    def end(self, job: JobId, held: int) -> None:
        record = self.core.jobs.get(job)
        if record is None or record.state is JobState.PAUSED:
            return
        self.granted.discard(job)
        self.send(ev.JobEnded(at=self.at, job=job, persistent=held))

    @rule(job=jobs)
    def cancel(self, job: JobId) -> None:
        if job in self.core.jobs:
            self.send(ev.JobCancelled(at=self.at, job=job))

    @rule(job=jobs, trimmed=st.booleans(), held=sizes, peak=st.just(0) | sizes)
    def boundary(self, job: JobId, trimmed: bool, held: int, peak: int) -> None:
        record = self.core.jobs.get(job)
        if record is not None and record.state is JobState.RUNNING and record.cooperative:
            self.granted.discard(job)
            self.send(
                ev.BoundaryReached(
                    at=self.at,
                    job=job,
                    trimmed=trimmed,
                    persistent=held,
                    interval=0.01,
                    ephemeral=peak,
                )
            )

    @rule(
        session=sessions,
        demand=st.sampled_from([0.0, 0.3, 1.0]),
        depth=st.sampled_from([0.0, 0.02, 0.8]),
        rate=st.sampled_from([0.0, 150.0]),
    )
    def work(self, session: SessionId, demand: float, depth: float, rate: float) -> None:
        if session in self.targets:
            self._work(session, demand, depth)
            self.device.process(self.targets[session]).rate = rate

    @rule(session=sessions)
    def cell(self, session: SessionId) -> None:
        target = self.targets.get(session)
        if target is not None:
            self._work(session, 1.0, 0.0)
            self.send(ev.CellStarted(at=self.at, session=session, usage=self.device.usage(target)))

    @rule(session=sessions, held=sizes)
    def cell_end(self, session: SessionId, held: int) -> None:
        if session in self.targets:
            self.send(ev.CellEnded(at=self.at, session=session, persistent=held))

    @rule(session=sessions)
    def release(self, session: SessionId) -> None:
        if session in self.targets:
            self.send(ev.Released(at=self.at, session=session))

    # --- faults and administrators -----------------------------------------------------------------------

    @rule(
        session=sessions,
        fault=st.sampled_from(["self-unlock", "sigstop", "sigcont", "break", "profiler"]),
    )
    def fault(self, session: SessionId, fault: str) -> None:
        target = self.targets.get(session)
        if target is None:
            return
        process = self.device.process(target)
        if fault == "self-unlock":
            self.device.self_unlock(target)
        elif fault == "break":
            self.device.break_context(target)
        elif fault == "profiler":
            process.profiled = not process.profiled
        else:
            process.stopped = fault == "sigstop"
            for late in [*self.late_resumes]:
                self._resume(late)

    @precondition(lambda self: self.can_park)
    @rule(status=st.sampled_from([None, MoveStatus.NOT_NOW, MoveStatus.UNABLE]))
    def moves_fail(self, status: MoveStatus | None) -> None:
        """From now on, until they do not."""
        self.refuses = None if status is None else MoveOutcome(status, why="so the test says")

    @precondition(lambda self: self.can_park)
    @rule(session=sessions)
    def park(self, session: SessionId) -> None:
        if session in self.targets:
            self.send(ev.ParkWanted(at=self.at, session=session))

    @precondition(lambda self: self.can_park)
    @rule(session=sessions, why=st.sampled_from(["", "it maps what others own"]))
    def bar(self, session: SessionId, why: str) -> None:
        if session in self.targets:
            self.send(ev.ParkBarred(at=self.at, session=session, why=why))

    @rule(size=st.integers(0, 16))
    def foreign(self, size: int) -> None:
        taken = self.device.set_foreign(size * 512 * MiB)
        self.send(ev.CapacityChanged(at=self.at, capacity=CAPACITY - taken))

    @rule(session=sessions, seconds=st.sampled_from([0.05, 1.0]))
    def exempt(self, session: SessionId, seconds: float) -> None:
        if session in self.targets:
            self.send(ev.Exempted(at=self.at, session=session, until=self.at + seconds))

    @rule(session=sessions, seconds=st.sampled_from([0.05, 1.0, 60.0]), reason=suspensions)
    def suspend(self, session: SessionId, seconds: float, reason: PauseReason) -> None:
        if session in self.targets:
            until = self.at + seconds
            self.send(ev.Suspended(at=self.at, session=session, until=until, reason=reason))

    @rule(session=sessions, reason=suspensions)
    def let_on(self, session: SessionId, reason: PauseReason) -> None:
        self.send(ev.SuspensionEnded(at=self.at, session=session, reason=reason))

    @rule(policy=st.sampled_from(["fair", "fifo", "srtf", "pack"]))
    def policy(self, policy: str) -> None:
        self.send(ev.PolicyChanged(at=self.at, policy=policy))

    @rule(session=sessions, weight=st.sampled_from([0.2, 1.0, 5.0]))
    def weight(self, session: SessionId, weight: float) -> None:
        if session in self.targets:
            self.send(ev.WeightChanged(at=self.at, session=session, weight=weight))

    @rule(
        user=st.sampled_from("abc"),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        memory=st.none() | sizes,
        parked=st.none() | sizes,
        over=st.booleans(),
    )
    def limits(
        self, user: str, weight: float, memory: int | None, parked: int | None, over: bool
    ) -> None:
        """What its group gives a user changes: the clock, or its budget, or an administrator."""
        self.send(ev.UserLimits(at=self.at, user=UserId(user), group="g", weight=weight, memory=memory, parked=parked, over_budget=over))  # fmt: skip

    @rule(on=st.booleans())
    def maintenance(self, on: bool) -> None:
        self.send(ev.Draining(at=self.at, on=on))

    @rule()
    def lose_and_find(self) -> None:
        self.send(ev.DeviceLost(at=self.at, lost=True))
        assert not any(s.stopped for s in self.core.sessions.values())
        self.send(ev.DeviceLost(at=self.at, lost=False))

    # --- time ------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.2, 2.0]))
    def time(self, seconds: float) -> None:
        self.pass_time(seconds)

    @precondition(
        lambda self: (
            bool(self.core.turns.wanting)
            and self.core.turns.accounts.policy.name == "fair"
            and not any(job.realtime for job in self.core.jobs.values())
            and not any(user.over_budget for user in self.core.users.values())
        )
    )
    @rule()
    def everybody_gets_a_turn(self) -> None:
        """I6: each session that wants the device and can be paused has had it once its share is worth some turns."""
        before = {s: self.core.sessions[s].turns for s in self.core.turns.wanting}
        held = set(self.core.turns.using)
        seconds = 0.5 + 4.0 * len(before)
        owed = {s: seconds * share for s, share in self.shares().items()}
        self.pass_time(seconds)
        for session, turns in before.items():
            record = self.core.sessions.get(session)
            if record is None or session not in self.core.turns.wanting or session in held:
                continue
            if owed[session] >= OWED:
                assert record.turns > turns or session in self.core.turns.using, (
                    f"{session} starves"
                )

    def shares(self) -> dict[SessionId, float]:
        """What each session that wants the device is entitled to."""
        wanting = [*self.core.turns.wanting.values()]
        users = sum(user.weight for user in {s.user for s in wanting})
        own = {s.user: sum(o.weight for o in wanting if o.user is s.user) for s in wanting}
        return {s.id: s.user.weight / users * s.weight / own[s.user] for s in wanting}

    # --- always ------------------------------------------------------------------------------------------------

    @invariant()
    def only_what_we_paused_stands_still(self) -> None:
        """I3: a process that stands still on our account is known to be so, or about to be."""
        for session, target in self.targets.items():
            if self.device.paused(target) and session not in self.late_resumes:
                record = self.core.sessions[session]
                assert record.stopped or record.parked or record.moving

    def teardown(self) -> None:
        for session in list(self.core.sessions):
            self.send(ev.SessionClosed(at=self.at, session=session))
        assert self.core.book.table.used == 0
        assert not self.core.jobs
        assert not self.core.turns.wanting
        assert not len(self.core.book.queue)
        assert not self.core.held_back
        assert all(s.presence is not Presence.CLOSED for s in self.core.sessions.values())


class SlotMachine(Machine):
    """The same on a device whose time is given out in slots."""

    divisible = False


class ParkMachine(Machine):
    """The same where the memory of those who wait, or are idle, may be given to others."""

    can_park = True
    margin = RESERVE


class ForceMachine(SlotMachine):
    """The same where somebody may be parked in the middle of its work."""

    can_park = by_force = True
    margin = RESERVE


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty steps are to see who is idle parked, and who could not be tried again."""
    for name, seconds in (("REST", 0.05), ("GLANCE", 0.02), ("FIRST_SPARED", 0.1)):
        monkeypatch.setattr(parking, name, seconds)


LONG = settings(
    max_examples=int(os.environ.get("GPUSHARE_EXAMPLES", "150")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
for each in (Machine, SlotMachine, ParkMachine, ForceMachine):
    each.TestCase.settings = LONG
TestMachine = Machine.TestCase
TestForceMachine = ForceMachine.TestCase
TestParkMachine = ParkMachine.TestCase
TestSlotMachine = SlotMachine.TestCase
