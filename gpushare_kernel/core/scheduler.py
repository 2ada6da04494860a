"""The scheduler of one device: `handle(event)` returns the instructions that follow. Nothing else changes its state."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import InternalError
from gpushare_kernel.core.policies import policy_named
from gpushare_kernel.core.probe import unannounced
from gpushare_kernel.core.records import Job, Session, Stowed, User
from gpushare_kernel.core.room import Room
from gpushare_kernel.core.sizes import check_weight
from gpushare_kernel.core.values import (
    JobState,
    Presence,
    SessionId,
)


class Scheduler(Room):
    """Lanes, queue, turns and accounts of one device."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._handlers: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.SessionOpened: self._session_opened,
            ev.SessionReady: self._session_ready,
            ev.AllBack: self._all_back,
            ev.Absent: self._absent,
            ev.SessionRestarted: self._session_restarted,
            ev.SessionClosed: self._session_closed,
            ev.JobSubmitted: self._job_submitted,
            ev.JobConfirmed: self._job_confirmed,
            ev.JobCancelled: self._job_cancelled,
            ev.BoundaryReached: self._boundary_reached,
            ev.JobEnded: self._job_ended,
            ev.CellStarted: self._cell_started,
            ev.CellEnded: self._cell_ended,
            ev.Sampled: self._sampled,
            ev.Continued: self._continued,
            ev.Paused: self._paused,
            ev.Promised: self._promised_anew,
            ev.RealtimeGrid: self._on_grid,
            ev.RealtimeReleased: self._is_released,
            ev.RealtimeDone: self._is_done,
            ev.Rung: lambda _: None,
            ev.Exempted: self._exempted,
            ev.Suspended: self._suspended,
            ev.SuspensionEnded: self._suspension_ended,
            ev.Parked: self._parked,
            ev.FoundAside: self._found_aside,
            ev.Restored: self._restored,
            ev.ParkWanted: self._park_wanted,
            ev.RestoreWanted: self._restore_wanted,
            ev.ParkBarred: self._park_barred,
            ev.CapacityChanged: self._capacity_changed,
            ev.DeviceLost: self._device_lost,
            ev.PolicyChanged: self._policy_changed,
            ev.WeightChanged: self._weight_changed,
            ev.UserLimits: self._user_limits,
            ev.Draining: self._drains,
            ev.Released: self._released,
        }

    def handle(self, event: ev.Event) -> list[do.Instruction]:
        """Take in `event` and return what is to be done, in order.

        Raises
        ------
        InternalError
            Where time runs backwards or a state table is violated: a bug of ours.
        UserError
            Where the event asks for something that cannot be (an unknown policy, a weight of zero); nothing has changed then.
        """
        if event.at < self.at:
            msg = f"time fell from {self.at} to {event.at} at {event}"
            raise InternalError(msg)
        self.at = self.turns.accounts.at = event.at
        self._out = []
        self._handlers[type(event)](event)
        self.turns.settle(self.at)
        self._set_wake()
        return self._out

    def watched(self, at: float) -> set[SessionId]:
        """The sessions whose use a `Sampled` at `at` should tell: who runs, who was just paused, whose cell is looked at."""
        return {*self.turns.watch, *self.probe.due(at)}

    # --- sessions ---------------------------------------------------------------------------------------

    def _session_opened(self, event: ev.SessionOpened) -> None:
        weight = check_weight(event.weight)
        user_weight = None if event.user_weight is None else check_weight(event.user_weight)
        user = self.users.get(event.user)
        if user is None:
            user = self.users[event.user] = User(event.user)
        if user_weight is not None:
            user.weight = user_weight
        session = Session(event.session, user, next(self._order), idle_since=event.at)
        session.weight = session.usual_weight = weight
        session.background, session.pausable = event.background, self.config.can_pause
        self.sessions[session.id] = session
        user.sessions.add(session.id)
        session.device_time = event.device_time
        if event.used is not None:  # its first sample charges what it used without a broker
            session.used, session.sampled_at = event.used, event.used_at
            session.wanted = inf  # what it wanted, nobody knows
        if event.parked:
            context = min(self.book.reserve, event.parked)
            session.parked = Stowed(event.persistent, event.parked - context, context)
        elif event.persistent:
            self.book.charge(session, declared=event.persistent)
        if event.orphaned:
            session.become(Presence.ORPHANED)
            until = event.at + self.config.orphan_grace
            if until > self.turns.free_until:
                self.turns.free_until = until
                self._deadlines.add(until, self._admit)

    def _session_ready(self, event: ev.SessionReady) -> None:
        session = self.sessions[event.session]
        session.become(Presence.BARE if event.bare else Presence.ATTACHED)
        if event.context is not None and session.parked is None:
            if event.context and not session.context:
                # What was seen of it while it started is that very memory: it is charged once.
                self.book.charge(session, measured=0)
            self.book.context(session, event.context)
        if event.bare:  # nobody is there to ask for it
            self._ask_back(session, event.at)
        self._falls_idle(session, event.at)  # it came while there is a maintenance

    def _all_back(self, event: ev.AllBack) -> None:
        missing = any(one.presence is Presence.ORPHANED for one in self.sessions.values())
        if not missing and event.at < self.turns.free_until:
            self.turns.free_until = event.at
            self._admit(event.at)

    def _absent(self, event: ev.Absent) -> None:
        if not self.turns.gate.shut:  # else that time is skipped already
            self.turns.stood(0.0, event.since)
            self.turns.stood(event.at - event.since, event.at)

    def _session_restarted(self, event: ev.SessionRestarted) -> None:
        session = self.sessions[event.session]
        self._empty(session)
        session.become(Presence.OPENED)
        session.demand = session.used = None
        session.roams = False
        session.pausable, session.exempt_until = self.config.can_pause, 0.0
        self._admit(event.at)

    def _session_closed(self, event: ev.SessionClosed) -> None:
        session = self.sessions.get(event.session)
        if session is None:
            return
        self._empty(session)
        del self.sessions[session.id]
        session.become(Presence.CLOSED)
        session.user.sessions.discard(session.id)
        self._admit(event.at)

    def _empty(self, session: Session) -> None:
        """End all jobs of `session` and free what it holds."""
        self.probe.forget(session)
        session.cell_open = session.begun = session.park_wanted = False
        # Those that occupy their lane come last: it must not pass to a job that ends here too.
        for job in sorted(session.jobs.values(), key=self._occupies):
            if job.waits:
                self._emit(do.Drop(job.id, session.id))
            self._over(session, job, JobState.LOST)
        self.turns.free(session)
        self.turns.forget(session)
        self._stays(session)
        session.observed, session.word, session.reported, session.unseen = None, None, 0, 0
        self.book.charge(session, declared=0, measured=0)
        self.book.context(session, 0)

    # --- turns ----------------------------------------------------------------------------------------------

    def _paused(self, event: ev.Paused) -> None:
        session = self.sessions.get(event.session)
        if session is None:
            return
        if self.turns.gate.owns(session, event.ticket):
            self.turns.gate.paused(session, event.status, event.drain, event.at)
        elif session.suspended_until is not None:
            self._stood(session, event)
        else:
            self.turns.paused(session, event.ticket, event.status, event.at, event.drain)

    def _exempted(self, event: ev.Exempted) -> None:
        session = self.sessions[event.session]
        self._lift(session, event.at)
        self._hurry(session, event.at)
        self.turns.exempt(session, event.until, event.at)

    # --- use --------------------------------------------------------------------------------------------------

    def _cell_started(self, event: ev.CellStarted) -> None:
        session = self.sessions[event.session]
        if event.usage is not None:
            self._take(session, event.usage, event.at)
        session.cell_open = session.begun = True
        self.book.resting.note(session)
        self.probe.start(session, event.at)
        self._ask_back(session, event.at)

    def _cell_ended(self, event: ev.CellEnded) -> None:
        session = self.sessions[event.session]
        session.cell_open = False
        session.idle_since = event.at
        self.book.resting.note(session)
        self.probe.forget(session)
        job = session.plain_job
        if (
            event.persistent is not None
            and session.parked is None
            and (job is not None or event.persistent < session.measured)
        ):
            self.book.charge(session, measured=self._held(session, event.persistent))
        if job is not None:
            self._over(session, job, JobState.DONE)
        else:
            self._falls_idle(session, event.at)
        self._admit(event.at)

    def _sampled(self, event: ev.Sampled) -> None:
        for name, usage in event.used.items():
            session = self.sessions.get(name)
            if session is None:
                continue
            seen = self._take(session, usage, event.at)
            if seen.cheated:
                self._restop(session)
            if seen.begins:
                self._plain_begins(session, event.at, background=session.cell_since is None)
                self.probe.forget(session)
            elif seen.quiet:
                job = session.plain_job
                if job is not None and job.background:
                    self._over(session, job, JobState.DONE)
        self.turns.looked(event.utilization, event.utilization_since, event.at)
        self._deadlines.meet(event.at)
        self._admit(event.at)

    def _continued(self, event: ev.Continued) -> None:
        session = self.sessions.get(event.session)
        if session is not None:
            self._restop(session)

    def _plain_begins(self, session: Session, at: float, *, background: bool) -> None:
        """A plain cell was seen using the device: it is a job now, with default needs, in a lane of its own."""
        session.roams = session.roams or background
        need = self.book.need(session, size=None, persistent=None, ephemeral=None)
        job = Job(
            unannounced(session.id),
            session.id,
            next(self._order),
            need,
            None,
            at,
            plain=True,
            background=background,
        )
        job.granted, job.device_time_before, job.waits, job.trimmed = (
            at,
            session.device_time,
            False,
            False,
        )
        job.served_before = session.served(at)
        self._enlist(session, job)
        self.book.force(session, job, at)
        job.become(JobState.ADMITTED)
        job.become(JobState.RUNNING)
        self._wants(session, at)

    # --- the device and its administrators -----------------------------------------------------------------------

    def _capacity_changed(self, event: ev.CapacityChanged) -> None:
        self.book.capacity(event.capacity, event.reserve)
        self._admit(event.at)

    def _device_lost(self, event: ev.DeviceLost) -> None:
        self.lost = self.turns.lost = event.lost
        self.why_lost = event.why if event.lost else ""
        if event.lost:
            for session in self.sessions.values():
                self._lift(session, event.at)
        self._admit(event.at)

    def _policy_changed(self, event: ev.PolicyChanged) -> None:
        policy = policy_named(event.policy)
        self.turns.follow(policy, self.users.values(), self.sessions.values())
        for job in self.jobs.values():
            if job.promoted:  # by the patience of the former policy, if by nothing else
                mates = self.sessions[job.session].jobs.values()
                job.promoted = job.hurried or any(mate.lane is not None for mate in mates)
        self.book.queue.follow(policy, event.at)
        for job in self.book.queue:
            self._be_patient(job, event.at)
        self._admit(event.at)
        for lane in self.book.table.lanes.values():
            self._await_lane(lane, event.at)

    def _weight_changed(self, event: ev.WeightChanged) -> None:
        session = self.sessions[event.session]
        session.weight = session.usual_weight = check_weight(event.weight)

    def _released(self, event: ev.Released) -> None:
        session = self.sessions[event.session]
        if session.parked is None and all(job.plain for job in session.jobs.values()):
            self.book.charge(session, declared=0, measured=event.persistent)
            self._admit(event.at)

    # --- deadlines --------------------------------------------------------------------------------------------------

    def _set_wake(self) -> None:
        """Say when we want to hear the next `Sampled`: a deadline, the frame's end, a look at those who run freely."""
        turns = self.turns
        goes_on = (
            not turns.gate.shut
        )  # else no turn ends: when they go on, their ends are told anew
        rotates = goes_on and turns.accounts.policy.rotates and turns.crowded(self.at)
        wake = self._deadlines.changed(
            self.at,
            frame=turns.frame_end if rotates else None,
            look=_earlier(self.probe.next_look(), turns.look_by(self.at) if goes_on else None),
            wanting=len(turns.wanting),
        )
        if wake is not None:
            self._emit(do.Wake(*wake))


def _earlier(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
