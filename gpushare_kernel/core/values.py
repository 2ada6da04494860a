"""The values every room speaks in: identifiers, states, reasons, sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

SessionId = NewType("SessionId", str)
JobId = NewType("JobId", str)
UserId = NewType("UserId", str)
DeviceId = NewType("DeviceId", str)
LaneId = NewType("LaneId", int)

KiB, MiB, GiB, TiB = 2**10, 2**20, 2**30, 2**40
LARGEST_SIZE = 2**50
"""No declared size may reach a pebibyte; larger numbers are typing errors."""
LONGEST_TIME = 366 * 86400.0
"""No declared time (seconds) is longer than a year; larger numbers are typing errors."""


class Presence(StrEnum):
    """How much of a session is there."""

    OPENED = "opened"
    ATTACHED = "attached"
    BARE = "bare"
    ORPHANED = "orphaned"
    CLOSED = "closed"


class Activity(StrEnum):
    """What a session does with its device."""

    IDLE = "idle"
    BUSY = "busy"
    PARKED = "parked"
    RESTORING = "restoring"


class JobState(StrEnum):
    """The life of one declared (or seen) piece of device work."""

    SUBMITTED = "submitted"
    QUEUED = "queued"
    ADMITTED = "admitted"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    LOST = "lost"


class Mode(StrEnum):
    """How a busy session shares its device at the moment."""

    ALONE = "alone"
    CO_RUN = "co-run"
    EXCLUSIVE = "exclusive"


class WaitReason(StrEnum):
    """Why a job waits. A closed list: `wire/texts.py` has the sentence for each."""

    MEMORY = "memory"
    OCCUPANCY = "occupancy"
    TURN = "turn"
    GRACE = "grace"
    RESTORE = "restore"
    CAP = "cap"
    MAINTENANCE = "maintenance"


class PauseReason(StrEnum):
    """Why a session is paused from outside."""

    TURN_ENDED = "turn-ended"
    RESTOPPED = "continued-by-somebody-else"
    OVER_GRANT = "over-its-grant"
    OWNER = "by-its-owner"
    REALTIME = "real-time"
    PARKED = "parked"


class PauseStatus(StrEnum):
    """What came of asking a device to pause a session."""

    PAUSED = "paused"
    BUSY = "busy"  # limit reached while work drained; the target runs on unharmed (NOT_READY)
    NOTHING = "nothing"  # no context: nothing to pause (NOT_INITIALIZED)
    UNSUPPORTED = "unsupported"  # CUPTI, MPS: co-run it and charge it (NOT_SUPPORTED)
    FORBIDDEN = "forbidden"  # another uid's process (OPERATING_SYSTEM)
    STOPPED = "stopped"  # stopped by its own user (Ctrl-Z, debugger): not ours to continue
    BROKEN = "broken"  # the target's context is lost (ASSERT, ILLEGAL_ADDRESS)
    GONE = "gone"  # the process has ended


class MoveStatus(StrEnum):
    """What came of asking a device to park or to restore a session."""

    DONE = "done"
    NOT_NOW = "not-now"  # nothing has changed: its work did not drain, the host's memory is short, the device has no room
    UNABLE = "unable"  # nothing has changed, and as it stands it never can: imported mappings, a profiler, no permission
    LOST = "lost"  # a restore failed: the driver answers this process no more, and what was parked is gone
    GONE = "gone"  # the process has ended


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks for: the session's persistent total, and this job's ephemeral bytes."""

    persistent: int
    ephemeral: int


@dataclass(frozen=True, slots=True)
class Promise:
    """What was proven of a real-time job: released once in `period` seconds at most, it is done `bound` seconds later.

    That is where the work of others drains within `drain` seconds; within `absorbs` its deadline is kept all the same.
    Of several that are released the one of the largest `weight` has the device; equals in the order of their releases.
    """

    period: float
    deadline: float
    bound: float
    drain: float
    absorbs: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds memory a waiter asks for; `own` marks the waiter's own sessions."""

    name: str
    size: int
    idle: float | None
    own: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job waits, with the numbers its sentence needs (bytes, seconds).

    `eta` is when it may run (None: not known); `exact` where that is a sum of known times, not an estimate.
    `lost` is why the device does not answer, and what to do; while it is set, nothing else is in the way. `cap` is what its
    user's `group` lets each of its members hold of the device (bytes), where that is in the way; `note` what whoever
    began a maintenance says of it. `over_budget`: its user has used up a budget, and others come first.
    """

    reason: WaitReason
    needs: int
    free: int
    ahead: int
    holders: tuple[Holder, ...] = ()
    eta: float | None = None
    longest_today: float | None = None
    until: float | None = None
    exact: bool = False
    lost: str = ""
    cap: int = 0
    group: str = ""
    note: str = ""
    over_budget: bool = False


@dataclass(frozen=True, slots=True)
class ProcessKey:
    """One process for ever: a pid alone is reused, with its start time (clock ticks since boot) it is not."""

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class Usage:
    """One sample of a session's tree. Cumulative seconds; `wanted` adds time spent ready to run.

    `wanted >= device_time`: where the device is overloaded, the difference is demand not met. A device whose time is
    given out in turns (a GPU) does not measure seconds: there both stay 0, and the core keeps the time by its turns.
    `memory` is in bytes without the contexts, or None where it was not read this time; `contexts` is how many
    processes of the tree have a context (None: not read). `progress` counts the boundaries that it has met.
    `active`: it was seen at work on the device since the last sample (None: nobody can tell). `memory_at` is when its
    memory was read, where that was not now.
    """

    device_time: float
    wanted: float
    memory: int | None = None
    contexts: int | None = None
    progress: int = 0
    active: bool | None = None
    memory_at: float | None = None


def device_called(wanted: str, ids: Sequence[str]) -> int | None:
    """Return which of `ids` a person means: by its number, its id, or how that begins (4 characters or more)."""
    if wanted.isdecimal() and int(wanted) < len(ids):
        return int(wanted)
    name, least = wanted.lower(), 4
    for number, known in enumerate(one.lower() for one in ids):
        if name == known or (len(name) >= least and known.startswith(name)):
            return number
    return None
