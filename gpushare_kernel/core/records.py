"""What the core keeps about users, sessions and jobs. Mutable; only the core changes them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from gpushare_kernel.core.states import JOB, PRESENCE, Phase, checked
from gpushare_kernel.core.values import (
    Activity,
    JobId,
    JobState,
    LaneId,
    Need,
    PauseReason,
    Presence,
    Promise,
    SessionId,
    UserId,
)

DRAINS = 256
"""How many drains of a session are remembered: where they are between 5 and 40 ms, one in so many is longer than all of these."""


class Moving(StrEnum):
    """Which way a session's memory is on its way."""

    OUT = "out"
    BACK = "back"


class Stowed(NamedTuple):
    """What of a session is parked: the P that it declared and that was measured, and its context (bytes)."""

    declared: int
    measured: int
    context: int

    @property
    def persistent(self) -> int:
        """The P that it is charged again when it comes back."""
        return self.declared if self.declared > self.measured else self.measured

    @property
    def size(self) -> int:
        """All that comes back to the device."""
        return self.persistent + self.context


Key = tuple[float, int]
"""What somebody is ranked by: smaller comes first; the second part, an order of arrival, tells ties apart."""


@dataclass(slots=True, eq=False)
class User:
    """Who owns sessions, with the account that I6 divides by."""

    id: UserId
    weight: float = 1.0
    #: Weighted device seconds used while somebody else wanted the device; equal among those who compete.
    vtime: float = 0.0
    #: The least virtual time among its own sessions that compete, and what one turn is worth to that one.
    floor: float = 0.0
    floor_turn: float = 0.0
    #: Device seconds in all, for people to read.
    device_time: float = 0.0
    #: Its group, and what that lets it hold of the device, at the moment and at the most, and have set aside (bytes).
    group: str = ""
    cap: int | None = None
    cap_ever: int | None = None
    parked_cap: int | None = None
    #: It has used up its budget, and yields to all who have not.
    over_budget: bool = False
    sessions: set[SessionId] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Job:
    """One declared (or seen) piece of device work."""

    id: JobId
    session: SessionId
    order: int
    need: Need
    #: The single SIZE it was declared with: P and E together never exceed it, the split is measured.
    size: int | None
    submitted: float
    #: Seconds it takes with the device to itself, declared or learned; None where nobody knows.
    time: float | None = None
    #: It ranks above all that are not.
    realtime: bool = False
    #: What was proven of its deadline, if anything.
    promise: Promise | None = None
    #: It comes before all who came later: it has waited long for memory, or is inside another job of its session.
    promoted: bool = False
    #: The part of the device's memory that it needs in all, contexts included.
    part: float = 0.0
    #: Since when it waits for memory (for the last time), and has its lane.
    queued_since: float = 0.0
    resident_since: float = 0.0
    #: Its key in the memory queue, fixed while it waits there.
    rank: Key = (0.0, 0)
    plain: bool = False
    #: A plain job that no cell announced (bare kernels, background threads): it ends when it falls quiet.
    background: bool = False
    cooperative: bool = False
    state: JobState = JobState.SUBMITTED
    lane: LaneId | None = None
    #: When it last gave its lane up (0: it has not had it yet).
    lane_left: float = 0.0
    #: It waits inside our client: before its first line or at a boundary.
    waits: bool = True
    #: The last boundary gave its E back.
    trimmed: bool = True
    #: Its memory was taken in the middle of its work: it waits inside the driver, not inside our client.
    in_driver: bool = False
    #: A signal is on its way to whoever waits for it in there: nothing an administrator said holds it back.
    hurried: bool = False
    asked: bool = False
    #: Who waits for its lane and comes before it, and that one's rank: it has turns by that while both are in the lane.
    lent: tuple[Job, Key] | None = None
    interval: float | None = None
    overtaken: int = 0
    #: When it first got a lane, and its first turn in it.
    admitted: float | None = None
    granted: float | None = None
    device_time_before: float = 0.0
    served_before: float = 0.0
    turns: int = 0

    @property
    def lent_rank(self) -> Key | None:
        """The rank that it is lent; None where whoever lent it waits for this lane no more."""
        there = self.lent is not None and self.lane is not None and self.lent[0].lane == self.lane
        return self.lent[1] if there and self.lent is not None else None

    def served(self, session: Session, at: float) -> float:
        """Return for how long `session` has had turns since this job's first line (seconds)."""
        return 0.0 if self.granted is None else max(0.0, session.served(at) - self.served_before)

    def become(self, state: JobState) -> None:
        """Change state, as the table allows."""
        self.state = checked(JOB, self.state, state, f"job {self.id}")


