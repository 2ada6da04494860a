"""Who is parked comes back: its job waits for memory as any other, and what is parked is restored before it goes on.

A plain cell asks for it as it starts, by a job of the queue that ends with the restore, or with the cell.
"""

from __future__ import annotations

from typing import Any

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.deadlines import backoff
from gpushare_kernel.core.realtime import Realtime
from gpushare_kernel.core.records import Job, Moving, Session
from gpushare_kernel.core.speeds import Speeds
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobId, JobState, MoveStatus, Need, PauseReason, SessionId

AGAIN, LONGEST_AGAIN = 0.25, 4.0
"""Seconds after which a restore is tried again for which there was no room in fact: at first, and at most."""


def request_of(session: SessionId) -> JobId:
    """Return what the job is called by which a plain cell of `session` asks for what is parked."""
    return JobId(f"{session}/restore")


class Returning(Realtime):
    """Who comes back, and when."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.speeds = Speeds(self.config)

    def _again(self, job: Job, session: Session, at: float) -> None:
        """`job` stands empty and waits for memory anew; its lane passes on."""
        lane = self._lane(job)
        if lane is not None and lane.occupant is job:
            lane.give_up(session.user, at)
        lane = self.book.leave(job)
        job.become(JobState.QUEUED)
        self._let_in.discard(job.id)
        self._enqueue(job, session, at)
        self._be_patient(job, at)
        if lane is not None and lane.occupant is None:
            self._pass(lane, at)
        self._wants(session, at)
        self._emit(do.Queue(job.id, session.id))

    def _ask_back(self, session: Session, at: float) -> None:
        """A cell of `session` may need what is parked: that waits in the queue, and the cell waits for nothing."""
        if session.parked is None or session.moving is not None or session.jobs:
            return
        kept = session.parked.persistent
        whole, cap = self.book.whole, session.user.cap
        most = whole if cap is None else min(whole, cap)
        room = max(0, most - session.parked.size)
        need = Need(kept, min(self.config.plain_ephemeral, room))
        job = Job(request_of(session.id), session.id, next(self._order), need, None, at, plain=True)
        job.part, job.in_driver = self.book.part(session, need), True
        self._enlist(session, job)
        job.become(JobState.QUEUED)
        self._enqueue(job, session, at)
        self._admit(at)
        if job.state is JobState.QUEUED:
            self._be_patient(job, at)
            self._emit(do.Queue(job.id, session.id))

    def _hurry(self, session: Session, at: float) -> None:
        """A signal is on its way to it: a call that waits for its memory sees that only afterwards."""
        waiting = [job for job in session.jobs.values() if job.in_driver]
        for job in waiting:
            job.hurried = True
        self._let_back(at)
        for job in waiting:
            self.book.queue.promote(job, at)
        if waiting:
            self._admit(at)

    def _entered(self, session: Session, at: float) -> None:
        """Its memory is put back before its job goes on; on paper it is there already (I5)."""
        if session.parked is None or session.moving is not None:
            return
        session.moving = Moving.BACK
        request = session.jobs.get(request_of(session.id))
        if request is not None and request.lane is None:
            self._over(session, request, JobState.DONE)
        self._restore(session, at)

    def _restore(self, session: Session, at: float) -> None:
        if session.parked is not None:
            session.move += 1
            self.turns.noted(session, at)
            self._emit(do.Restore(session.id, session.move, session.parked.size))

    def _restored(self, event: ev.Restored) -> None:
        session = self.sessions.get(event.session)
        if session is None or session.parked is None or session.move != event.ticket:
            return
        found = session.moving is None
        if found and event.status is not MoveStatus.DONE:
            return
        if event.status in {MoveStatus.NOT_NOW, MoveStatus.UNABLE}:
            self._later(session, event.at)
            return
        session.moving, session.spared = None, 0
        stowed, session.parked = session.parked, None
        self.book.changes += 1
        self.turns.noted(session, event.at)
        if event.status is MoveStatus.LOST:
            self._is_lost(session, event.why)
        elif event.status is MoveStatus.DONE:
            self.speeds.came(stowed.size, event.took)
            self._emit(do.Returned(session.id))
        # What was measured before is not so any more.
        session.reported_at = session.idle_since = event.at
        self.book.resting.note(session)
        for job in session.jobs.values():
            job.resident_since = event.at
        if found:  # on the device, it runs; it is charged although nobody let it in
            self.book.charge(session, declared=stowed.declared, measured=stowed.measured)
            self.book.context(session, stowed.context)
        else:
            self._stands(session, event.at)
        request = session.jobs.get(request_of(session.id))
        if request is not None:
            self._over(session, request, JobState.DONE)
            if session.cell_open:
                self.probe.start(session, event.at)
        self._goes_on(session, event.at)
        self._admit(event.at)

    def _is_lost(self, session: Session, why: str) -> None:
        """The driver answers it no more: it holds nothing, and never can again."""
        session.barred = why
        self.book.charge(session, declared=0, measured=0)
        self._emit(do.Returned(session.id, why))

    def _stands(self, session: Session, at: float) -> None:
        """It stands still after a move, as after a pause."""
        session.stopped, session.stopped_at = PauseReason.PARKED, at

    def _goes_on(self, session: Session, at: float) -> None:
        """It runs with its next turn, or at once where it wants none."""
        self._wants(session, at)
        if session.phase is Phase.OFF or self.lost or at < session.exempt_until:
            self.turns.free(session)

    def _later(self, session: Session, at: float) -> None:
        """There was no room in fact: try again before long, or give its room up where nobody needs it any more.

        Where there is not enough on paper either (others were let in since) its jobs wait for memory anew: whoever idles is parked for
        them, which nobody is for a restore.
        """
        ticket = session.move

        def again(now: float) -> None:
            if session.moving is not Moving.BACK or session.move != ticket:
                return
            if session.jobs and not self.book.too_little_to_spare(session):
                self._restore(session, now)
                return
            session.moving = None
            self.book.charge(session, declared=0, measured=0)
            self.book.context(session, 0)
            for job in [*session.jobs.values()]:
                if job.lane is not None:
                    self._again(job, session, now)
            self._admit(now)

        self._deadlines.add(at + backoff(AGAIN, LONGEST_AGAIN, session.spared), again)
        session.spared += 1
