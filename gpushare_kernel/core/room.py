"""Room for who waits first: lanes merge and split, and a better ranked job displaces the memory of a worse one.

Only jobs whose E is empty move: before their first line, or at a trimmed boundary (I2). So a plan has two steps: who
stands still is moved now, who runs is asked for its lane and moved at its next boundary, if that is still of use then.

Merging costs no memory and no time of a device that one job can fill: lane mates take turns in any case. Displacing costs a
park and a restore; it has to gain more. Both are bounded: a plan moves at most `MOST` lanes or sessions, and
no other is made before its last move has ended; a session stays `residency` seconds at least.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.lanes import Lane
from gpushare_kernel.core.realtime import Realtime
from gpushare_kernel.core.records import Job, Key, Session
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobId, JobState, MoveStatus, Need, Presence, SessionId

MOST = 4
"""Lanes that merge into another, or sessions that are displaced, for one job that waits."""
RECHECKS = 4
"""How often within a residency it is looked again whether somebody may be displaced now."""
AMORTISED = 20.0
"""Times what displacing it costs that a session has its memory at least before: so parking takes a twentieth of the time at most."""


class Room(Realtime):
    """Who moves for whom."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Sessions that are asked to stand still so that they can be parked, and those whose memory moves.
        self.leaving: dict[SessionId, Session] = {}
        self._moving = 0
        #: For whom, and for which lanes, it was last seen that no merging helps; when displacing is looked at again.
        self._no_merge: tuple[JobId | None, int, int] = (None, -1, 0)
        self._no_split = (-1, 0)
        self._look_again = self._recheck = 0.0

    def _make_room(self, at: float) -> bool:
        head = self.book.queue.head
        if self.lost or self.book.deficit or not self.config.by_policy:
            return False
        if head is None:
            if self.book.table.crowded:
                self._split(at)
            return False
        if not self.may_enter(head):
            return False
        planned = self._merge(head, at)
        if planned is None:
            self._displace(head, at)
        return bool(planned)

    # --- lanes ------------------------------------------------------------------------------------------------

    def _merge(self, head: Job, at: float) -> bool | None:
        """Merge the smallest lanes into the next larger one where `head` fits then.

        Say whether it does; None where no merging helps.
        """
        table = self.book.table
        now = (head.id, table.version, table.free)
        if now == self._no_merge:
            return None
        plan = self._plan(head)
        if plan is None:
            self._no_merge = now
            return None
        sources, target = plan
        moved = [self._empty_into(lane, target, at) for lane in sources]
        return all(moved)

    def _plan(self, head: Job) -> tuple[list[Lane], Lane] | None:
        """Return which lanes are to merge into which so that Algorithm 1 finds room for `head`; the fewest, from the smallest."""
        table, session = self.book.table, self.sessions[head.session]
        lanes = [lane for lane in table.shared[: MOST + 1] if self._may_merge(lane)]
        room = table.free - self.book.added(session, head.need)
        ephemeral = head.need.ephemeral
        largest = table.shared[-1].size if len(table.shared) else 0
        for n in range(1, len(lanes)):
            room += lanes[n - 1].size
            joins = head.cooperative and room >= max(0, ephemeral - largest)
            if ephemeral <= room or joins:
                return lanes[:n], lanes[n]
        return None

    def _may_merge(self, lane: Lane) -> bool:
        """Whether its occupant stands empty, or will before long: who waits for its turn behind better ones may not."""
        job = lane.occupant
        if job is None or (job.waits and job.trimmed):
            return True
        runs = self.sessions[job.session].phase in {Phase.ON, Phase.LEAVING}
        return job.cooperative and (runs or not self.turns.accounts.policy.preempts)

    def _empty_into(self, lane: Lane, target: Lane, at: float) -> bool:
        """Move all jobs of `lane` to `target`; where its occupant is at work, ask it for the lane first and say no."""
        occupant = lane.occupant
        if occupant is not None and not (occupant.waits and occupant.trimmed):
            if not lane.wanted:
                lane.wanted = occupant.asked = True
                leaving = self.sessions[occupant.session].phase is Phase.LEAVING
                self._emit(do.Ask(occupant.id, occupant.session, turn=leaving, lane=True))
            return False
        for job in [*lane.waiters, *([] if occupant is None else [occupant])]:
            self._move(job, target, at)
        return True

    def _move(self, job: Job, to: Lane | None, at: float) -> None:
        lane = self.book.table.move(job, to, at)
        session = self.sessions[job.session]
        job.lane_left = at
        self._seek(lane, session, at)
        if session.phase is Phase.ON:
            self._grant_waiting(session, at)

    def _split(self, at: float) -> None:
        """Nobody waits for memory: who waits for a lane gets one of its own where there is room."""
        table = self.book.table
        if self.config.single_lane or self._no_split == (table.version, table.free):
            return
        for lane in [*islice(table.crowded.values(), MOST)]:
            for job in lane.waiters:
                own = max(j.need.ephemeral for j in lane.members.values() if j is not job)
                if job.waits and job.trimmed and job.need.ephemeral <= table.free + lane.size - own:
                    self._move(job, None, at)
                    break
        self._no_split = (table.version, table.free)

    def _stands_empty(self, job: Job, session: Session, event: ev.BoundaryReached) -> None:
        if event.ephemeral > job.need.ephemeral and job.lane is not None:
            self._grow(job, session, event.ephemeral, event.at)
        lane = self._lane(job)
        if lane is not None and lane.occupant is job:
            lane.wanted = False
        if self.leaving.pop(session.id, None) is not None and len(self.book.queue):
            self._park(session)
            self._wants(session, event.at)
        else:
            self._make_room(event.at)

    def _grow(self, job: Job, session: Session, ephemeral: int, at: float) -> None:
        """`job` was seen to take more E than it was granted: its lane grows, or it waits for one that is large enough."""
        lane = self._lane(job)
        before = job.need
        job.need = Need(before.persistent, ephemeral)
        if lane is None or self.book.never_fits(session, job.need) is not None:
            job.need = before  # no device of this size helps: it goes on as it is
            return
        if self.book.grow(lane, ephemeral):
            return
        self._again(job, session, at)

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

    # --- memory -----------------------------------------------------------------------------------------------

    def _displace(self, head: Job, at: float) -> None:
        """Have the worst ranked give their memory to `head` where it gains more than that costs."""
        policy = self.turns.accounts.policy
        if not (self.config.can_park and policy.displaces) or at < self._look_again:
            return
        self.leaving = {name: s for name, s in self.leaving.items() if s.jobs}
        if self.leaving or self._moving:
            return
        self._look_again = at + self.config.turn
        self.turns.accounts.advance()
        session = self.sessions[head.session]
        missing = self.book.added(session, head.need) + head.need.ephemeral - self.book.table.free
        first = policy.user_key(session.user, head.rank, 0.0)
        chosen: list[Session] = []
        for key, job in self._worst_first(at):
            if missing <= 0 or len(chosen) == MOST:
                break
            owner = self.sessions[job.session]
            if key[0] - first[0] <= self._cost(owner) + self._cost(session):
                break
            missing -= owner.charged + job.need.ephemeral
            chosen.append(owner)
        if missing > 0:
            if self._recheck <= at:  # some will have stayed long enough then
                self._recheck = at + self.config.residency / RECHECKS
                self._deadlines.add(self._recheck, self._admit)
            return
        for owner in chosen:
            self._send_away(owner, at)

    def _worst_first(self, at: float) -> list[tuple[Key, Job]]:
        """Who may be displaced now, the worst ranked first."""
        policy, found = self.turns.accounts.policy, []
        for lane in self.book.table.lanes.values():
            for job in lane.members.values():
                session = self.sessions[job.session]
                if self._may_be_parked(job, session, at):
                    key = policy.user_key(session.user, policy.job_key(job, session, at), 0.0)
                    found.append((key, job))
        return sorted(found, key=lambda entry: entry[0], reverse=True)

    def _may_be_parked(self, job: Job, session: Session, at: float) -> bool:
        stands = job.waits and job.trimmed
        soon = not job.waits and session.phase in {Phase.ON, Phase.LEAVING}
        stays = max(self.config.residency, AMORTISED * 2 * self._cost(session))
        return (
            len(session.jobs) == 1
            and (stands or soon)
            and job.cooperative
            and not job.realtime
            and session.presence is Presence.ATTACHED
            and session.suspended_until is None
            and session.parked is None
            and at >= session.exempt_until
            and at - job.resident_since >= stays
        )

    def _cost(self, session: Session) -> float:
        """Return how long it takes to park `session`, or to restore it (seconds)."""
        size = session.charged if session.parked is None else max(session.parked)
        return self.config.park_cost + size / self.config.park_speed if size else 0.0

    def _send_away(self, session: Session, at: float) -> None:
        """Park `session` as soon as it stands still with an empty E."""
        (job,) = session.jobs.values()
        if job.waits:
            self._park(session)
            self._wants(session, at)
        else:
            self.leaving[session.id] = session
            job.asked = True
            self._emit(do.Ask(job.id, session.id, turn=True, lane=True))

    def _park(self, session: Session) -> None:
        session.moving = True
        session.move += 1
        self._moving += 1
        self._emit(do.Park(session.id, session.move))

    def _parked(self, event: ev.Parked) -> None:
        session = self._moved(event.session, event.ticket)
        if session is None:
            return
        if event.status is MoveStatus.DONE:
            session.parked = (session.declared, session.measured)
            self.turns.noted(session, event.at)
            self.book.charge(session, declared=0, measured=event.persistent)
            for job in [*session.jobs.values()]:
                if job.lane is not None:
                    self._again(job, session, event.at)
        for job in session.jobs.values():
            job.resident_since = event.at  # if it could not be: not tried again at once
        self._wants(session, event.at)
        self._admit(event.at)

    def _entered(self, session: Session, at: float) -> None:  # noqa: ARG002
        """Its memory is put back before its job goes on; on paper it is there already (I5)."""
        if session.parked is None or session.moving:
            return
        session.moving = True
        session.move += 1
        self._moving += 1
        self._emit(do.Restore(session.id, session.move, max(session.parked)))

    def _restored(self, event: ev.Restored) -> None:
        session = self._moved(event.session, event.ticket)
        if session is None:
            return
        session.parked = None
        self.turns.noted(session, event.at)
        for job in session.jobs.values():
            job.resident_since = event.at
        self._wants(session, event.at)
        self._admit(event.at)

    def _moved(self, name: SessionId, ticket: int) -> Session | None:
        session = self.sessions.get(name)
        if session is None or not session.moving or session.move != ticket:
            return None
        session.moving = False
        self._moving -= 1
        return session

    def _stays(self, session: Session) -> None:
        """`session` is gone or starts anew: nothing of it moves."""
        self.leaving.pop(session.id, None)
        if session.moving:
            session.moving = False
            self._moving -= 1
        session.parked = None
        self.turns.noted(session, self.at)