@dataclass(slots=True, eq=False)
class Session:
    """One kernel's presence."""

    id: SessionId
    user: User
    order: int
    weight: float = 1.0
    #: Its weight between jobs that declare one of their own.
    usual_weight: float = 1.0
    #: It yields to every session that is not.
    background: bool = False
    presence: Presence = Presence.OPENED
    #: Bytes of P: the largest total declared since it was last released, and what it was last seen to hold.
    declared: int = 0
    measured: int = 0
    #: Bytes that its GPU's driver last saw it hold (None: nobody sees), what its client last said, and by how much
    #: the driver saw more when nothing ran: children, and frameworks that the client does not know.
    observed: int | None = None
    reported: int = 0
    unseen: int = 0
    #: When its client last said something, and what it keeps by that word (with `unseen`), until the driver says it anew.
    reported_at: float = 0.0
    word: int | None = None
    #: Bytes of its context, once it has one.
    context: int = 0
    #: It gives its device memory back, or takes it again, at the moment; under which number.
    moving: Moving | None = None
    move: int = 0
    #: What of it is parked; None where nothing is.
    parked: Stowed | None = None
    #: How many bytes of it will do, where it is parked for somebody (0: all of it).
    least: int = 0
    #: Why it must not be parked; empty: it may be. It is not tried again before `spared_until`, and how often it could not be.
    barred: str = ""
    spared_until: float = 0.0
    spared: int = 0
    #: It was seen using the device with no cell open: parked, that would wait, and nobody would ask for its memory.
    roams: bool = False
    #: Somebody wants it parked as soon as nothing of it runs.
    park_wanted: bool = False
    #: It is wanted back although it is still on its way out.
    back_wanted: bool = False
    jobs: dict[JobId, Job] = field(default_factory=dict)

    phase: Phase = Phase.OFF
    #: We paused its process (or a pause or resume is under way): the reason and since when.
    stopped: PauseReason | None = None
    stopped_at: float = 0.0
    pausing: bool = False
    ticket: int = 0
    #: How long its drains were seen to need, where that is more than the usual limit.
    pause_limit: float = 0.0
    pausable: bool = True
    #: Its last drains (seconds), where it was paused.
    drains: deque[float] = field(default_factory=lambda: deque(maxlen=DRAINS))
    #: A job of it has a proven deadline: it is never paused, and in nobody's way.
    realtime: bool = False
    #: How often in a row, and since when, it could not be paused because its work did not end.
    busy_tries: int = 0
    busy_since: float = 0.0
    #: It is kept paused, whatever the turns, until then at most (None: it is not), and why.
    suspended_until: float | None = None
    suspended_for: PauseReason = PauseReason.OVER_GRANT
    exempt_until: float = 0.0
    leave_by: float = 0.0

    vtime: float = 0.0
    #: Its key among its user's waiting sessions, fixed while it waits.
    rank: Key = (0.0, 0)
    #: What its demand counts for while it wants a turn (cores).
    counted: float = 0.0
    #: How much of the device it can use (cores); None until measured: then it counts as the whole device.
    demand: float | None = None
    used: float | None = None
    wanted: float = 0.0
    #: Boundaries it had met when it was last sampled.
    progress: int = 0
    device_time: float = 0.0
    #: Seconds with a turn since the last sample, and since when it has one now.
    held: float = 0.0
    #: What it used, or was ready to use, in that time.
    gained: float = 0.0
    on_since: float = 0.0
    waiting_since: float = 0.0
    #: For how long it has had turns in all, the one it has apart, and since when it has that.
    served_before: float = 0.0
    served_since: float | None = None
    #: Frames in a row that smaller sessions filled before it.
    passed: int = 0
    turns: int = 0
    #: Whether a plain cell is open; and while it is looked at: since when, device time used before it, and the next look at it.
    cell_open: bool = False
    #: It has run something: what its interpreter used to start is nobody's work.
    begun: bool = False
    cell_since: float | None = None
    cell_used: float | None = None
    cell_wait: float = 0.0
    quiet: float = 0.0
    sampled_at: float = 0.0
    #: When the driver last had word of whether it was at work.
    told_at: float = -math.inf
    idle_since: float = 0.0
    #: Since when it was idle as the driver first said that it works: that may be word of its last work.
    excused: float = -math.inf
    #: Since when it shares the device without a break, with its device time then; what it was told.
    shared_since: float | None = None
    shared_used: float = 0.0
    shared_told: bool = False

    def served(self, at: float) -> float:
        """Return for how long it has had turns in all (seconds)."""
        return self.served_before + (0.0 if self.served_since is None else at - self.served_since)

    @property
    def yields(self) -> bool:
        """Whether it has turns only while nobody else wants them, and after a long wait (`accounts.BACKGROUND`)."""
        return self.background or self.user.over_budget

    @property
    def charged(self) -> int:
        """P charged: what was declared or what is measured, whichever is more."""
        return self.declared if self.declared > self.measured else self.measured

    @property
    def holds(self) -> int:
        """What it holds as far as is known, parked or not: by its client's word where that is newer than the driver's."""
        if self.parked is not None:
            return self.parked.measured
        return self.measured if self.word is None else self.word

    @property
    def activity(self) -> Activity:
        """Whether it has work on the device, and where its memory is."""
        if self.parked is not None:
            return Activity.PARKED if self.moving is None else Activity.RESTORING
        return Activity.BUSY if self.jobs else Activity.IDLE

    @property
    def plain_job(self) -> Job | None:
        """The job that its plain cell became."""
        return next((job for job in self.jobs.values() if job.plain), None)

    def become(self, presence: Presence) -> None:
        """Change presence, as the table allows."""
        self.presence = checked(PRESENCE, self.presence, presence, f"session {self.id}")
