"""Who runs when. All run while their measured demand fits the device; else turns, in frames of one turn length.

A frame: rank those who want the device, take the best until it is full (co-run), let the others leave (at a boundary
where one comes soon, else paused from outside), start the taken ones as room appears. Holes are filled within the
frame. Nobody's turn costs anything while all fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice

from gpushare_kernel.core.accounts import Accounts
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.instructions import Ask, Instruction, Pause, Resume, Slow
from gpushare_kernel.core.policies import policy_named
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobState, Mode, PauseReason, PauseStatus, SessionId, UserId

SLACK = 0.1
"""Cores by which a full device may be overbooked: light sessions always fit."""
LONGEST_DRAIN = 60.0
"""A pause whose target never drains is tried with longer and longer limits, up to this one (seconds)."""
FILLER, FILLER_PART = 0.5, 0.25
"""Cores, and the part of a small device, that must lie idle before a session larger than them may fill them."""
LOOKS = 1
"""How many of those who stand still are looked at with each sample, one after the other: a bound on work, which is taken from those who run."""
PATIENCE = 4
"""Frames in a row in which a session that is larger than what is left lets smaller ones of its user pass."""
FITS = 32
"""How many of those who wait are tried in a hole within a frame, best first; the next frame tries them all."""

_LEFT = {PauseStatus.PAUSED, PauseStatus.STOPPED, PauseStatus.NOTHING, PauseStatus.GONE}


class Turns:
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
        #: Sessions that use the device (ON or LEAVING), those chosen for this frame that wait for room, all that want it.
        self.using: dict[SessionId, Session] = {}
        self.joining: dict[SessionId, Session] = {}
        self.wanting: dict[SessionId, Session] = {}
        self._users: Counter[UserId] = Counter()  # of those that want it
        self.load = 0.0
        self.busy = 0.0
        self.frame_end: float | None = None
        #: No pauses before this time (broker restart), or while the device is lost.
        self.free_until = 0.0
        self.lost = False
        #: Who gave its turn back since it was last sampled, and who was sampled since and still stands still.
        self._left_now: dict[SessionId, Session] = {}
        self._standing: dict[SessionId, Session] = {}
        #: After so many had joined, nobody who waited fitted into so much room: not looked for again before that changes.
        self._nobody_fits: tuple[int, float] = (-1, 0.0)
        self._leaving = 0
        self._filler = min(FILLER, FILLER_PART * self.compute)
        #: Who was taken into this frame with less room than it can use.
        self._squeezed: Session | None = None
        self._exempt: dict[SessionId, Session] = {}
        self._emit, self._timer = emit, timer
        self._resume_jobs, self._crowded = resume_jobs, crowded

    # --- what callers ask -------------------------------------------------------------------------

    def crowded(self, at: float) -> bool:
        """Whether those who want the device ask for more than it has."""
        return (
            not self.lost
            and at >= self.free_until
            and self.load > self.compute + SLACK
            and len(self.wanting) > 1
        )

    def mode(self, session: Session, at: float) -> Mode | None:
        """How `session` shares the device now; None where it wants nothing."""
        if session.id not in self.wanting:
            return None
        if len(self.wanting) == 1:
            return Mode.ALONE
        return (
            Mode.EXCLUSIVE
            if self.crowded(at) and session.counted >= self.compute - SLACK
            else Mode.CO_RUN
        )

    def want(self, session: Session, at: float) -> None:
        """`session` has work: it joins those who want turns; where it runs already it is taken as it is."""
        if session.id in self.wanting:
            return
        self.wanting[session.id] = session
        self._users[session.user.id] += 1
        self._count(session)
        session.waiting_since = at
        if _at_work(session):
            self.accounts.join(session)
            self.accounts.leave(session)
            self._use(session, at)
        else:
            session.phase = Phase.WAITING
            self.accounts.join(session)
            # What it used of a turn that it gave back with its last job may not be on its accounts yet.
            self.sampled(session)

    def unwant(self, session: Session, at: float) -> None:
        """`session` has no work left: nothing of it stays paused."""
        if self.wanting.pop(session.id, None) is None:
            return
        self._users[session.user.id] -= 1
        if not self._users[session.user.id]:
            del self._users[session.user.id]
        self.accounts.leave(session)
        self.joining.pop(session.id, None)
        if session.id in self.using:
            self._unuse(session, at)
        self._left_now.pop(session.id, None)
        self._standing.pop(session.id, None)
        self.load -= session.counted
        session.counted = 0.0
        session.phase = Phase.OFF
        session.shared_since, session.shared_told = None, False
        self.free(session)

    def free(self, session: Session) -> None:
        """Resume `session` if we paused it (or are about to)."""
        if session.stopped is not None:
            session.stopped, session.pausing = None, False
            for job in session.jobs.values():
                if job.state is JobState.PAUSED:
                    job.become(JobState.RUNNING)
            self._emit(Resume(session.id))

    def watched(self) -> Iterator[SessionId]:
        """Who is to be sampled next: who runs, who just gave its turn back, and some of those who stand still."""
        return chain(self.using, self._left_now, islice(self._standing, LOOKS))

    def sampled(self, session: Session) -> None:
        """`session` was sampled: if it stands still, the others that do come before it again."""
        self._standing.pop(session.id, None)
        self._left_now.pop(session.id, None)
        still = session.stopped is not None or session.held > 0
        if still and session.phase is Phase.WAITING:
            self._standing[session.id] = session

    def measure(self, session: Session, demand: float) -> None:
        """`session` was seen to use (or to be ready to use) `demand` cores."""
        session.demand = demand if session.demand is None else (session.demand + demand) / 2
        if session.id in self.wanting:
            self._recount(session)

    def settle(self, at: float) -> None:
        """Bring phases in line with what is wanted. Called once after every event."""
        if not self.crowded(at):
            self._everybody(at)
        elif self.frame_end is None:
            for session in self.wanting.values():
                session.shared_since, session.shared_used = at, session.device_time
            self._frame(at)
        elif at >= self.frame_end and self.accounts.policy.rotates:
            self._frame(at)
        else:
            self._fill(at)

    # --- answers ------------------------------------------------------------------------------------

    def paused(self, session: Session, ticket: int, status: PauseStatus, at: float) -> None:
        """A `Pause` was carried out, or could not be."""
        if not session.pausing or ticket != session.ticket:
            return
        session.pausing = False
        if status in _LEFT:
            # Also where there was nothing to pause (no context, stopped by its own user): should it use
            # the device before its next turn, that is seen and it is paused again.
            for job in _at_work(session):
                job.become(JobState.PAUSED)
            self._left(session, at)
        elif status is PauseStatus.BUSY:
            # Its submitted work is longer than the limit: the lock can only succeed if it waits longer.
            session.pause_limit = min(
                2 * max(session.pause_limit, self.config.pause_limit), LONGEST_DRAIN
            )
            self._pause(session, at, PauseReason.TURN_ENDED)
        else:
            # It cannot be paused (a profiler, MPS, another's process): it runs beside everybody, and is charged.
            session.stopped, session.pausable = None, False
            self._recount(session)
            self._stay(session, at)

    def at_boundary(self, session: Session, at: float) -> None:
        """A job of `session` waits inside our client; if nothing of it runs, its turn is given back."""
        if session.phase is Phase.LEAVING and not session.pausing and not _at_work(session):
            self._left(session, at)

    def late(self, session: Session, at: float) -> None:
        """The deadline of `session` to reach its boundary has come."""
        if session.phase is Phase.LEAVING and not session.pausing and at >= session.leave_by:
            self._pause(session, at, PauseReason.TURN_ENDED)

    def restop(self, session: Session) -> None:
        """`session` used the device although it is paused: somebody else continued it."""
        if session.stopped is not None and not session.pausing and session.phase is Phase.WAITING:
            limit = max(session.pause_limit, self.config.pause_limit)
            self._emit(Pause(session.id, PauseReason.RESTOPPED, limit, session.ticket))

    def exempt(self, session: Session, until: float, at: float) -> None:
        """Resume `session` and do not pause it before `until`; what it uses meanwhile is charged."""
        session.exempt_until = until
        self._exempt[session.id] = session
        if session.phase is Phase.WAITING and session.stopped is not None:
            self.accounts.leave(session)
            self.joining.pop(session.id, None)
            self._use(session, at)
        self.free(session)
        if session.phase is Phase.LEAVING:
            self._stay(session, at)

    # --- frames --------------------------------------------------------------------------------------

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
        taken = self._choose(self._room(at) + sum(s.counted for s in held))
        self.frame_end = at + self.config.turn
        self.accounts.advance(self._squeezed)
        for session in held:
            if session.id in taken:
                del taken[session.id]
                self._tell(session, at)
            else:
                self.accounts.leave(session)
                self._leave(session, at)
        self.joining = taken
        self._fill(at)

    def _choose(self, room: float) -> dict[SessionId, Session]:
        """Take the best that fit into `room` together; one that is larger than what is left may get just that."""
        taken: dict[SessionId, Session] = {}
        skipped: Session | None = None
        self._squeezed = None
        for session in self._candidates():
            if session.counted <= room + SLACK:
                self._take(session, taken)
                room -= session.counted
            elif skipped is None and self._squeezed is None:
                # Nobody before it could use what is left, and they would come first in every frame.
                if taken and room >= self._filler and not self._objectors(session, taken, room):
                    self._take(session, taken)
                    self._squeezed, room = session, 0.0
                else:
                    skipped = session
                    session.passed += 1
        # Cores would lie idle: co-run a larger one, but only while it is not ahead of its share.
        if taken and skipped is not None and skipped.demand is not None and room >= self._filler:
            credit = self.accounts.credit
            others = self._objectors(skipped, taken, room)
            if all(skipped.user.vtime <= user.vtime + credit / user.weight for user in others):
                self._take(skipped, taken)
                self._squeezed = skipped
        return taken

    def _candidates(self) -> Iterator[Session]:
        """Yield who waits, best first. Smaller sessions pass a larger one of their user by one turn's worth, not for ever."""
        left: dict[User, Session] = {}
        for session in self.accounts.ranked(self._cost):
            first = left.get(session.user)
            if (
                first is not None
                and self.accounts.policy.rotates
                and session.vtime > first.vtime + self.accounts.credit / first.weight
            ):
                continue
            yield session
            if self.accounts.waits(session):
                left.setdefault(session.user, session)

    def _take(self, session: Session, taken: dict[SessionId, Session]) -> None:
        self.accounts.leave(session)
        taken[session.id] = session
        session.passed = 0

    def _objectors(
        self, session: Session, taken: dict[SessionId, Session], room: float
    ) -> list[User]:
        """Users of `taken` who lose by `session` getting `room`: others of theirs wait, or theirs would be slower.

        Its own user divides its own share: the better ranked ones object only for a while.
        """
        return [
            other.user
            for other in taken.values()
            if (
                session.passed < PATIENCE
                if other.user is session.user
                else self.accounts.has_waiting(other.user) or other.counted > room + SLACK
            )
        ]

    def _fill(self, at: float) -> None:
        for session in [*self.joining.values()]:
            if self._leaving and session.counted > self._room(at) + SLACK:
                return
            del self.joining[session.id]
            self._use(session, at)
            if self.accounts.policy.rotates:
                self.frame_end = at + self.config.turn
        if self._leaving or not self.accounts.users:
            return
        if not self.using:
            self._frame(at)
            return
        room = self._room(at)
        if room <= SLACK or (
            self._nobody_fits[0] == self.accounts.joins and room <= self._nobody_fits[1]
        ):
            return
        for session in islice(self._candidates(), FITS):
            if session.counted <= room + SLACK:
                self.accounts.leave(session)
                self._use(session, at)
                room -= session.counted
        self._nobody_fits = (self.accounts.joins, room)

    # --- one session -----------------------------------------------------------------------------------

    def _use(self, session: Session, at: float) -> None:
        session.phase = Phase.ON
        session.on_since = at
        session.turns += 1
        self.using[session.id] = session
        self.busy += session.counted
        waited = at - session.waiting_since
        self.free(session)
        if session.shared_since is None and self.frame_end is not None:
            session.shared_since, session.shared_used = at, session.device_time
        if waited >= self.config.tell_paused and session.turns > 1:
            self._emit(Slow(session.id, self._others(session), 0.0, waited))
        self._tell(session, at)
        self._resume_jobs(session, at)

    def _leave(self, session: Session, at: float) -> None:
        """The turn is over. `session` is out of the accounts until it has left."""
        session.phase = Phase.LEAVING
        self._leaving += 1
        running = _at_work(session)
        if not running:
            self._left(session, at)
            return
        job = running[0]
        if (
            len(running) == 1
            and job.cooperative
            and (job.interval or 0.0) <= self.config.boundary_grace
        ):
            job.asked = True
            session.leave_by = at + self.config.boundary_grace
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
        session.phase = Phase.WAITING
        session.waiting_since = at
        self.accounts.join(session)

    def _stay(self, session: Session, at: float) -> None:
        """Whoever was leaving keeps its turn after all; a word that was set is cleared."""
        if session.phase is Phase.LEAVING:
            self._leaving -= 1
            session.phase = Phase.ON
        for job in session.jobs.values():
            if job.asked and not self._crowded(job):
                job.asked = False
                self._emit(Ask(job.id, session.id, turn=False, lane=False))
        self._resume_jobs(session, at)

    def _unuse(self, session: Session, at: float) -> None:
        if session.phase is Phase.LEAVING:
            self._leaving -= 1
        del self.using[session.id]
        self._left_now[session.id] = session
        self.busy -= session.counted
        session.held += at - session.on_since

    def _may_pause(self, session: Session, at: float) -> bool:
        return session.pausable and at >= session.exempt_until

    def _room(self, at: float) -> float:
        """Cores that nobody's turn takes. Who may not be paused just now is beside the turns, not in their way."""
        self._exempt = {name: s for name, s in self._exempt.items() if at < s.exempt_until}
        beside = (s for s in self._exempt.values() if s.phase is Phase.ON)
        return self.compute - self.busy + sum(s.counted for s in beside)

    def _recount(self, session: Session) -> None:
        before = session.counted
        self._count(session)
        if session.id in self.using:
            self.busy += session.counted - before

    def _count(self, session: Session) -> None:
        if not session.pausable:
            counted = 0.0
        elif session.demand is None:
            counted = self.compute
        else:
            counted = counted_demand(session.demand, self.compute)
        if counted < session.counted and session.phase is Phase.WAITING:
            self._nobody_fits = (-1, 0.0)
        self.load += counted - session.counted
        session.counted = counted

    def _cost(self, session: Session) -> float:
        return session.counted * self.config.turn

    def _tell(self, session: Session, at: float) -> None:
        since = session.shared_since
        if since is None or session.shared_told or at - since < self.config.tell_shared:
            return
        session.shared_told = True
        whole = (at - since) * (session.counted or 1.0)
        self._emit(
            Slow(
                session.id,
                self._others(session),
                min(1.0, (session.device_time - session.shared_used) / whole),
            )
        )

    def _others(self, session: Session) -> int:
        return len(self._users) - (session.user.id in self._users)


def counted_demand(demand: float, compute: float) -> float:
    """What a measured demand counts for: threads are whole, with 10 % tolerance above; next to nothing is nothing."""
    if demand < 0.02:  # noqa: PLR2004
        return 0.0
    whole = round(demand)
    if whole >= 1 and 0 < demand - whole <= 0.1 * whole:
        demand = float(whole)
    return min(demand, compute)


def _at_work(session: Session) -> list[Job]:
    """The jobs of `session` that are past their first line and not at a boundary inside our client."""
    return [job for job in session.jobs.values() if not job.waits]
