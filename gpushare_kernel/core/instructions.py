"""What the core wants done: the only way out of it."""

from __future__ import annotations

from dataclasses import dataclass

from gpushare_kernel.core.values import JobId, LaneId, Need, PauseReason, PauseStatus, SessionId


@dataclass(frozen=True, slots=True)
class Instruction:
    """Base."""


@dataclass(frozen=True, slots=True)
class Grant(Instruction):
    """The job waits inside our client; let it go on."""

    job: JobId
    session: SessionId
    lane: LaneId
    need: Need


@dataclass(frozen=True, slots=True)
class Queue(Instruction):
    """Tell the job's user why it waits (see `Scheduler.why`)."""

    job: JobId
    session: SessionId


@dataclass(frozen=True, slots=True)
class Refuse(Instruction):
    """The job can never fit; `message` has the numbers."""

    job: JobId
    session: SessionId
    message: str


@dataclass(frozen=True, slots=True)
class Drop(Instruction):
    """The job is over without having been granted (cancelled, or its session ended)."""

    job: JobId
    session: SessionId


@dataclass(frozen=True, slots=True)
class Ask(Instruction):
    """Set the job's word: give up the turn, and the lane too (trimmed), at the next boundary."""

    job: JobId
    session: SessionId
    turn: bool
    lane: bool


@dataclass(frozen=True, slots=True)
class Pause(Instruction):
    """Stop the session from outside within `limit` seconds; answer with `Paused` and the same ticket."""

    session: SessionId
    reason: PauseReason
    limit: float
    ticket: int


@dataclass(frozen=True, slots=True)
class Resume(Instruction):
    """Let the session run again (after a pause that is still under way)."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Park(Instruction):
    """Give back the device memory of the session, which stands still, and keep its state; answer with `Parked` and the same ticket.

    `least` bytes will do where they come quicker than all of it; 0: all of it.
    """

    session: SessionId
    ticket: int
    least: int = 0


@dataclass(frozen=True, slots=True)
class Restore(Instruction):
    """Put back what was parked: there is room for `size` bytes on paper; answer with `Restored` and the same ticket."""

    session: SessionId
    ticket: int
    size: int


@dataclass(frozen=True, slots=True)
class Returned(Instruction):
    """Tell the session's user that what was parked is back; `lost`: why it is not, and will not be."""

    session: SessionId
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Slow(Instruction):
    """Tell the session's user that it shares the device with `people` others at `fraction` of its speed, or was paused."""

    session: SessionId
    people: int
    fraction: float
    paused: float = 0.0
    reason: PauseReason | None = None


@dataclass(frozen=True, slots=True)
class Wake(Instruction):
    """At `at`, sample `Scheduler.watched()` and answer with `Sampled`. The latest Wake counts; None: no need."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Alarm(Instruction):
    """At `at`, as exactly as can be, answer with `Rung`: a real-time window begins or ends. The latest Alarm counts; None: no need."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Overran(Instruction):
    """Tell the session's user that its real-time job was not done when it was proven to be, and has no windows until it is in time again."""

    job: JobId
    session: SessionId


@dataclass(frozen=True, slots=True)
class Barred(Instruction):
    """Tell the session's user that it is held while real-time jobs run: its work takes `drain` seconds to stop (None: not known yet), and they absorb `absorbs`."""

    session: SessionId
    drain: float | None
    absorbs: float


@dataclass(frozen=True, slots=True)
class Beside(Instruction):
    """Tell the session's user that somebody's work beside its real-time job cannot be paused, and what was seen of that (None: nothing here)."""

    session: SessionId
    status: PauseStatus | None
