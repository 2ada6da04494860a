"""Room for who waits first: lanes merge and split. Where that does not help, memory is parked (`parking`).

Only jobs whose E is empty move: before their first line, or at a trimmed boundary (I2). So a plan has two steps: who
stands still is moved now, who runs is asked for its lane and moved at its next boundary, if that is still of use then.

Merging costs no memory and no time of a device that one job can fill: lane mates take turns in any case. A plan moves at
most `MOST` lanes.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.lanes import Lane
from gpushare_kernel.core.parking import MOST, Parking
from gpushare_kernel.core.records import Job, Session
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobId, Need, WaitReason


class Room(Parking):
    """Who moves for whom."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: For whom, and for which lanes, it was last seen that no merging helps.
        self._no_merge: tuple[JobId | None, int, int] = (None, -1, 0)
        self._no_split = (-1, 0)

    def _make_room(self, at: float) -> bool:
        if super()._make_room(at):
            return True
        head = self.book.queue.head
        if self.lost or not self.config.by_policy:
            return False
        self._park_own(at)
        if self.book.deficit:
            self._relieve(at)
            return False
        if head is None:
            if self.book.table.crowded:
                self._split(at)
            return False
        if not self.may_enter(head):
            return False
        planned = self._merge(head, at)
        if planned is None:
            self._park_for(head, at)
        return bool(planned)

    def _park_own(self, at: float) -> None:
        """For whoever waits for what its own user holds, idle sessions of that user are parked."""
        if not self.held_back or not self._may_look(at):
            return
        for job in self.held_back.values():
            user, cap = self.sessions[job.session].user, self.sessions[job.session].user.cap
            if cap is None or self.why_held(job) is not WaitReason.CAP:
                continue
            needs = self.book.added(self.sessions[job.session], job.need) + job.need.ephemeral
            missing = self.held_by(user) + needs - cap
            for owner in self._idle(at):
                if missing > 0 and owner.user is user and owner.id != job.session:
                    self._park(owner, at)
                    missing -= owner.charged + owner.context

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
        room = table.free - self.book.wanted(session, head.need)
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
        if not self._leaves(session, event.at):
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
