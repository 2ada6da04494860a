"""Memory of idle sessions comes back to who waits for it, and a better ranked job displaces a worse one (docs/parking-policy.md).

A session is parked under pressure only (somebody waits, or more is held than there is), or because its owner asks for it.
Idle ones go first, those that stood idle longest for what moving them costs; then, where the policy displaces, who ranks
behind whoever waits. Displacing costs a park and a restore; it has to gain more. Nobody who has a proven deadline is
parked, and nobody is before it has had its memory for a while.

Who is parked comes back when its job has come through the memory queue. A plain cell asks for it as it starts, by a job
of the queue that ends with the restore, or with the cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.deadlines import backoff
from gpushare_kernel.core.records import Job, Moving, Session, Stowed
from gpushare_kernel.core.returning import Returning, request_of
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import (
    JobState,
    MoveStatus,
    Need,
    Presence,
    SessionId,
)

MOST = 4
"""Lanes that merge into another, or sessions that are displaced, for one job that waits."""
MOST_IDLE = 16
"""Idle sessions that are parked at a time."""
MOST_SEEN = 256
"""Idle sessions that are compared for it, those that have been idle longest: more than any device has contexts."""
RECHECKS = 4
"""How often within a residency it is looked again whether somebody may be displaced now."""
AMORTISED = 10.0
"""Times what displacing it costs that a session has its memory at least before: so moving takes a tenth of the time at most."""
REST = 1.0
"""Seconds that a session is idle at least before it is parked: between the cells of "run all" nobody is."""
GLANCE = 0.25
"""Seconds that a plain cell waits for what is parked before others are parked for it: most cells that need no GPU are over then."""
OVERDUE = 1.0
"""Seconds in which who was asked for its memory meets a boundary; after that it is paused."""
FIRST_SPARED, LONGEST_SPARED = 10.0, 600.0
"""Seconds after which who could not be parked is tried again: at first, and at most; twice as long each time."""


class Parking(Returning):
    """Who is parked, for whom, and who comes back."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Sessions that are asked to stand still so that they can be parked, and those on their way out.
        self.leaving: dict[SessionId, Session] = {}
        self.going: dict[SessionId, Session] = {}
        #: When it is looked again whom to park, at the earliest, and when it surely is.
        self._look_again = self._recheck = 0.0

    # --- for whom ---------------------------------------------------------------------------------------------

    def _nobody_works(self) -> bool:
        """Those on their way out make room for whoever is first: nobody takes that before it."""
        return super()._nobody_works() and not (self.leaving or self.going)

    def _park_for(self, head: Job, at: float) -> None:
        """Park whoever gives `head` its memory, if that is enough."""
        if not self._may_look(at):
            return
        wait = head.submitted + GLANCE - at
        if head.id == request_of(head.session) and wait > 0:
            self._look_at(at + wait, at)
            return
        self._look_again = at + self.config.turn
        self.turns.accounts.advance()
        session = self.sessions[head.session]
        missing = self.book.wanted(session, head.need) + head.need.ephemeral - self.book.table.free
        chosen: list[tuple[Session, int]] = []
        for owner, size in self._candidates(head, session, at):
            if missing <= 0:
                break
            chosen.append((owner, missing if missing <= owner.charged else 0))
            missing -= size
        if missing > 0:
            self._look_at(at + self.config.residency / RECHECKS, at)
            return
        for owner, least in chosen:
            self._send_away(owner, least, at)

    def _relieve(self, at: float) -> None:
        """More is held than there is, and somebody is at work: park idle ones, as far as that goes."""
        if not self.jobs or not self._may_look(at):
            return
        self._look_again = at + self.config.turn
        for session in self._idle(at):
            if self.book.table.free + self._on_its_way() >= 0:
                break
            self._park(session, at)

    def _may_look(self, at: float) -> bool:
        """Whether anybody may be parked now; while some are on their way nobody else is."""
        if not self.config.can_park:
            return False
        if at < self._look_again:
            self._look_at(self._look_again, at)
            return False
        self.leaving = {name: s for name, s in self.leaving.items() if s.jobs}
        return not (self.leaving or self.going)

    def _look_at(self, due: float, at: float) -> None:
        """Look again at `due`, unless that is done sooner anyway."""
        due = max(due, self._look_again)
        if self._recheck <= at or due < self._recheck:
            self._recheck = due
            # Whatever is due then, who waits is looked at after it.
            self._deadlines.add(due, lambda _: None)

    def _on_its_way(self) -> int:
        return sum(session.charged + session.context for session in self.going.values())

    # --- who --------------------------------------------------------------------------------------------------

    def _candidates(self, head: Job, session: Session, at: float) -> Iterator[tuple[Session, int]]:
        """Yield whom to park for `head` of `session`, and how many bytes each gives back: idle ones, then who ranks behind it."""
        for owner in self._idle(at):
            if owner is not session:
                yield owner, owner.charged + owner.context
        policy = self.turns.accounts.policy
        if not policy.displaces:
            return
        back = self.speeds.back(session.parked.size) if session.parked is not None else 0.0
        for behind, job in islice(self._worst_first(head, session, at), MOST):
            owner = self.sessions[job.session]
            if behind <= self._cost(owner) + back:
                return
            yield owner, owner.charged + owner.context + job.need.ephemeral

    def _idle(self, at: float) -> list[Session]:
        """Return who has been idle for long enough, first whom it costs least for how long that was."""
        found: list[Session] = []
        for session in self.book.resting:
            if len(found) == MOST_SEEN:
                break
            if at < session.idle_since + REST:  # and so are all that follow
                self._look_at(session.idle_since + REST, at)
                break
            if self.why_not_parked(session):
                continue
            rested = session.idle_since + max(REST, self._cost(session))
            ready = max(rested, session.spared_until, session.exempt_until)
            if at >= ready:
                found.append(session)
            else:
                self._look_at(ready, at)
        found.sort(key=lambda s: self._cost(s) / (at - s.idle_since))
        return found[:MOST_IDLE]

    def why_not_parked(self, session: Session) -> str:
        """Return why nothing of `session` can be parked, for people; empty where it can."""
        away = session.parked is not None or session.moving is not None
        attached = session.presence is Presence.ATTACHED
        holds = session.charged or session.context or session.jobs
        for stands_in_the_way, why in (
            (not self.config.can_park, self.config.why_not_park),
            (session.barred, session.barred),
            (session.realtime, "it has a deadline to keep"),
            (session.roams, "it uses the device outside its cells, too"),
            (not attached, "gpushare is not loaded in it, so it could not ask for its memory back"),
            (away, "its memory is parked already, or on its way"),
            (not holds, "it holds no memory of this device"),
            (session.suspended_until is not None, "it is kept paused"),
            (
                not self.book.could_return(session),
                "it holds nearly all of this device, which leaves no room to put it back",
            ),
            (why_full := self._parks_enough(session), why_full),
        ):
            if stands_in_the_way:
                return why
        return ""

    def _worst_first(self, head: Job, session: Session, at: float) -> Iterator[tuple[float, Job]]:
        """Yield who may be displaced for `head` of `session`, and how far it ranks behind it, the worst first.

        Users are told apart by what ranks them, a user's own sessions by what ranks those.
        """
        policy, found = self.turns.accounts.policy, []
        first = policy.rank(session.user, head.rank, 0.0)
        for lane in self.book.table.lanes.values():
            for job in lane.members.values():
                owner = self.sessions[job.session]
                if owner is session or at - job.resident_since < self.config.residency:
                    continue
                own = policy.job_key(job, owner, at)
                key = own if owner.user is session.user else policy.rank(owner.user, own, 0.0)
                best = head.rank if owner.user is session.user else first
                found.append((key[0] - best[0], key[1], job))
        found.sort(key=lambda entry: entry[:2], reverse=True)
        for behind, _, job in found:
            if self._may_be_displaced(job, self.sessions[job.session], at):
                yield behind, job

    def _may_be_displaced(self, job: Job, session: Session, at: float) -> bool:
        if self.why_not_parked(session) or len(session.jobs) > 1 or job.realtime:
            return False
        stands = job.waits and job.trimmed
        runs = session.phase in {Phase.ON, Phase.LEAVING}
        # Where turns go round, one that was paused in the middle of its work has the next before long.
        soon = runs or not self.turns.accounts.policy.preempts
        soon = soon and not job.waits and job.cooperative
        by_force = not job.waits and self._may_be_forced(session)
        stays = max(self.config.residency, AMORTISED * self._cost(session))
        free = at >= max(session.exempt_until, session.spared_until)
        return (stands or soon or by_force) and free and at - job.resident_since >= stays

    def _may_be_forced(self, session: Session) -> bool:
        """Whether it may be parked in the middle of its work: a device that pauses from outside does that."""
        return self.config.enforce and session.pausable

    def _cost(self, session: Session) -> float:
        """Return how long it takes to park `session` and to restore it (seconds)."""
        return self.speeds.both(session.charged + session.context)

    # --- out --------------------------------------------------------------------------------------------------

    def _park_wanted(self, event: ev.ParkWanted) -> None:
        session = self.sessions[event.session]
        session.park_wanted = True
        self._falls_idle(session, event.at)

    def _restore_wanted(self, event: ev.RestoreWanted) -> None:
        session = self.sessions[event.session]
        session.park_wanted = False
        session.back_wanted = session.moving is Moving.OUT  # as soon as it is out
        self._ask_back(session, event.at)

    def _park_barred(self, event: ev.ParkBarred) -> None:
        self.sessions[event.session].barred = event.why

    def _falls_idle(self, session: Session, at: float) -> None:
        wanted = session.park_wanted or self.draining
        if wanted and not session.jobs and not session.cell_open:
            session.park_wanted = False
            if not self.why_not_parked(session):
                self._park(session, at)

    def _send_away(self, session: Session, least: int, at: float) -> None:
        """Park `session` as soon as it stands still with an empty E, or by force."""
        session.least = least
        running = [job for job in session.jobs.values() if not job.waits]
        if not running or not running[0].cooperative:
            self._park(session, at)
            return
        (job,) = running
        self.leaving[session.id] = session
        job.asked = True
        self._emit(do.Ask(job.id, session.id, turn=True, lane=True))
        self._deadlines.add(at + OVERDUE, lambda now: self._overdue(session, now))

    def _overdue(self, session: Session, at: float) -> None:
        """It was asked and has met no boundary. Whom nobody can pause does not keep others from being parked."""
        if self.leaving.get(session.id) is not session:
            return
        if not self._may_be_forced(session):
            if self.config.enforce:
                del self.leaving[session.id]
                session.spared_until = at + FIRST_SPARED
            return
        del self.leaving[session.id]
        if session.jobs and len(self.book.queue) and not self.why_not_parked(session):
            self._park(session, at)

    def _leaves(self, session: Session, at: float) -> bool:
        """It stands empty; say whether it is parked now, as it was asked for."""
        asked = self.leaving.pop(session.id, None) is not None
        if not asked or not len(self.book.queue) or self.why_not_parked(session):
            return False
        self._park(session, at)
        return True

    def _park(self, session: Session, at: float) -> None:
        session.moving = Moving.OUT
        session.move += 1
        self.going[session.id] = session
        # A pause goes over into the park: it is not let run in between.
        session.stopped, session.pausing = None, False
        for job in session.jobs.values():
            if job.state is JobState.PAUSED:
                job.become(JobState.RUNNING)
        self._wants(session, at)
        least, session.least = session.least, 0
        self._emit(do.Park(session.id, session.move, least))

    def _parked(self, event: ev.Parked) -> None:
        session = self._moved(event.session, event.ticket)
        if session is None:
            return
        if event.status is MoveStatus.DONE:
            self._is_out(session, event)
        elif event.status is MoveStatus.LOST:
            self._is_lost(session, event.why)
            self._stands(session, event.at)
        elif event.status is not MoveStatus.GONE:
            self._could_not(session, event)
        self._goes_on(session, event.at)
        self._admit(event.at)

    def _is_out(self, session: Session, event: ev.Parked) -> None:
        before, context = session.charged, 0 if event.contexts else session.context
        measured = max(session.measured, event.persistent + event.freed - context)
        session.parked = Stowed(session.declared, measured, context)
        self.book.changes += 1
        session.spared, session.park_wanted = 0, False
        self.speeds.went(session.parked.size, event.took)
        self.turns.noted(session, event.at)
        self.book.charge(session, declared=0, measured=event.persistent)
        self.book.context(session, session.context - context)
        for job in [*session.jobs.values()]:
            if job.lane is not None:
                self._set_aside(job, session, session.parked.persistent - before, event.at)
        if session.cell_open or session.back_wanted:
            self._ask_back(session, event.at)
        session.back_wanted = False
        if event.at < session.exempt_until:
            self._hurry(session, event.at)

    def _found_aside(self, event: ev.FoundAside) -> None:
        session = self.sessions.get(event.session)
        if session is None or session.parked is not None or session.moving is not None:
            return
        if (
            session.jobs
        ):  # what they hold is on the device: it is put back beside it, as soon as it can be
            return
        left = max(0, session.charged - event.size)
        session.parked = Stowed(session.declared, max(session.measured, event.size), 0)
        self.book.changes += 1
        self.turns.noted(session, event.at)
        self.book.charge(session, declared=0, measured=left)
        if session.cell_open:
            self._ask_back(session, event.at)
        self._admit(event.at)

    def _set_aside(self, job: Job, session: Session, beyond: int, at: float) -> None:
        """`job` goes on when its memory is back; `beyond` bytes of its E were parked with the rest."""
        if not job.waits:
            job.become(JobState.ADMITTED)
            job.waits, job.trimmed, job.asked, job.in_driver = True, True, False, True
            job.need = Need(job.need.persistent, max(0, job.need.ephemeral - beyond))
        self._again(job, session, at)

    def _could_not(self, session: Session, event: ev.Parked) -> None:
        """It keeps what it held, and runs on; it is not tried again at once."""
        if event.status is MoveStatus.UNABLE:
            session.barred = event.why
        session.spared_until = event.at + backoff(FIRST_SPARED, LONGEST_SPARED, session.spared)
        session.spared += 1
        for job in session.jobs.values():
            job.resident_since = event.at
        self._stands(session, event.at)

    def _moved(self, name: SessionId, ticket: int) -> Session | None:
        session = self.sessions.get(name)
        if session is None or session.moving is not Moving.OUT or session.move != ticket:
            return None
        session.moving = None
        del self.going[name]
        return session

    def _stays(self, session: Session) -> None:
        """`session` is gone or starts anew: nothing of it moves, or is parked."""
        self.leaving.pop(session.id, None)
        self.going.pop(session.id, None)
        session.moving = session.parked = None
        session.barred, session.spared, session.spared_until = "", 0, 0.0
        session.back_wanted = False
        self.turns.noted(session, self.at)
