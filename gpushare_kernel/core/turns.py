"""Who runs when: what a turn is, on every kind of device. All run while they fit together; else turns.

Here is how a session comes to its turn and how it leaves (at a boundary where one comes soon, else paused from
outside). Who is chosen next, and for how long, is for the two kinds of device: `frames` packs sessions onto cores,
`slots` divides the time of a GPU, which runs one saturating session at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from math import inf

from gpushare_kernel.core import drains
from gpushare_kernel.core.accounts import Accounts
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.gate import Gate
from gpushare_kernel.core.instructions import Ask, Instruction, Pause, Resume
from gpushare_kernel.core.policies import Policy, Together, policy_named
from gpushare_kernel.core.probe import Seen
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.telling import Telling
from gpushare_kernel.core.values import JobState, Mode, PauseReason, PauseStatus, SessionId, Usage
from gpushare_kernel.core.watch import Watch

SLACK = 0.1
"""Cores by which a full device may be overbooked: light sessions always fit."""
PATIENT_GRACE = 1.0
"""Seconds in which a boundary must come where nothing but asking is possible."""
_LEFT = {PauseStatus.PAUSED, PauseStatus.STOPPED, PauseStatus.NOTHING, PauseStatus.GONE}


class Turns(ABC):
    """Phases of sessions, and the frame. Instructions go to `emit`, deadlines to `timer(at, session)`."""

    def __init__(
        self,
        config: Config,
        emit: Callable[[Instruction], None],
        timer: Callable[[float, Session], None],
        resume_jobs: Callable[[Session, float], None],
        crowded: Callable[[Job], bool],
    ) -> None:
        self.config = config
        self.compute = config.compute
        self.accounts = Accounts(policy_named(config.policy), config.turn * config.compute)
        self.accounts.margin = config.turn
        #: Sessions that use the device (ON or LEAVING), those chosen for this frame that wait for room, all that want it.
        self.using: dict[SessionId, Session] = {}
        self.joining: dict[SessionId, Session] = {}
        self.wanting: dict[SessionId, Session] = {}
        self._telling = Telling(config, emit)
        self.load = 0.0
        self.busy = 0.0
        self.frame_end: float | None = None
        #: No pauses before this time (broker restart), or while the device is lost.
        self.free_until = 0.0
        self.lost = False
        #: Whom samples are asked of.
        self.watch = Watch(self.using)
        self._leaving = 0
        #: The policy has changed: whom it would have chosen is to be seen.
        self._anew = False
        #: How many have come to want turns, and how many had when it was last seen whether one is better than who runs.
        self._came = self._compared = 0
        #: Who may not be paused for a while, and when the first of them may be again.
        self._exempt: dict[SessionId, Session] = {}
        self._exempt_ends = inf
        #: Told of every session whose phase changes, of who is kept paused or parked, and when. It decides nothing.
        self.noted: Callable[[Session, float], None] = lambda _session, _at: None
        #: Who stands still for real-time jobs, and since when all do (None: they do not).
        self.gate = Gate(config, emit)
        self._shut_since: float | None = None
        #: Who is not to be paused, as soon as real-time jobs allow it, and until when.
        self._exempt_later: dict[SessionId, tuple[Session, float]] = {}
        self._emit, self._timer = emit, timer
        self._resume_jobs, self._crowded = resume_jobs, crowded

    # --- what callers ask -------------------------------------------------------------------------

    def crowded(self, at: float) -> bool:
        """Whether those who want the device ask for more than it has."""
        return (
            not self.lost
            and at >= self.free_until
            and len(self.wanting) > 1
            and not self.all_fit(at)
        )

    @abstractmethod
    def all_fit(self, at: float) -> bool:
        """Whether all who want the device can have it at the same time, as far as is known."""

    @abstractmethod
    def wants_more(self) -> bool:
        """Whether the device would be busier for one more."""

    @property
    def turn(self) -> float:
        """How long those chosen now keep the device while others wait, in seconds."""
        return self.config.turn

    @property
    def together(self) -> Together:
        """Who runs at the same time, as the policy says."""
        return self.accounts.policy.together

    def mode(self, session: Session, at: float) -> Mode | None:
        """How `session` shares the device now; None where it wants nothing."""
        if session.id not in self.wanting:
            return None
        if len(self.wanting) == 1:
            return Mode.ALONE
        return Mode.EXCLUSIVE if self.crowded(at) and self._has_it_alone(session) else Mode.CO_RUN

    def _has_it_alone(self, session: Session) -> bool:
        """Whether nobody else runs in a turn of `session`."""
        return session.counted >= self.compute - SLACK

    def want(self, session: Session, at: float) -> None:
        """`session` has work: it joins those who want turns; where it runs already it is taken as it is."""
        if session.id in self.wanting:
            return
        self.wanting[session.id] = session
        self._came += 1
        self._telling.joined(session)
        self._count(session)
        session.waiting_since = at
        if _at_work(session) or session.realtime:
            self.accounts.join(session)
            self.accounts.leave(session)
            self._use(session, at)
        else:
            self._become(session, Phase.WAITING, at)
            self.accounts.join(session)
            # What it used of a turn that it gave back with its last job may not be on its accounts yet.
            self.watch.sampled(session)

    def rank_anew(self, session: Session) -> None:
        """What ranks `session` has changed: it may come before who has the device now."""
        self._came += 1
        self.accounts.rerank(session)

    def unwant(self, session: Session, at: float) -> None:
        """`session` has no work left: nothing of it stays paused."""
        if self.wanting.pop(session.id, None) is None:
            return
        self._telling.left(session)
        self.accounts.leave(session)
        self.joining.pop(session.id, None)
        if session.id in self.using:
            self._unuse(session, at)
        self.watch.forget(session)
        self.load -= session.counted
        session.counted = 0.0
        self._become(session, Phase.OFF, at)
        session.pausable = (
            self.config.can_pause
        )  # a profiler, a kernel without end: gone with that work
        self.free(session)

    def free(self, session: Session) -> None:
        """Resume `session` if we paused it (or are about to)."""
        if session.stopped is not None:
            session.stopped, session.pausing = None, False
            for job in session.jobs.values():
                if job.state is JobState.PAUSED:
                    job.become(JobState.RUNNING)
            if not self.gate.keeps(session):
                self._emit(Resume(session.id))

    def measure(self, session: Session, demand: float) -> None:
        """`session` was seen to use (or to be ready to use) `demand` cores."""
        session.demand = demand if session.demand is None else (session.demand + demand) / 2
        if session.id in self.wanting:
            self._recount(session)

    def forget(self, session: Session) -> None:
        """`session` is gone, or its kernel starts anew."""
        self.watch.forget(session)
        self._exempt.pop(session.id, None)
        self._exempt_later.pop(session.id, None)
        self.gate.forget(session)

    def follow(self, policy: Policy, users: Iterable[User], sessions: Iterable[Session]) -> None:
        """Rank everybody by another policy, and choose by it now."""
        self.accounts.follow(policy, users, sessions)
        self.choose_anew()

    def choose_anew(self) -> None:
        """Others than those who have the device now may be the ones to have it."""
        self._anew = True

    @abstractmethod
    def account(self, session: Session, usage: Usage, seen: Seen, at: float) -> None:
        """`session` was sampled: put what it used on its accounts."""

    @abstractmethod
    def looked(self, utilization: float | None, since: float, at: float) -> None:
        """All samples of one moment are in; `utilization` is how busy the device was in a window after `since`."""

    def asks_for(self, session: SessionId) -> bool:  # noqa: ARG002
        """Whether a sample of `session` is to tell whether it was at work, which takes the driver's time."""
        return False

    def look_by(self, at: float) -> float | None:  # noqa: ARG002
        """When it is to be sampled next although no frame ends then; None where there is no need."""
        return None

    def settle(self, at: float) -> None:
        """Bring phases in line with what is wanted. Called once after every event."""
        self._stand_aside(at)
        if self.gate.shut:
            return
        if not self.crowded(at):
            self._everybody(at)
        elif self.frame_end is None:
            for session in self.wanting.values():
                self._telling.shares(session, at)
            self._frame(at)
        elif self._is_over(self.frame_end, at):
            self._frame(at)
        else:
            self._fill(at)
        self._stand_aside(at)  # for whom came to its turn just now

    def _stand_aside(self, at: float) -> None:
        """Hold and let go whom real-time jobs say. Slots are as much longer as all stood still."""
        self.gate.settle(self.using.values(), at, free=self.lost or at < self.free_until)
        since = self._shut_since
        if self.gate.shut and since is None:
            self.stood(0.0, at)
            self._shut_since = at
        elif not self.gate.shut and since is not None:
            self._shut_since = None
            self.stood(at - since, at)
            later, self._exempt_later = self._exempt_later, {}
            for session, until in later.values():
                if at < until:
                    self.exempt(session, until, at)

    def stood(self, seconds: float, at: float) -> None:  # noqa: ARG002
        """From here on nobody is charged (0): all stand still for real-time jobs, or nobody decides. It was so for `seconds`."""
        if self.frame_end is not None:
            self.frame_end += seconds

    def _is_over(self, frame_end: float, at: float) -> bool:
        """Whether others are to be chosen now: the turn has ended, or somebody better has come."""
        policy = self.accounts.policy
        if self._anew or at >= frame_end:
            return self._anew or policy.rotates
        if not policy.preempts or self._leaving or self._compared == self._came:
            return False
        self._compared = self._came
        return self.accounts.better_waits(s for s in self.using.values() if self._may_pause(s, at))

    # --- answers ------------------------------------------------------------------------------------

    def paused(
        self,
        session: Session,
        ticket: int,
        status: PauseStatus,
        at: float,
        drain: float = 0.0,
    ) -> None:
        """A `Pause` was carried out, or could not be; its work took `drain` seconds to end."""
        if not session.pausing or ticket != session.ticket:
            return
        session.pausing = False
        if status is not PauseStatus.BUSY:
            session.busy_tries = 0
        if status in _LEFT:
            if status is PauseStatus.PAUSED:
                drains.note(session, drain)
            if drain < self.config.pause_limit:
                session.pause_limit = 0.0
            # Also where there was nothing to pause (no context, stopped by its own user): should it use
            # the device before its next turn, that is seen and it is paused again.
            for job in _at_work(session):
                job.become(JobState.PAUSED)
            self._left(session, at)
        elif status is PauseStatus.BUSY:
            # Its submitted work is longer than the limit: the lock can only succeed if it waits longer.
            pause = drains.busy_again(session, self.config.pause_limit, at)
            if pause is None:
                self._runs_beside(session, at)
            else:
                session.leave_by = at + pause
                self._timer(session.leave_by, session)
        else:
            # It cannot be paused (a profiler, MPS, another's process): it runs beside everybody, and is charged.
            self._runs_beside(session, at)

    def _runs_beside(self, session: Session, at: float) -> None:
        """Nobody can pause it now."""
        session.stopped, session.pausable = None, False
        self._recount(session)
        self._stay(session, at)

    def at_boundary(self, session: Session, at: float) -> None:
        """A job of `session` waits inside our client; if nothing of it runs, its turn is given back."""
        if session.phase is Phase.LEAVING and not session.pausing and not _at_work(session):
            self._left(session, at)

    def late(self, session: Session, at: float) -> None:
        """The deadline of `session` to reach its boundary has come."""
        if session.phase is not Phase.LEAVING or session.pausing or at < session.leave_by:
            return
        if session.pausable:
            self._pause(session, at, PauseReason.TURN_ENDED)
            return
        for job in _at_work(
            session
        ):  # nobody can pause it, and it does not answer: it runs beside the others
            job.cooperative = False
        self._recount(session)
        self._stay(session, at)

    def restop(self, session: Session) -> None:
        """`session` used the device although it is paused: somebody else continued it."""
        if session.stopped is not None and not session.pausing and session.phase is Phase.WAITING:
            limit = max(session.pause_limit, self.config.pause_limit)
            self._emit(Pause(session.id, PauseReason.RESTOPPED, limit, session.ticket))

    def exempt(self, session: Session, until: float, at: float) -> None:
        """Resume `session` and do not pause it before `until`, or longer where that was said before; its use is charged.

        While real-time jobs have the device that waits for them.
        """
        if self.gate.shut and not session.realtime:
            self._exempt_later[session.id] = (session, until)
            return
        session.exempt_until = max(session.exempt_until, until)
        self._exempt[session.id] = session
        self._exempt_ends = min(self._exempt_ends, session.exempt_until)
        if session.phase is Phase.WAITING and session.stopped is not None:
            self.accounts.leave(session)
            self.joining.pop(session.id, None)
            self._use(session, at)
        self.free(session)
        if session.phase is Phase.LEAVING:
            self._stay(session, at)

    # --- frames --------------------------------------------------------------------------------------

    @abstractmethod
    def _choose(self, held: list[Session], at: float) -> dict[SessionId, Session]:
        """Return whom the next frame is for, out of the accounts; those in `held` have the device now."""

    @abstractmethod
    def _fill(self, at: float) -> None:
        """Start those chosen as room appears, and who else fits."""

    @abstractmethod
    def _count(self, session: Session) -> None:
        """Say again what `session` counts for while it wants a turn."""

    def _everybody(self, at: float) -> None:
        self.frame_end = None
        for session in [*self.joining.values()]:
            del self.joining[session.id]
            self.accounts.join(session)
        while self.accounts.users:
            for session in self.accounts.ranked(self._cost):
                self.accounts.leave(session)
                self._use(session, at)
        for session in self.using.values():
            session.shared_since = None
            if session.phase is Phase.LEAVING:
                self.free(session)
                self._stay(session, at)

    def _frame(self, at: float) -> None:
        held = [s for s in self.using.values() if s.phase is Phase.ON and self._may_pause(s, at)]
        for session in [*self.joining.values(), *held]:
            self.accounts.join(session)
        self.joining.clear()
        self._anew = False
        stays = self.using.keys() - {session.id for session in held}
        chosen = self._choose(held, at)
        # Who runs and cannot be paused now, or is about to leave, has nothing to wait for.
        taken = {name: session for name, session in chosen.items() if name not in stays}
        self.frame_end = at + self.turn
        for session in held:
            if session.id in taken:
                del taken[session.id]
                self._telling.goes_on(session, at)
            else:
                self.accounts.leave(session)
                self._leave(session, at)
        self.joining = taken
        self._compared = self._came
        self._fill(at)

    # --- one session -----------------------------------------------------------------------------------

    def _become(self, session: Session, phase: Phase, at: float) -> None:
        session.phase = phase
        self.noted(session, at)

    def _use(self, session: Session, at: float) -> None:
        self._become(session, Phase.ON, at)
        session.on_since = session.served_since = at
        session.turns += 1
        self.using[session.id] = session
        self.busy += session.counted
        waited = at - session.waiting_since
        self.gate.comes(session, at)
        self.free(session)
        if session.shared_since is None and self.frame_end is not None:
            self._telling.shares(session, at)
        self._telling.came(session, waited, at)
        self._resume_jobs(session, at)
        self.gate.came(session, at)

    def _leave(self, session: Session, at: float) -> None:
        """The turn is over. `session` is out of the accounts until it has left."""
        self._become(session, Phase.LEAVING, at)
        self._leaving += 1
        running = _at_work(session)
        if not running:
            self._left(session, at)
            return
        job = running[0]
        if self._is_asked(session):
            job.asked = True
            grace = self.config.boundary_grace if session.pausable else PATIENT_GRACE
            session.leave_by = at + grace
            self._emit(Ask(job.id, session.id, turn=True, lane=self._crowded(job)))
            self._timer(session.leave_by, session)
        else:
            self._pause(session, at, PauseReason.TURN_ENDED)

    def _pause(self, session: Session, at: float, reason: PauseReason) -> None:
        session.stopped, session.stopped_at, session.pausing = reason, at, True
        session.ticket += 1
        limit = max(session.pause_limit, self.config.pause_limit)
        self._emit(Pause(session.id, reason, limit, session.ticket))

    def _left(self, session: Session, at: float) -> None:
        self._unuse(session, at)
        self._become(session, Phase.WAITING, at)
        session.waiting_since = at
        self.accounts.join(session)

    def _stay(self, session: Session, at: float) -> None:
        """Whoever was leaving keeps its turn after all; a word that was set is cleared."""
        if session.phase is Phase.LEAVING:
            self._leaving -= 1
            self._become(session, Phase.ON, at)
        for job in session.jobs.values():
            if job.asked and not self._crowded(job):
                job.asked = False
                self._emit(Ask(job.id, session.id, turn=False, lane=False))
        self._resume_jobs(session, at)

    def _unuse(self, session: Session, at: float) -> None:
        if session.phase is Phase.LEAVING:
            self._leaving -= 1
        del self.using[session.id]
        self.watch.left(session)
        self.busy -= session.counted
        session.held += at - session.on_since
        session.served_before, session.served_since = session.served(at), None

    def _may_pause(self, session: Session, at: float) -> bool:
        if session.realtime or at < session.exempt_until:
            return False
        return session.pausable or self._is_asked(session)

    def _is_asked(self, session: Session) -> bool:
        """Whether `session` is asked for its turn at a boundary, rather than paused from outside."""
        running = _at_work(session)
        if len(running) != 1 or not running[0].cooperative:
            return False
        if not session.pausable:
            return True
        soon = (running[0].interval or 0.0) <= self.config.boundary_grace
        return soon and not self.config.enforce

    @staticmethod
    def _cooperates(session: Session) -> bool:
        """Whether all work of `session` meets boundaries."""
        return bool(session.jobs) and all(job.cooperative for job in session.jobs.values())

    def _recount(self, session: Session) -> None:
        before = session.counted
        self._count(session)
        if session.id in self.using:
            self.busy += session.counted - before

    def _cost(self, session: Session) -> float:
        return session.counted * self.config.turn


def _at_work(session: Session) -> list[Job]:
    """The jobs of `session` that are past their first line and not at a boundary inside our client."""
    return [job for job in session.jobs.values() if not job.waits]
