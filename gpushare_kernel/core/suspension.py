"""A session kept paused whatever the turns: it holds more than it was granted while others wait, or its owner wants that (I3: until when).

A suspended session wants no turns, keeps its lane and its memory, and is paused from outside. It runs again when
its time is over, when the broker says so, when a signal is on its way to it, when it has no jobs left, and where
nobody can pause it.
"""

from __future__ import annotations

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.drains import busy_again
from gpushare_kernel.core.limits import Limits
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.values import JobState, PauseStatus

_STANDS = {PauseStatus.PAUSED, PauseStatus.STOPPED, PauseStatus.NOTHING, PauseStatus.GONE}


class Suspensions(Limits):
    """Who is suspended, and for how long."""

    def _suspended(self, event: ev.Suspended) -> None:
        session = self.sessions[event.session]
        free_to_run = self.lost or event.at < max(session.exempt_until, self.turns.free_until)
        if session.suspended_until is not None or not session.jobs or free_to_run:
            return
        if not session.pausable or session.parked is not None or session.moving is not None:
            return
        session.suspended_until, session.suspended_for = event.until, event.reason
        self._deadlines.add(event.until, lambda now: self._lift_due(session, now))
        self.turns.unwant(session, event.at)
        session.stopped_at = event.at
        self._stop(session)
        self.turns.noted(session, event.at)

    def _suspension_ended(self, event: ev.SuspensionEnded) -> None:
        session = self.sessions.get(event.session)
        if session is not None and session.suspended_for is event.reason:
            self._lift(session, event.at)

    def _stop(self, session: Session) -> None:
        """Pause it, for the first time or again."""
        session.stopped, session.pausing = session.suspended_for, True
        session.ticket += 1
        limit = max(session.pause_limit, self.config.pause_limit)
        self._emit(do.Pause(session.id, session.suspended_for, limit, session.ticket))

    def _stood(self, session: Session, event: ev.Paused) -> None:
        """The pause of a suspended session was carried out, or could not be."""
        if not session.pausing or event.ticket != session.ticket:
            return
        session.pausing = False
        if event.status in _STANDS:
            self.turns.watch.left(session)  # what it used until now is not on its accounts yet
            for job in session.jobs.values():
                if not job.waits:
                    job.become(JobState.PAUSED)
        elif event.status is PauseStatus.BUSY:
            pause = busy_again(session, self.config.pause_limit, event.at)
            if pause is None:
                self._lift(session, event.at)
            else:
                self._deadlines.add(event.at + pause, lambda _: self._stop_again(session))
        else:
            session.pausable = False
            self._lift(session, event.at)

    def _stop_again(self, session: Session) -> None:
        if session.suspended_until is not None and not session.pausing:
            self._stop(session)

    def _restop(self, session: Session) -> None:
        """It runs although it is paused: somebody else let it."""
        if session.suspended_until is None:
            self.turns.restop(session)
        elif not session.pausing:
            self._stop(session)

    def _lift_due(self, session: Session, at: float) -> None:
        # A later suspension of the same session has a deadline of its own.
        if session.suspended_until is not None and at >= session.suspended_until:
            self._lift(session, at)

    def _lift(self, session: Session, at: float) -> None:
        """Let it run again, as the turns say."""
        if session.suspended_until is None:
            return
        session.suspended_until = None
        paused = at - session.stopped_at
        self.turns.free(session)
        self.turns.noted(session, at)
        if paused >= self.config.tell_paused and session.jobs:
            session.shared_told = True  # the pause is in the speed too
            self._emit(do.Slow(session.id, 0, 0.0, paused, session.suspended_for))
        self._wants(session, at)
