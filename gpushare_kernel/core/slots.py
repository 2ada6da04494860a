"""Turns on a GPU: a sharing guarantee. With n users who want it nobody's progress falls below its share; above that,
waste nothing.

What is measured decides (docs/turns.md):

- Nobody saturates the device (it has idle time while all run, or each leaves some when it runs alone): all run.
- Else slots of time. A saturating session has its slot alone; those that do not saturate (launch-bound) share one.
  Who comes next is for the accounts: max-min by user, then by session, weighted.
- Where everybody's progress can be seen (boundaries), and running all at once makes more progress in total than one
  after the other: all run, and whoever falls behind its share gets a slot alone until it has caught up.

A slot in which somebody is to be measured is as long as two of the device's windows of utilization.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from gpushare_kernel.core.gauge import (
    LIGHT,
    MISSING,
    Gauge,
    drains_deep,
    is_idle,
    is_light,
    settled,
    taken,
    unmeasured,
)
from gpushare_kernel.core.pace import ENOUGH_TIME, Pace
from gpushare_kernel.core.policies import Together
from gpushare_kernel.core.probe import Seen
from gpushare_kernel.core.records import Session, User
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.steering import REMEASURE, Steering, shares
from gpushare_kernel.core.turns import Turns
from gpushare_kernel.core.values import PauseStatus, SessionId, Usage

SAME_WORK, SAME_IDLENESS = 2.0, 60.0
"""Work that begins so soon (seconds) after the session's last is taken for as demanding as that; and where that left
the device idle."""
WINDOWS = 2.8
"""How many windows of utilization a slot lasts at most in which somebody is to be measured: one lies within it."""
LOOK = 0.04
"""How often such a slot is looked at (seconds): it ends when the measurement is there."""


class Slot(StrEnum):
    """Who runs in a slot."""

    ALONE = "alone"
    LIGHT = "light"  # all that do not saturate
    ALL = "all"


class Slots(Turns):
    """Turns of a device that runs one saturating session at a time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.slot = self._was = Slot.ALL
        self._length = self.config.turn
        #: Since when those of the slot have had the device to themselves.
        self._since = 0.0
        #: Whether that has begun: those before have left, and the time runs.
        self._begun = True
        self._billed = 0.0
        self._paces: dict[SessionId, Pace] = {}
        self._gauge = Gauge()
        self._steering = Steering(self.config.turn, self.pace)

    # --- what is known of each ------------------------------------------------------------------------

    def pace(self, session: Session) -> Pace:
        """Return what is known of how fast `session` goes on."""
        return self._paces.setdefault(session.id, Pace())

    def forget(self, session: Session) -> None:
        """`session` is gone, or starts anew."""
        super().forget(session)
        self._paces.pop(session.id, None)

    def want(self, session: Session, at: float) -> None:
        """`session` has work; what was known of its former pace may not be true of it."""
        self._bill(at)
        if session.id not in self.wanting:
            pace = self.pace(session)
            pace.forget()
            pace.began_at = at
            if at - pace.worked_at > (SAME_IDLENESS if is_idle(session) else SAME_WORK):
                session.demand = None
            self._gauge.somebody_new(at)
            self._doubt_paces(session)
            if self.slot is Slot.ALL and self.frame_end is not None:
                self._steering.comes_too(session.id, at)
        super().want(session, at)

    def _doubt_paces(self, newcomer: Session) -> None:
        """Who was found at work has worked for a while: what others made meanwhile was made beside it."""
        if all(job.background for job in newcomer.jobs.values()):
            self._forget_paces()

    def _forget_paces(self) -> None:
        """Somebody nobody knew of was at work too: it is to be seen anew how fast each goes on."""
        for session in self.wanting.values():
            self.pace(session).solo.forget()
            self.pace(session).beside.forget()

    def unwant(self, session: Session, at: float) -> None:
        """`session` has no work left."""
        self._bill(at)
        if session.id in self.wanting:
            self.pace(session).worked_at = at
        super().unwant(session, at)

    def all_fit(self, at: float) -> bool:  # noqa: ARG002
        """Whether nobody saturates the device, as far as is known."""
        rivals = self._rivals()
        if len(rivals) < 2:  # noqa: PLR2004
            return True
        if any(s.yields for s in rivals) and not all(s.yields for s in rivals):
            return False
        if self.together is Together.ONE:
            return False
        return all(self._is_light(s) for s in rivals)

    def wants_more(self) -> bool:
        """Whether the device is not asked for so much that one more would find no time."""
        asked = sum(1.0 if s.demand is None else s.demand for s in self._rivals())
        return asked < self.compute

    @property
    def turn(self) -> float:
        """How long this slot lasts."""
        return self._length

    def _rivals(self) -> list[Session]:
        """Those who want the device and are in each other's way."""
        return [s for s in self.wanting.values() if s.counted > 0]

    def _is_light(self, session: Session) -> bool:
        return is_light(session, self.pace(session))

    def _is_to_be_measured(self, session: Session, at: float) -> bool:
        if self.gate.promises:
            return False
        pace = self.pace(session)
        if pace.seen and not pace.stale:
            # Its boundaries tell its pace: how busy it keeps the device can wait.
            return at - max(pace.measured_at, pace.began_at) > REMEASURE
        return unmeasured(session, pace) or at - pace.measured_at > REMEASURE

    def _count(self, session: Session) -> None:
        idle = is_idle(session)
        stays = not session.pausable and not self._cooperates(session)
        counted = 0.0 if idle or stays or session.realtime else self.compute
        self.load += counted - session.counted
        session.counted = counted

    def _has_it_alone(self, session: Session) -> bool:
        return self.slot is Slot.ALONE and session.phase is Phase.ON

    # --- what was used --------------------------------------------------------------------------------------

    def account(self, session: Session, usage: Usage, seen: Seen, at: float) -> None:
        """A sample: bring the clocks up to now where it is of who has the device, and see how far the session has come."""
        if session.id in self.using:
            self._bill(at)
        idle = session.id in self.wanting and session.counted == 0 and session.pausable
        if idle and (usage.active or seen.steps):
            self._measure_anew(session)
        pace = self._paces.get(session.id)
        if pace is None:
            return
        if pace.take(seen.steps):
            # Another phase of its work: what it does alone, and what all do at once, is to be seen anew.
            if pace.rate is pace.beside:
                pace.solo.forget()
            self._steering.try_soon()
        if self._steers():
            self._steering.stepped(pace, seen.steps)

    def looked(self, utilization: float | None, since: float, at: float) -> None:
        """How busy the device was tells the demand of whoever had it alone for that long."""
        alone = self.slot is Slot.ALONE and self._begun
        self._steering.owe(self._rivals(), self.using, at, alone=alone, steers=self._steers())
        if self.slot is Slot.ALONE and not self._leaving:
            self._end_once_timed(at)
        if utilization is None or self.gate.promises:
            return  # real-time jobs are in it
        self._suspect(utilization, at)
        if self._leaving or since < self._since:
            return
        running = [s for s in self.using.values() if s.counted > 0]
        if len(self.using) == 1 or len(running) == 1:
            self._measured((running or [*self.using.values()])[0], utilization, at)
            self._end_early(at)
        elif utilization < LIGHT and len(running) == len(self._rivals()):
            # All run, and the device still has idle time: none of them saturates it.
            for session in running:
                if unmeasured(session, self.pace(session)):
                    self._measured(session, utilization, at)
        elif self.slot is Slot.ALL and not self._steering.at_once:
            self._end_early(at)

    def _end_once_timed(self, at: float) -> None:
        """Whose boundaries are seen need not wait for the device's word of how busy it was."""
        alone = [s for s in self.using.values() if s.counted > 0]
        if len(alone) != 1 or self._is_to_be_measured(alone[0], at):
            return
        if self.pace(alone[0]).seen:
            self._end_early(at)

    def _end_early(self, at: float) -> None:
        """What a slot was to show has been seen; it lasts a turn at least, and long enough to tell paces."""
        shortest = max(self.config.turn, ENOUGH_TIME)
        if self.frame_end is not None and self._length > self.config.turn:
            self.frame_end = min(self.frame_end, max(at, self._since + shortest))

    def asks_for(self, session: SessionId) -> bool:
        """Whether it is not known to work: then it is to be found out."""
        known = self.wanting.get(session)
        return (
            known is None
            or known.counted == 0
            or any(job.background for job in known.jobs.values())
        )

    def look_by(self, at: float) -> float | None:
        """When a slot that is to show something is to be looked at next; None where none is."""
        measuring = self.frame_end is not None and self._length >= self._window
        return at + LOOK if measuring else None

    def _suspect(self, utilization: float, at: float) -> None:
        """The device is less (or more) busy than those who had it would make it: one of them does other work now."""
        missing = self._gauge.missing(utilization, at)
        if missing is None:
            return
        if missing > MISSING:
            for session in self._rivals():
                self.pace(session).stale = True
        elif missing < -MISSING:
            idle = [s for s in self.wanting.values() if s.counted == 0 and s.pausable]
            if self._gauge.may_doubt_idle(at, any_idle=bool(idle)):
                for session in idle:
                    self._measure_anew(session)

    @property
    def _window(self) -> float:
        return WINDOWS * self.config.window

    def _measured(self, session: Session, utilization: float, at: float) -> None:
        before, pace = session.demand, self.pace(session)
        pace.stale, pace.measured_at = False, at
        session.demand = settled(before, utilization)
        if pace.woke and not is_idle(session):
            self._forget_paces()
        pace.woke = False
        if before is None or abs(before - session.demand) > MISSING / 2:
            self._gauge.anew()  # what was expected so far was expected of something else
        if session.id in self.wanting:
            self._recount(session)

    def _measure_anew(self, session: Session) -> None:
        self.pace(session).stale = True
        if is_idle(session):
            self.pace(session).woke = True
            session.demand = None
            self._recount(session)

    def _bill(self, at: float) -> None:
        """Charge the time since the last bill to those who had the device, by their shares."""
        passed, self._billed = at - self._billed, at
        if passed <= 0 or self._shut_since is not None:
            return
        users = [s for s in self.using.values() if not s.realtime]
        if not users:
            return
        charged = self.frame_end is not None and not self._steers()
        charged = charged or self.accounts.contended
        self._gauge.had((s.demand for s in users), passed)
        # Who cannot be paused pays like the others; who does next to nothing pays only where nobody else is there.
        payers = [s for s in users if s.counted > 0 or not s.pausable] or users
        for session, share in shares(payers):
            used = passed * share * taken(session)
            session.device_time += used
            session.user.device_time += used
            if charged:
                self.accounts.charge(session, passed * share)
            self.pace(session).seconds += passed

    def _steers(self) -> bool:
        """Whether all run at once and whoever falls behind gets a slot alone."""
        at_once = self._steering.at_once and not self.gate.promises
        return at_once and self.frame_end is not None

    # --- slots ------------------------------------------------------------------------------------------------------

    def _choose(self, held: list[Session], at: float) -> dict[SessionId, Session]:
        self._bill(at)
        rivals = self._rivals()
        rivals = [s for s in rivals if not s.yields] or rivals
        self._was = self.slot
        self.slot, chosen, self._length = self._next_slot(rivals, at)
        self.accounts.advance()
        self._begun = False
        for session in chosen:
            self.accounts.leave(session)
        for session in held:
            # Until those who are to leave have left, nobody is alone or beside all.
            self.pace(session).rate = None
        return {s.id: s for s in chosen}

    def _next_slot(self, rivals: list[Session], at: float) -> tuple[Slot, list[Session], float]:
        turn, measuring = self.config.turn, max(self.config.turn, self._window)
        if not self.accounts.policy.rotates:
            return Slot.ALONE, self._first(rivals), turn
        patient = self.accounts.waited_long()
        if patient is not None:
            return Slot.ALONE, [patient], turn
        policy = self.accounts.policy
        co_runs = policy.co_runs and not self.gate.promises  # beside these nothing can be measured
        if co_runs and self._steering.wants_trial(rivals, at):
            return Slot.ALL, self._waiting(rivals), measuring
        if co_runs and self._steering.judge(rivals, at):
            steers = policy.shares
            alone = self._steering.alone_next(rivals, at, measuring) if steers else None
            if alone is not None:
                return Slot.ALONE, [alone[0]], alone[1]
            return Slot.ALL, self._waiting(rivals), turn / 2
        return self._in_turn(self._first(rivals), rivals, at)

    def _in_turn(
        self, first: list[Session], rivals: list[Session], at: float
    ) -> tuple[Slot, list[Session], float]:
        """One after the other: who comes next, and those who share its slot; longer where it is to be measured."""
        usual, policy = self.config.turn, self.accounts.policy
        turn = min((policy.turn(s, usual, at) for s in first), default=usual)
        to_be_timed = policy.shares and any(self._is_to_be_timed(s) for s in first)
        if to_be_timed or any(
            self._is_to_be_measured(s, at) and not self._is_light(s) for s in first
        ):
            return Slot.ALONE, first, max(turn, self._window)
        if any(self._is_light(s) for s in first):
            return Slot.LIGHT, self._riders(rivals), turn
        return Slot.ALONE, first, turn

    def _riders(self, rivals: list[Session]) -> list[Session]:
        """Those who share a slot: all that are light, of users whose best ranked is. A user's next turn is not used up by riding along."""
        best: dict[User, Session] = {}
        for session in self.accounts.ranked(self._cost):
            if session in rivals:
                best.setdefault(session.user, session)
        waiting = [s for s in self._waiting(rivals) if self._is_light(s)]
        return [s for s in waiting if self._is_light(best.get(s.user, s))]

    def _is_to_be_timed(self, session: Session) -> bool:
        """Whether its boundaries are seen and its pace alone is not: then a slot alone tells."""
        if self.gate.promises:
            return False
        pace = self.pace(session)
        return pace.met > 0 and not pace.solo.known and pace.solo.seconds < 4 * self._window

    def _first(self, rivals: list[Session]) -> list[Session]:
        ranked = self.accounts.ranked(self._cost)
        first = next((s for s in ranked if s in rivals), None)
        if first is None:  # those who were looked at are none of them
            rank = self.accounts.policy.rank
            waiting = self._waiting(rivals)
            first = min(waiting, key=lambda s: rank(s.user, s.rank, 0.0), default=None)
        return [] if first is None else [first]

    def _waiting(self, rivals: list[Session]) -> list[Session]:
        return [s for s in rivals if self.accounts.waits(s)]

    def _fill(self, at: float) -> None:
        self._let_in_beside(at)
        if self._leaving:
            return
        for session in [*self.joining.values()]:
            del self.joining[session.id]
            self._use(session, at)
        free = self.accounts.users and not any(s.counted > 0 for s in self.using.values())
        if free and self._waiting(self._rivals()):
            self._frame(at)  # whoever was chosen has gone meanwhile
        elif not self._begun:
            self._begin(at)

    def _begin(self, at: float) -> None:
        """Those before have left: the slot's time runs from here."""
        self._bill(at)
        self._begun, self._since = True, at
        if self.accounts.policy.rotates:
            self.frame_end = at + self._length
        for session in self.using.values():
            self._timed(session, at)

    def _let_in_beside(self, at: float) -> None:
        """Who does next to nothing on the device waits for nobody."""
        for session in [s for s in self.accounts.sessions() if s.counted == 0]:
            self.accounts.leave(session)
            self._use(session, at)

    # --- one session --------------------------------------------------------------------------------------------------

    def _use(self, session: Session, at: float) -> None:
        self._bill(at)
        super()._use(session, at)
        self.pace(session).rate = None
        if self.slot is Slot.ALONE and session.counted > 0 and len(self.using) > 1:
            # It came while others have their slot: nobody has the device alone any more.
            for one in self.using.values():
                self.pace(one).rate = None
        if self.frame_end is None:
            self._since = at
            for one in self.using.values():
                self._timed(one, at)

    def _timed(self, session: Session, at: float) -> None:
        """Note to which kind of time the next counts of `session` belong."""
        pace = self.pace(session)
        alone = len(self.using) == 1 or (session.counted > 0 and len(self._rivals()) < 2)  # noqa: PLR2004
        if self.slot is Slot.ALONE and sum(s.counted > 0 for s in self.using.values()) > 1:
            pace.rate = None  # somebody who may not be paused now runs on beside it
        elif alone or (self.slot is Slot.ALONE and self.frame_end is not None):
            pace.rate, pace.solo_at = pace.solo, at
        elif self.slot is Slot.ALL and self.frame_end is not None:
            pace.rate = pace.beside
        else:
            pace.rate = None

    def stood(self, seconds: float, at: float) -> None:
        if seconds:
            self._billed = at
            self._since += seconds
        else:
            self._bill(at)
        super().stood(seconds, at)

    def _unuse(self, session: Session, at: float) -> None:
        self._bill(at)
        super()._unuse(session, at)

    def _may_pause(self, session: Session, at: float) -> bool:
        return session.counted > 0 and super()._may_pause(session, at)

    def paused(
        self, session: Session, ticket: int, status: PauseStatus, at: float, drain: float = 0.0
    ) -> None:
        """A `Pause` was carried out; how long it drained tells whether the session still does what was measured."""
        if status is PauseStatus.PAUSED and ticket == session.ticket:
            light = self._was is Slot.LIGHT and self._is_light(session)
            if drains_deep(self.pace(session), drain, light=light):
                self._measure_anew(session)
        super().paused(session, ticket, status, at, drain)
