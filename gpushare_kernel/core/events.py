"""What happens: the only way into the core. Every event carries its time; sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpushare_kernel.core.values import (
    JobId,
    MoveStatus,
    PauseReason,
    PauseStatus,
    Promise,
    SessionId,
    Usage,
    UserId,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base. `at` is monotonic and never falls."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(Event):
    """A provisioner is about to start a kernel; or a broker that came back knows it from its ledger (`orphaned`)."""

    session: SessionId
    user: UserId
    weight: float = 1.0
    user_weight: float | None = None
    persistent: int = 0
    orphaned: bool = False
    #: It yields to every session that is not.
    background: bool = False
    #: Bytes of it, contexts included, that an earlier broker had parked.
    parked: int = 0
    #: Device seconds on its account, and the clock of its use when that was written (None: it has none), and when.
    device_time: float = 0.0
    used: float | None = None
    used_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReady(Event):
    """Its process is known. `bare`: without our client. `context` is what one context costs, measured."""

    session: SessionId
    bare: bool
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllBack(Event):
    """Nobody of the broker before is missing any more: all have said what they hold, and the grace for that is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent(Event):
    """Nobody decided anything from `since` on: the broker was stopped, or its machine was. That time is on nobody's account."""

    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRestarted(Event):
    """The kernel starts anew: jobs end, P and E are free; id, user and weight stay."""

    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed(Event):
    """The process is gone."""

    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(Event):
    """A declared job: either `size`, or `persistent` (the session's total) and `ephemeral`, or neither (default needs).

    `usage` is what the session has used so far, `held` the bytes that its client says it holds (None: it does not say).
    """

    job: JobId
    session: SessionId
    size: int | None = None
    persistent: int | None = None
    ephemeral: int | None = None
    weight: float = 1.0
    cooperative: bool = False
    #: Nobody declared it: a cell is about to use the device for the first time.
    plain: bool = False
    usage: Usage | None = None
    #: Seconds that it takes with the device to itself, declared or learned; None where nobody knows.
    time: float | None = None
    #: It ranks above all that are not.
    realtime: bool = False
    #: What was proven of it; and, with it there, of those that were there before.
    promise: Promise | None = None
    promises: Mapping[JobId, Promise] = field(default_factory=dict)
    held: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfirmed(Event):
    """A job that ran on while the broker was gone. Jobs with the same `group` shared a lane."""

    job: JobId
    session: SessionId
    persistent: int
    ephemeral: int
    group: int
    running: bool
    plain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised(Event):
    """Deadlines of jobs that run are proven anew: of those that had a promise, and of those confirmed after a restart."""

    promises: Mapping[JobId, Promise]


@dataclass(frozen=True, slots=True, kw_only=True)
class RealtimeGrid(Event):
    """A real-time job is released at `first` and every period from then on; None: nobody knows any more when."""

    job: JobId
    first: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RealtimeReleased(Event):
    """A real-time job is released now (a sporadic one: those on a grid are known)."""

    job: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class RealtimeDone(Event):
    """A real-time job has done the work of a release; `left` releases are still to be done."""

    job: JobId
    left: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung(Event):
    """The answer to `Alarm`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled(Event):
    """Its user gave up the place."""

    job: JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryReached(Event):
    """The job waits inside our client; `trimmed`: its E is given back; `interval` is its usual time between boundaries."""

    job: JobId
    trimmed: bool
    persistent: int
    interval: float
    #: The most E that was seen since the last boundary (0: not told): more than was granted corrects the job's need.
    ephemeral: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(Event):
    """The job is over; `persistent` is what the session holds now, `usage` what it has used so far."""

    job: JobId
    persistent: int
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStarted(Event):
    """A plain cell begins; whether it uses the device is seen later. `usage` is what the session has used so far."""

    session: SessionId
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEnded(Event):
    """The plain cell is over; `persistent` is what the session holds now (None: not known)."""

    session: SessionId
    persistent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Event):
    """The answer to `Wake`: what sessions have used so far. Due deadlines are met with it.

    `utilization` is the part of the time (0 to 1) in which the device was busy over a window that began at
    `utilization_since` or later and is closed; None: not known.
    """

    used: Mapping[SessionId, Usage] = field(default_factory=dict)
    utilization: float | None = None
    utilization_since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued(Event):
    """The session was paused, and runs: somebody else let it (a process can unlock itself)."""

    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Event):
    """What came of a `Pause`."""

    session: SessionId
    ticket: int
    status: PauseStatus
    drain: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exempted(Event):
    """A signal or shutdown is coming: resume the session, do not pause it before `until`."""

    session: SessionId
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended(Event):
    """Pause the session, whatever the turns, until `until` at most: it holds more than it was granted and others wait, or its owner wants it."""

    session: SessionId
    until: float
    reason: PauseReason = PauseReason.OVER_GRANT


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspensionEnded(Event):
    """What the session was suspended for is over: it runs again as its turns come, unless it is suspended for something else."""

    session: SessionId
    reason: PauseReason = PauseReason.OVER_GRANT


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityChanged(Event):
    """What the device has for us now: free at start minus foreign use since. `reserve` is what one context takes (None: as before)."""

    capacity: int
    reserve: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLost(Event):
    """The device is unusable: resume everything, admit nothing. `why` says so to people, and what to do."""

    lost: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanged(Event):
    """An administrator chose another policy."""

    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChanged(Event):
    """The session's weight among its user's own."""

    session: SessionId
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLimits(Event):
    """What a user's `group` gives it from now on, on this device (bytes; None: no cap): by the group's timetable, and by what it has used.

    `memory` is for all that its sessions hold there, contexts included, and `memory_ever` the most that the timetable
    ever allows; `parked` for what of theirs is set aside. Who is `over_budget` yields to all who are not.
    """

    user: UserId
    group: str = ""
    weight: float = 1.0
    memory: int | None = None
    memory_ever: int | None = None
    parked: int | None = None
    over_budget: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining(Event):
    """Maintenance begins (`on`), or is over: meanwhile nobody is let in who has not begun. `note` is for those who wait."""

    on: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(Event):
    """Give back what the session declared and does not use; `persistent` is what it holds in fact (None: as last measured)."""

    session: SessionId
    persistent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked(Event):
    """What came of a `Park`: DONE, and `persistent` bytes of the session beside its contexts are left on the device. Else it keeps what it held.

    `freed` bytes, those of its contexts included, were given back within `took` seconds; `why` is what stood in the way.
    `contexts`: these are on the device still.
    """

    session: SessionId
    ticket: int
    persistent: int = 0
    status: MoveStatus = MoveStatus.DONE
    freed: int = 0
    contexts: bool = False
    took: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAside(Event):
    """A session says that `size` bytes of it are set aside, which an earlier broker had it do: it is parked."""

    session: SessionId
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored(Event):
    """What came of a `Restore`: DONE after `took` seconds, and what the session held is on the device again. Else it is parked still, or LOST.

    DONE of a session that nobody restores: it is found to be back, by a worker of a broker before us.
    """

    session: SessionId
    ticket: int
    status: MoveStatus = MoveStatus.DONE
    took: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkWanted(Event):
    """Its owner, or an administrator, wants the session parked now, whether anybody waits or not."""

    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreWanted(Event):
    """Its owner wants back what is parked, whether a cell asks for it or not."""

    session: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkBarred(Event):
    """The session must not be parked, and `why`; empty: it may be."""

    session: SessionId
    why: str
