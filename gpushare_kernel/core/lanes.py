"""GPU lanes: budgets of ephemeral memory, and Algorithm 1 of Salus that places jobs in them.

Source: Yu & Chowdhury, Salus (MLSys 2020), section 3.3, Algorithm 1, completed as docs/core.md says: every path counts
the newcomer's P, and no lane is ever set below the largest E in it (I1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sortedcontainers import SortedKeyList

from gpushare_kernel.core.errors import InvariantBroken
from gpushare_kernel.core.records import Job, User
from gpushare_kernel.core.values import JobId, LaneId, UserId


@dataclass(slots=True, eq=False)
class Lane:
    """One budget. `size` is the largest E of its members; at most one of them, the occupant, has E on the device."""

    id: LaneId
    size: int
    #: Only its first job may ever be in it: plain cells, and what cannot be trimmed.
    private: bool = False
    #: Its occupant is asked to stand empty at its next boundary: another lane can take it in.
    wanted: bool = False
    members: dict[JobId, Job] = field(default_factory=dict)
    occupant: Job | None = None
    #: When the occupant took it, and when it is to be asked to give it up, once that is noted.
    since: float = 0.0
    due: float | None = None
    #: Weighted seconds for which each user's jobs had it, while several were in it.
    held: dict[UserId, float] = field(default_factory=dict)
    #: Whose jobs were in it when it was last passed on.
    were: set[UserId] = field(default_factory=set)

    @property
    def waiters(self) -> list[Job]:
        """Members that wait for occupancy, in the order of their arrival."""
        return [job for job in self.members.values() if job is not self.occupant]

    def give_up(self, user: User, at: float) -> None:
        """The occupant, a job of `user`, has had the lane until now."""
        if self.occupant is not None and len(self.members) > 1:
            self.held[user.id] = self.held.get(user.id, 0.0) + (at - self.since) / user.weight
            self.occupant.lane_left = self.since = at

    def heir(self, owner: Callable[[Job], User]) -> Job:
        """Return the waiter who is next: of the user who had the lane least, the job that has waited longest for it.

        Who is new in the lane, or comes again, begins with the least of the others at least: it is not owed the time before. What
        it had counts on, or short jobs one after the other would have it more often.
        """
        users = {owner(job).id for job in self.members.values()}
        stayed = [self.held[user] for user in users & self.were if user in self.held]
        known = stayed or [self.held[user] for user in users if user in self.held]
        present = min(known, default=0.0)
        self.held |= {user: max(self.held.get(user, 0.0), present) for user in users}
        self.were = users
        return min(
            self.waiters, key=lambda job: (self.held[owner(job).id], job.lane_left, job.order)
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where Algorithm 1 puts a job: a new lane, or `lane`, which then has `size` bytes."""

    lane: LaneId | None
    size: int


class LaneTable:
    """The device's memory on paper: sum P + sum lanes + context reserves <= capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.lanes: dict[LaneId, Lane] = {}
        #: Lanes with several members.
        self.crowded: dict[LaneId, Lane] = {}
        #: How often lanes have changed.
        self.version = 0
        self.persistent = 0
        self.reserve = 0
        self.in_lanes = 0
        self._shared: SortedKeyList = SortedKeyList(key=lambda lane: (lane.size, lane.id))
        self._next = 1

    @property
    def used(self) -> int:
        """Bytes promised to somebody."""
        return self.persistent + self.reserve + self.in_lanes

    @property
    def free(self) -> int:
        """Bytes promised to nobody; negative in a deficit."""
        return self.capacity - self.persistent - self.reserve - self.in_lanes

    def find(
        self, persistent: int, ephemeral: int, *, private: bool = False, single: bool = False
    ) -> Placement | None:
        """Algorithm 1: where a job fits that adds `persistent` bytes of P (contexts included) and `ephemeral` of E.

        A new lane if one fits; else the best-fitting lane that is large enough; else the smallest lane that can grow
        to `ephemeral`; else None. With `single` a second shared lane is never made. O(log lanes).
        """
        room = self.free - persistent
        if ephemeral <= room and not (single and self._shared and not private):
            return Placement(None, ephemeral)
        if private or room < 0:
            return None
        at = self._shared.bisect_key_left((ephemeral, 0))
        if at < len(self._shared):
            return Placement(self._shared[at].id, self._shared[at].size)
        # Every lane is smaller than E here: growing lane r to E costs E - L_r, so the smallest fitting has L_r >= E - room.
        at = self._shared.bisect_key_left((ephemeral - room, 0))
        return Placement(self._shared[at].id, ephemeral) if at < len(self._shared) else None

    def place(self, job: Job, placement: Placement, at: float, *, private: bool = False) -> Lane:
        """Carry out a `find`. The first member of a lane is its occupant."""
        lane = (
            self.lanes[placement.lane] if placement.lane is not None else self._new(private=private)
        )
        lane.members[job.id] = job
        job.lane = lane.id
        self.version += 1
        if len(lane.members) > 1:
            self.crowded[lane.id] = lane
        self._resize(lane, max(placement.size, lane.size, job.need.ephemeral))
        if lane.occupant is None:
            lane.occupant, lane.since = job, at
        return lane

    def leave(self, job: Job) -> Lane | None:
        """Take `job` out of its lane, which shrinks to its largest member; return the lane while it lives."""
        if job.lane is None:
            return None
        lane = self.lanes[job.lane]
        self.version += 1
        del lane.members[job.id]
        job.lane = None
        if len(lane.members) < 2:  # noqa: PLR2004
            self.crowded.pop(lane.id, None)
        if lane.occupant is job:
            lane.occupant = None
        if not lane.members:
            self._resize(lane, 0)
            self._shared.discard(lane)
            del self.lanes[lane.id]
            return None
        self.refit(lane)
        return lane

    def move(self, job: Job, to: Lane | None, at: float) -> Lane:
        """Put `job`, whose E is empty, into lane `to`, or into a new one. It occupies there only where nobody does."""
        self.leave(job)
        return self.place(job, Placement(None if to is None else to.id, 0), at)

    @property
    def shared(self) -> SortedKeyList:
        """The lanes that jobs may share, the smallest first."""
        return self._shared

    def refit(self, lane: Lane) -> None:
        """Shrink `lane` to the largest E of its members."""
        self._resize(lane, max(job.need.ephemeral for job in lane.members.values()))

    def occupy(self, lane: Lane, job: Job, at: float) -> None:
        """Pass the lane to `job`; the former occupant has left it or gave its E back."""
        if job.id not in lane.members:
            msg = f"lane {lane.id} cannot pass to {job.id}, which is not in it"
            raise InvariantBroken(msg)
        lane.occupant, lane.since = job, at

    def _new(self, *, private: bool) -> Lane:
        lane = Lane(LaneId(self._next), 0, private)
        self._next += 1
        self.lanes[lane.id] = lane
        if not private:
            self._shared.add(lane)
        return lane

    def _resize(self, lane: Lane, size: int) -> None:
        if size == lane.size:
            return
        self.version += 1  # what is free has changed
        shared = not lane.private
        if shared:
            self._shared.remove(lane)
        self.in_lanes += size - lane.size
        lane.size = size
        if shared:
            self._shared.add(lane)
