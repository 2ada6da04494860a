"""Who stands still for real-time jobs: everybody else while a window is open, and who would take too long to stop (I7).

Turns go on as if nothing were: a session that is held keeps its turn, its lane and its memory, and its slot is longer by
the time it stood still. What is recorded of drains decides when windows open, and who may run beside promises at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from gpushare_kernel.core import drains
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.deadlines import backoff
from gpushare_kernel.core.instructions import (
    Alarm,
    Barred,
    Beside,
    Instruction,
    Overran,
    Pause,
    Resume,
)
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.values import PauseReason, PauseStatus, SessionId
from gpushare_kernel.core.windows import Windows

_UNKNOWN_LEAD = 0.002
"""Seconds before a release at which those are paused of whom no drain was seen yet."""


FIRST_BAR, LONGEST_BAR = 30.0, 600.0
"""Seconds after which who takes too long to stop has a trial again: at first, and at most; twice as long each time."""


class Gate:
    """Holds sessions from outside, apart from their turns. Instructions go to `emit`."""

    def __init__(self, config: Config, emit: Callable[[Instruction], None]) -> None:
        self.windows = Windows()
        #: Who is held, or is being held.
        self.held: dict[SessionId, Session] = {}
        self.shut = False
        #: Who came to its turn so shortly before a release that it would not stop in time: it begins after that.
        self._early: set[SessionId] = set()
        self._tickets: dict[SessionId, int] = {}
        #: Whose work takes too long to stop: when it may be tried anew, and how often it was.
        self._barred: dict[SessionId, float] = {}
        self._tries: Counter[SessionId] = Counter()
        #: Who runs in windows all the same, for nobody can pause it: what was seen of that, and of whom it was told.
        self._seen: dict[SessionId, PauseStatus] = {}
        self._told: set[SessionId] = set()
        self._alarm: float | None = None
        self._config, self._emit = config, emit

    @property
    def promises(self) -> bool:
        """Whether deadlines are promised on this device now."""
        return bool(self.windows.standing)

    def settle(self, using: Iterable[Session], at: float, *, free: bool) -> None:
        """Hold and let go as the windows say; `free`: nobody is to be paused now."""
        if not self.promises and not self.held:
            self._ring(None, at)
            self.shut = False
            return
        using = [*using]
        users = [session for session in using if not session.realtime]
        self.windows.drain = max((drains.bound(s) or 0.0 for s in users), default=0.0)
        if any(name in self._tickets for name in self.held):
            self.windows.draining(at)
        aside = users if self.windows.alone else using
        for one in self.windows.tick(at, self._lead(aside)):
            self._emit(Overran(one.job, one.session))
        self.shut = self.windows.open and not free
        if self.shut or free or not self.promises:
            self._early.clear()
        for session in users:
            if self._is_barred(session):
                self._bar(session, at)
        for session in using:
            self._tell(session)
            if not free and self._stands(session, at):
                self._hold(session, at)
        for session in [*self.held.values()]:
            if free or not (session.id in self._early or self._stands(session, at)):
                self._let_go(session, at)
        if not self.promises:
            self._barred.clear()
            self._tries.clear()
            self._told.clear()
        # What is due already is due at once; a trial that does not fit now waits for the next event.
        due = [one for one in self._barred.values() if one > at]
        window = self.windows.next_alarm(self._lead(aside), at)
        self._ring(min(due if window is None else [window, *due], default=None), at)

    def bars(self, session: Session) -> bool:
        """Whether `session` stands still for as long as there are real-time jobs."""
        return session.id in self.held and session.id in self._barred

    def owns(self, session: Session, ticket: int) -> bool:
        """Whether a pause with this ticket was ours."""
        return self._tickets.get(session.id) == ticket

    def paused(self, session: Session, status: PauseStatus, drain: float, at: float) -> None:
        """A pause of ours was carried out, or could not be."""
        del self._tickets[session.id]
        if session.id in self.held:
            self.windows.draining(at)
        if status is PauseStatus.PAUSED:
            # Held at its very first use it had hardly begun: that drain says nothing of later ones.
            if not self._is_barred(session) or session.drains:
                drains.note(session, drain)
            session.pause_limit = 0.0
        elif status is PauseStatus.BUSY:
            # Longer than the limit: that much is known of it, and it is tried again as long as it is to stand.
            limit = max(session.pause_limit, self._config.pause_limit)
            drains.note(session, limit)
            session.pause_limit = min(2 * limit, drains.LONGEST_DRAIN)
            if session.id in self.held:
                self._pause(session)
        elif status not in {PauseStatus.STOPPED, PauseStatus.NOTHING, PauseStatus.GONE}:
            self.held.pop(session.id, None)  # nobody can pause it: it runs beside them
            session.pausable = False
            self._seen[session.id] = status

    def keeps(self, session: Session) -> bool:
        """Whether `session`, whom the turns let run, is to stand still all the same; it is held from now on."""
        if session.realtime or not (self.shut or session.id in self._early):
            return False
        self.held[session.id] = session
        return True

    def comes(self, session: Session, at: float) -> None:
        """`session` comes to its turn: where it would not stop in time for the next release it begins after that."""
        if session.realtime:
            return
        release = self.windows.next_release()
        if release is not None and at >= release - self._lead([session]):
            self._early.add(session.id)

    def came(self, session: Session, at: float) -> None:
        """`session` has its turn now."""
        if session.id in self._early:
            self._hold(session, at)

    def forget(self, session: Session) -> None:
        """`session` is gone, or its kernel starts anew."""
        self._tickets.pop(session.id, None)
        self._barred.pop(session.id, None)
        self._tries.pop(session.id, None)
        self._seen.pop(session.id, None)
        self._told.discard(session.id)
        self._early.discard(session.id)
        session.drains.clear()
        if self.held.pop(session.id, None) is not None:
            self._emit(Resume(session.id))

    # --- one session ---------------------------------------------------------------------------------

    def _stands(self, session: Session, at: float) -> bool:
        """Whether `session` is to stand still now: all but real-time ones in a window, and of those all that do not come first."""
        if session.realtime:
            return self.windows.stands(session.id, at)
        return self.shut or self._is_barred(session)

    def _is_barred(self, session: Session) -> bool:
        """Whether its work takes too long to stop; where nothing was recorded yet, the limit of a trial counts (I7)."""
        if not self.promises:
            return False
        drain = drains.bound(session)
        return (self._config.trial_drain if drain is None else drain) > self.windows.absorbs

    def _tell(self, session: Session) -> None:
        """Where nobody can pause `session`, those whose deadlines are promised beside it are told: once for as long as that lasts."""
        if session.pausable:
            self._told.discard(session.id)
            self._seen.pop(session.id, None)
        elif self._seen.get(session.id) is PauseStatus.BROKEN:
            return  # its context is lost: nothing of it runs
        elif self.promises and session.id not in self._told:
            self._told.add(session.id)
            for other in {one.session: None for one in self.windows.standing.values()}:
                if other != session.id:
                    self._emit(Beside(other, self._seen.get(session.id)))

    def _hold(self, session: Session, at: float) -> None:
        if session.id in self.held or session.stopped is not None or not session.pausable:
            return
        self.held[session.id] = session
        session.stopped_at = at
        self._pause(session)

    def _bar(self, session: Session, at: float) -> None:
        """`session` stands until the promises are gone; what was recorded of it is doubted after a while, rarer and rarer."""
        until = self._barred.get(session.id)
        if until is None:
            tries = self._tries[session.id]
            self._barred[session.id] = at + backoff(FIRST_BAR, LONGEST_BAR, tries)
            if not tries:
                self._emit(Barred(session.id, drains.bound(session), self.windows.absorbs))
        elif at >= until and session.drains and self._config.trial_drain <= self.windows.absorbs:
            del self._barred[session.id]
            self._tries[session.id] += 1
            session.drains.clear()

    def _pause(self, session: Session) -> None:
        session.ticket += 1
        self._tickets[session.id] = session.ticket
        limit = max(session.pause_limit, self._config.pause_limit)
        self._emit(Pause(session.id, PauseReason.REALTIME, limit, session.ticket))

    def _let_go(self, session: Session, at: float) -> None:
        del self.held[session.id]
        if session.id in self._tickets:
            # That long at least: it has not stopped yet.
            drains.note(session, at - session.stopped_at)
        if session.stopped is None:  # else the turns, or its owner, stopped it meanwhile
            self._emit(Resume(session.id))

    def _lead(self, users: Iterable[Session]) -> float:
        """How long before a release the others are to be paused; half of what the jobs leave of their periods at most."""
        known = [drains.usual(s) for s in users if s.pausable and s.id not in self._barred]
        if not known:
            return 0.0
        longest = max(_UNKNOWN_LEAD if drain is None else drain for drain in known)
        return min(longest + self._config.timer_slack, max(0.0, self.windows.left) / 2)

    def _ring(self, at: float | None, now: float) -> None:
        if self._alarm is not None and now >= self._alarm:
            self._alarm = None  # it has rung
        if at != self._alarm:
            self._alarm = at
            self._emit(Alarm(at))
