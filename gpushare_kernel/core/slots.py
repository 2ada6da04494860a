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

from gpushare_kernel.core.pace import ENOUGH_TIME, Pace
from gpushare_kernel.core.probe import Seen
from gpushare_kernel.core.records import Session, User
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.turns import Turns
from gpushare_kernel.core.values import PauseStatus, SessionId, Usage

SATURATES, LIGHT = 0.85, 0.75
"""Part of the time that the device is busy with one session alone: from here on it saturates, below here it does not."""
IDLE = 0.05
"""Below this a session does next to nothing on the device: it is in nobody's way and stands beside the turns."""
GAIN, LEAST_GAIN, NO_GAIN = 1.08, 1.03, 0.98
"""Progress of all together when they run at once, over one after the other: from here on it is worth it, until here;
and below here it is tried again only rarely."""
DEEP, DEEP_TIMES = 0.0025, 3
"""A session that does not saturate drains within this (seconds); where it does not, so often, it is measured anew."""
IDLE_PAUSE = 60.0
"""Seconds at most after which those who are taken for idle are measured again, where the device is busier than expected."""
COMPARED, MISSING = 1.0, 0.12
"""Over so many seconds a device less busy by that part than expected says that somebody's work has changed."""
MOST = 0.97
"""How busy a saturated device says it is, gaps between kernels included."""
SAME_WORK = 2.0
"""Work that begins so soon (seconds) after the session's last is taken for as demanding as that."""
REMEASURE = 15.0
"""Seconds after which a session's pace alone, and what running at once gains, are measured anew."""
AGAIN, RARELY = 2.0, 60.0
"""Seconds after which all may run at once anew, where it was not seen yet what that gains; and where it gains nothing."""
SATURATING_BESIDE, LIGHT_BESIDE, MOST_BESIDE = 0.54, 1.7, 0.75
"""What those whose progress nobody sees are taken to make beside all others, in parts of an equal share (and at most):
the least that was measured in five mixes (docs/turns.md)."""
LAG = 0.5
"""Turns by which a session may be behind its share before it gets a slot alone."""
WINDOWS = 2.8
"""How many windows of utilization a slot lasts at most in which somebody is to be measured: one lies within it."""
LOOK = 0.04
"""How often such a slot is looked at (seconds): it ends when the measurement is there."""
NEAR = 1.5
"""Whoever has more than so many times its share beside all others need not be measured alone again."""
DRAINS = 5
"""How many times the longest drain of the others a slot for catching up lasts at least."""
LONGEST = 3
"""Turns that a slot for catching up may last at most."""


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
        #: Busy seconds of the device that those who had it would make, and that were seen, over how long each.
        self._expected = self._expected_for = 0.0
        self._seen = self._seen_for = self._looked = 0.0
        self._idle_again, self._idle_pause = 0.0, COMPARED
        self._billed = 0.0
        self._lagged = 0.0
        self._paces: dict[SessionId, Pace] = {}
        #: Sessions whose demand is to be measured although one is known: their work has changed.
        self._stale: set[SessionId] = set()
        #: The set of sessions that were last tried all at once, when, and whether that gained.
        self._tried: frozenset[SessionId] = frozenset()
        self._tried_at = 0.0
        self._at_once = self._hopeless = False

    # --- what is known of each ------------------------------------------------------------------------

    def pace(self, session: Session) -> Pace:
        """Return what is known of how fast `session` goes on."""
        return self._paces.setdefault(session.id, Pace())

    def forget(self, session: Session) -> None:
        """`session` is gone, or starts anew."""
        self._paces.pop(session.id, None)
        self._stale.discard(session.id)

    def want(self, session: Session, at: float) -> None:
        """`session` has work; what was known of its former pace may not be true of it."""
        self._bill(at)
        if session.id not in self.wanting:
            self.pace(session).forget()
            if at - self.pace(session).worked_at > SAME_WORK:
                session.demand = None
            self._idle_pause, self._idle_again = COMPARED, at
        super().want(session, at)

    def unwant(self, session: Session, at: float) -> None:
        """`session` has no work left."""
        self._bill(at)
        if session.id in self.wanting:
            self.pace(session).worked_at = at
            session.pausable = self.config.can_pause  # a profiler is gone with its cell
        super().unwant(session, at)

    def all_fit(self, at: float) -> bool:  # noqa: ARG002
        """Whether nobody saturates the device, as far as is known."""
        rivals = self._rivals()
        if len(rivals) < 2:  # noqa: PLR2004
            return True
        if any(s.background for s in rivals) and not all(s.background for s in rivals):
            return False  # the background yields
        return all(self._is_light(s) for s in rivals)

    @property
    def turn(self) -> float:
        """How long this slot lasts."""
        return self._length

    def _rivals(self) -> list[Session]:
        """Those who want the device and are in each other's way."""
        return [s for s in self.wanting.values() if s.counted > 0]

    def _is_light(self, session: Session) -> bool:
        return (
            session.demand is not None
            and session.demand < SATURATES
            and session.id not in self._stale
        )

    def _unmeasured(self, session: Session) -> bool:
        return session.demand is None or session.id in self._stale

    def _is_to_be_measured(self, session: Session, at: float) -> bool:
        return self._unmeasured(session) or at - self.pace(session).measured_at > REMEASURE

    def _count(self, session: Session) -> None:
        idle = session.demand is not None and session.demand < IDLE
        stays = not session.pausable and not self._cooperates(session)
        counted = 0.0 if idle or stays else self.compute
        self.load += counted - session.counted
        session.counted = counted

    def _has_it_alone(self, session: Session) -> bool:
        return self.slot is Slot.ALONE and session.phase is Phase.ON

    # --- what was used --------------------------------------------------------------------------------------

    def account(self, session: Session, usage: Usage, seen: Seen, at: float) -> None:
        """A sample: bring the clocks up to now, and see how far the session has come."""
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
            self._tried_at = -REMEASURE
        if seen.steps and self._steers() and pace.solo.known:
            pace.lag -= seen.steps / pace.solo.value

    def looked(self, utilization: float | None, since: float, at: float) -> None:
        """How busy the device was tells the demand of whoever had it alone for that long."""
        self._fall_behind(at)
        if self.slot is Slot.ALONE and not self._leaving:
            self._end_once_timed(at)
        if utilization is None:
            return
        self._suspect(utilization, at)
        if self._leaving or since < self._since:
            return
        running = [s for s in self.using.values() if s.counted > 0]
        if len(self.using) == 1 or len(running) == 1:
            self._measured((running or [*self.using.values()])[0], utilization)
            self._end_early(at)
        elif utilization < LIGHT and len(running) == len(self._rivals()):
            # All run, and the device still has idle time: none of them saturates it.
            for session in running:
                if self._unmeasured(session):
                    self._measured(session, utilization)
        elif self.slot is Slot.ALL and not self._at_once:
            self._end_early(at)

    def _end_once_timed(self, at: float) -> None:
        """Whose boundaries are seen need not wait for the device's word of how busy it was."""
        alone = [s for s in self.using.values() if s.counted > 0]
        if len(alone) == 1 and self.pace(alone[0]).seen:
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
        """The device is less busy than those who had it would make it: one of them does other work now."""
        passed, self._looked = at - self._looked, at
        self._seen += passed * utilization
        self._seen_for += passed
        if self._seen_for < COMPARED or not self._expected_for:
            return
        missing = self._expected / self._expected_for - self._seen / self._seen_for
        if missing > MISSING:
            self._stale.update(s.id for s in self._rivals())
        elif missing < -MISSING and at >= self._idle_again:
            # Somebody who is taken for idle is not. Where it is nobody of ours, that is not looked at for ever longer.
            idle = [s for s in self.wanting.values() if s.counted == 0 and s.pausable]
            for session in idle:
                self._measure_anew(session)
            self._idle_pause = min(2 * self._idle_pause, IDLE_PAUSE)
            self._idle_again = at + (self._idle_pause if idle else 0.0)
        self._compare_anew()

    def _compare_anew(self) -> None:
        self._expected = self._expected_for = self._seen = self._seen_for = 0.0

    @property
    def _window(self) -> float:
        return WINDOWS * self.config.window

    def _measured(self, session: Session, utilization: float) -> None:
        before = session.demand
        self._stale.discard(session.id)
        self.pace(session).measured_at = self._billed
        # Between the two bounds it stays what it was.
        saturated = before is not None and before >= SATURATES
        if LIGHT <= utilization < SATURATES and before is not None:
            utilization = SATURATES if saturated else LIGHT
        if before is None or abs(before - utilization) > MISSING / 2:
            self._compare_anew()  # what was expected so far was expected of something else
        session.demand = utilization
        if session.id in self.wanting:
            self._recount(session)

    def _measure_anew(self, session: Session) -> None:
        self._stale.add(session.id)
        if session.demand is not None and session.demand < IDLE:
            session.demand = None
            self._recount(session)

    def _bill(self, at: float) -> None:
        """Charge the time since the last bill to those who had the device, by their shares."""
        passed, self._billed = at - self._billed, at
        if passed <= 0 or not self.using:
            return
        charged = self.frame_end is not None and not self._at_once
        demands = [s.demand for s in self.using.values() if s.demand is not None]
        if len(demands) == len(self.using):
            self._expected += passed * min(MOST, sum(demands))
            self._expected_for += passed
        # Who cannot be paused pays like the others; who does next to nothing pays only where nobody else is there.
        payers = [s for s in self.using.values() if s.counted > 0 or not s.pausable]
        payers = payers or [*self.using.values()]
        for session, share in _shares(payers):
            used = passed * share * (1.0 if session.demand is None else session.demand)
            session.device_time += used
            session.user.device_time += used
            if charged:
                self.accounts.charge(session, passed * share)
            self.pace(session).seconds += passed

    # --- all at once ---------------------------------------------------------------------------------------------

    def _steers(self) -> bool:
        """Whether all run at once and whoever falls behind gets a slot alone."""
        return self._at_once and self.frame_end is not None

    def _fall_behind(self, at: float) -> None:
        """Everybody is owed its share of the time that passed."""
        passed, self._lagged = at - self._lagged, at
        if not self._steers():
            return
        rivals = self._rivals()
        shares = _shares(rivals)
        for session, share in shares:
            pace = self.pace(session)
            pace.lag += passed * share
            if not pace.met:
                pace.lag -= passed * self._assumed(session, len(rivals))
            # What one was ahead is not held against it: it took nobody's share.
            pace.lag = min(max(pace.lag, -self.config.turn), 10 * self.config.turn)
        # Where all are behind, the device makes less than was thought: that is nobody's to catch up.
        common = min(self.pace(session).lag / share for session, share in shares)
        if common > 0:
            for session, share in shares:
                self.pace(session).lag -= common * share

    def _assumed(self, session: Session, rivals: int) -> float:
        """What a session whose progress nobody sees is taken to make now, over its pace alone."""
        if session.id not in self.using:
            return 0.0
        if self.slot is Slot.ALONE and self._begun:
            return 1.0
        return self._beside(session, rivals) or 0.0

    def _beside(self, session: Session, rivals: int) -> float | None:
        """What `session` makes beside all others over its pace alone: seen, else assumed; None where not known yet."""
        pace = self.pace(session)
        if pace.met:
            return pace.ratio
        if self._unmeasured(session):
            return None
        light = self._is_light(session)
        return min(MOST_BESIDE, (LIGHT_BESIDE if light else SATURATING_BESIDE) / rivals)

    def _judge(self, rivals: list[Session]) -> None:
        """Decide whether running at once is worth it, where all is known that it takes."""
        ratios = [self._beside(s, len(rivals)) for s in rivals]
        gain = sum(ratio for ratio in ratios if ratio is not None)
        known = all(ratio is not None for ratio in ratios)
        before = self._at_once
        self._at_once = known and gain >= (LEAST_GAIN if before else GAIN)
        self._hopeless = known and gain < NO_GAIN
        if self._at_once and not before:
            for session in rivals:
                self.pace(session).lag = 0.0

    # --- slots ------------------------------------------------------------------------------------------------------

    def _choose(self, held: list[Session], at: float) -> dict[SessionId, Session]:
        self._bill(at)
        rivals = self._rivals()
        foreground = [s for s in rivals if not s.background]
        rivals = foreground or rivals
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
        names = frozenset(s.id for s in rivals)
        if self._worth_a_trial(names, rivals, at):
            self._tried, self._tried_at = names, at
            for session in rivals:
                self.pace(session).beside.forget()
            return Slot.ALL, self._waiting(rivals), measuring
        self._judge(rivals)
        if self._at_once:
            return self._all_or_last(rivals, at)
        first = self._first(rivals)
        if first and self._is_light(first[0]) and not self._is_to_be_timed(first[0]):
            light = [s for s in self._waiting(rivals) if self._is_light(s)]
            return Slot.LIGHT, light, turn
        if first and (self._is_to_be_measured(first[0], at) or self._is_to_be_timed(first[0])):
            return Slot.ALONE, first, measuring
        return Slot.ALONE, first, turn

    def _worth_a_trial(self, names: frozenset[SessionId], rivals: list[Session], at: float) -> bool:
        """Whether to let all run for a moment: somebody is new, and it may be that nobody saturates; or to see what it gains."""
        some = any(self.pace(s).met for s in rivals)
        seen = some and all(self.pace(s).seen or not self.pace(s).met for s in rivals)
        if names != self._tried:
            saturated = any((s.demand or 0.0) >= SATURATES for s in rivals)
            return seen or (not saturated and any(s.demand is None for s in rivals))
        untold = any(self._beside(s, len(rivals)) is None for s in rivals)
        pause = AGAIN if untold else RARELY if self._hopeless else REMEASURE
        return seen and not self._at_once and at - self._tried_at >= pause

    def _all_or_last(self, rivals: list[Session], at: float) -> tuple[Slot, list[Session], float]:
        """All run at once; whoever is behind its share, or was not seen alone for long, gets a slot alone."""
        turn = self.config.turn
        shares = dict(_shares(rivals))
        # Who makes more than its share beside the others catches up there.
        needy = [s for s in rivals if (self._beside(s, len(rivals)) or 0.0) < shares[s]]
        last = max(needy or rivals, key=lambda s: (self.pace(s).lag, s.order))
        # In a slot alone it gains on its share by what the others lose. Where their work is long in draining,
        # a longer one is due later: nobody has the device alone meanwhile.
        gains = max(0.1, 1.0 - shares[last])
        drain = max((self.pace(s).drain for s in rivals if s is not last), default=0.0)
        shortest = min(max(LAG * turn / gains, DRAINS * drain), LONGEST * turn)
        lag = self.pace(last).lag
        if lag >= shortest * gains:
            return Slot.ALONE, [last], min(lag / gains, LONGEST * turn)
        for session in rivals:
            pace = self.pace(session)
            near = (pace.ratio or 0.0) < NEAR * shares[session]
            if pace.met and near and at - pace.solo_at > REMEASURE:
                return Slot.ALONE, [session], 2 * turn
            if not pace.met and at - pace.measured_at > REMEASURE:
                return Slot.ALONE, [session], max(turn, self._window)
        return Slot.ALL, self._waiting(rivals), turn / 2

    def _is_to_be_timed(self, session: Session) -> bool:
        """Whether its boundaries are seen and its pace alone is not: then a slot alone tells."""
        pace = self.pace(session)
        return pace.met > 0 and not pace.solo.known and pace.solo.seconds < 4 * self._window

    def _first(self, rivals: list[Session]) -> list[Session]:
        ranked = self.accounts.ranked(self._cost)
        first = next((s for s in ranked if s in rivals), None)
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
        if not self._begun:
            self._begin(at)
        elif self.accounts.users and not any(s.counted > 0 for s in self.using.values()):
            self._frame(at)

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
        if self.frame_end is None:
            self._since = at
            for one in self.using.values():
                self._timed(one, at)

    def _timed(self, session: Session, at: float) -> None:
        """Note to which kind of time the next counts of `session` belong."""
        pace = self.pace(session)
        alone = len(self._rivals()) < 2  # noqa: PLR2004
        if alone or (self.slot is Slot.ALONE and self.frame_end is not None):
            pace.rate, pace.solo_at = pace.solo, at
        elif self.slot is Slot.ALL and self.frame_end is not None:
            pace.rate = pace.beside
        else:
            pace.rate = None

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
            pace = self.pace(session)
            pace.drain = drain if not pace.drain else (pace.drain + drain) / 2
            deep = drain > DEEP and self._was is Slot.LIGHT
            pace.deep = pace.deep + 1 if deep and self._is_light(session) else 0
            if pace.deep >= DEEP_TIMES:
                pace.deep = 0
                self._measure_anew(session)
        super().paused(session, ticket, status, at)


def _shares(sessions: list[Session]) -> list[tuple[Session, float]]:
    """What each of `sessions` is entitled to among them: by user, then by session, weighted. Adds up to 1."""
    own: dict[User, float] = {}
    for session in sessions:
        own[session.user] = own.get(session.user, 0.0) + session.weight
    users = sum(user.weight for user in own)
    return [(s, s.user.weight / users * s.weight / own[s.user]) for s in sessions]
