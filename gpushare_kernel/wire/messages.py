"""Every message between a broker and its peers, protocol version 2 (`SPOKEN` has those understood).

A connection opens with `Hello` and its reply `Welcome` (or `Failure`), sent on the raw socket because file descriptors travel with them. What follows are
frames `[kind, id, body]`, full duplex: a request has an id that is not 0 and gets exactly one reply with that id; a notice has id 0 and gets none.
Fields may be added with a default; none is renamed or retyped within a version.
"""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct, field

from gpushare_kernel.core.values import JobId, Wait
from gpushare_kernel.wire.admin import (
    Audited,
    Drain,
    Evict,
    EvictedNow,
    GetAudit,
    Proclaim,
    Proclaimed,
    ReloadSettings,
    SettingsRead,
)
from gpushare_kernel.wire.aside import CameBack, PutBack, SetAside, WentAside
from gpushare_kernel.wire.by_hand import (
    AskedNow,
    AskHolder,
    ParkedNow,
    ParkNotebook,
    PausedNow,
    PauseNotebook,
    ResumedNow,
    ResumeNotebook,
    UnparkedNow,
    UnparkNotebook,
)
from gpushare_kernel.wire.handshake import (
    CANCELLED,
    Again,
    ArenaLeased,
    Attach,
    Attached,
    Bind,
    BundleHeld,
    Close,
    Exempt,
    Failure,
    HeldJob,
    Hello,
    HelloBody,
    LeaseArena,
    MapBundle,
    Observe,
    OfferBundle,
    OfStarter,
    Ok,
    Open,
    Opened,
    Restart,
    TakePage,
    Welcome,
)
from gpushare_kernel.wire.handshake import Message as _Message
from gpushare_kernel.wire.notices import (
    Announce,
    Budget,
    Closing,
    Slowed,
    Soon,
    Trim,
    Waiting,
)
from gpushare_kernel.wire.realtime import (
    RealtimeBeside,
    RealtimeDone,
    RealtimeGrid,
    RealtimeKept,
    RealtimePlaced,
    RealtimePlacement,
    RealtimeReleased,
    RealtimeTask,
)
from gpushare_kernel.wire.snapshot import NeedView, Snapshot

__all__ = [
    "CANCELLED",
    "Again",
    "Announce",
    "ArenaLeased",
    "AskHolder",
    "AskedNow",
    "Attach",
    "Attached",
    "Audited",
    "Bind",
    "Budget",
    "BundleHeld",
    "CameBack",
    "Close",
    "Closing",
    "Drain",
    "Evict",
    "EvictedNow",
    "Exempt",
    "Failure",
    "GetAudit",
    "HeldJob",
    "Hello",
    "HelloBody",
    "LeaseArena",
    "MapBundle",
    "Observe",
    "OfStarter",
    "OfferBundle",
    "Ok",
    "Open",
    "Opened",
    "ParkNotebook",
    "ParkedNow",
    "PauseNotebook",
    "PausedNow",
    "Proclaim",
    "Proclaimed",
    "PutBack",
    "RealtimeBeside",
    "RealtimeDone",
    "RealtimeGrid",
    "RealtimeKept",
    "RealtimePlaced",
    "RealtimeReleased",
    "ReloadSettings",
    "Restart",
    "ResumeNotebook",
    "ResumedNow",
    "SetAside",
    "SettingsRead",
    "Slowed",
    "Soon",
    "TakePage",
    "Trim",
    "UnparkNotebook",
    "UnparkedNow",
    "Waiting",
    "Welcome",
    "WentAside",
]
"""Those of other modules of the wire; whatever is defined here besides."""

VERSION = 2
SPOKEN = (2, 1)
"""Versions this build understands, newest first: N and N-1. Since 2 an attach is answered with the tally, too, and there
are the messages of `since`, of bundles and of arenas."""

TO_BROKER_LIMIT = 64 * 2**10
FROM_BROKER_LIMIT = 4 * 2**20


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 0
    REPLY = 1
    NOTICE = 2


# --- Requests of an attached client ------------------------------------------------------------------


class Submit(_Message, frozen=True):
    """A declared job. Either `size` (the most this notebook may hold while it runs; the broker splits it)
    or `persistent` (the session's total) and `ephemeral`. Reply: `Granted` when it may run, or `Failure`.
    Until then `Waiting` notices say why. `job` is chosen by the client (unique).

    `plain`: nobody declared it; a cell is about to use the device for the first time, and waits until there is room
    for a context and a little more. What it may hold beyond that is its `Budget`.

    `time` is how many seconds it takes with the device to itself, None where nobody says.

    `code` is a hash of what it runs: what it does not declare is taken from earlier runs of the same code. `frameworks`
    are those loaded by now, with versions (`torch 2.9.0`).

    `held` is what the frameworks of a GPU hold now, in bytes; None where the client does not say.

    `realtime` is what it is to do by when: it is admitted where that can be proven, and ranks above all that is not.
    """

    job: JobId
    name: str
    size: int | None = None
    persistent: int | None = None
    ephemeral: int | None = None
    weight: float = 1.0
    cooperative: bool = False
    dry_run: bool = False
    plain: bool = False
    time: float | None = None
    code: str = ""
    frameworks: tuple[str, ...] = ()
    held: int | None = None
    realtime: RealtimeTask | None = None


class Cancel(_Message, frozen=True):
    """Leave the queue. The submit's own reply is then `Failure("Cancelled")`, or `Granted` where that was faster. Reply: `Ok`."""

    job: JobId


class Yield(_Message, frozen=True):
    """The job met a boundary at which the broker wanted something; it waits. Reply: `Granted` when it may go on.

    `trimmed` says that its ephemeral memory is given back; `persistent` is what the session holds now, in bytes.
    `ephemeral` is the most it held above that since the boundary before at which this was told, 0 where nobody knows.
    """

    job: JobId
    trimmed: bool
    persistent: int
    peak: int
    boundaries: int
    interval: float
    ephemeral: int = 0


class End(_Message, frozen=True):
    """The job is over. `persistent` and `peak` are bytes the session holds now and held at most. Reply: `Report`.

    `failed`: it did not come to its end, and what it took says nothing of the next run. `frameworks` as in `Submit`.
    """

    job: JobId
    persistent: int
    peak: int
    boundaries: int
    failed: bool = False
    frameworks: tuple[str, ...] = ()


class Release(_Message, frozen=True):
    """Give back what a session of mine declared and does not use. `notebook` is a name or session id; None is the caller's own. Reply: `ReleasedNow`.

    `given` are the bytes of unused memory that the caller gave back just before. Other notebooks, and a caller that
    does not say it, are sent `Trim`.
    """

    notebook: str | None = None
    given: int | None = None


class GetSnapshot(_Message, frozen=True):
    """Reply: `SnapshotReply`, filtered for the caller (I9).

    `brief`: devices (without lanes and turns), the caller's own sessions and what these wait for, as they are known: nobody is sampled for it.
    """

    brief: bool = False


class GetNeeds(_Message, frozen=True):
    """What is known of the caller's code. Reply: `NeedsReply`. `frameworks` as in `Submit`."""

    frameworks: tuple[str, ...] = ()


class SetWeight(_Message, frozen=True):
    """Set the weight of the caller's session among the caller's own. Reply: `Ok`."""

    weight: float


class SetNeeds(_Message, frozen=True):
    """What the caller's notebook is to get when its kernel starts next, in bytes: its session's `Open.needs` from then on,
    and in the launch environment of frameworks that read their limit only there (JAX). 0 forgets it. Reply: `Ok`.
    """

    needs: int


class SetPolicy(_Message, frozen=True):
    """Administrators: switch the policy of a device (`fair`, `fifo`, `srtf`, `pack`); of all where none is named. Reply: `Ok`."""

    policy: str
    device: str = ""


class Stop(_Message, frozen=True):
    """The broker's owner or root: resume everybody and exit. Reply: `Ok`."""


class BundleFilled(_Message, frozen=True):
    """On a connection of `OfferBundle`: what was offered is in its memory now, and others may map it. Reply: `Ok`."""


# --- Notices of an attached client (no reply) ---------------------------------------------------------


class CellStarted(_Message, frozen=True):
    """A plain cell begins. The broker watches whether it uses the device."""

    cell: int


class CellEnded(_Message, frozen=True):
    """A plain cell is over (not one run inside another). `persistent` is what the session holds now, in bytes.

    With subshells several run at once: the session is idle when all have ended.
    """

    cell: int
    persistent: int


# --- Replies ------------------------------------------------------------------------------------------


class Granted(_Message, frozen=True):
    """The job may run. `slot` is its word in the session's page; times in seconds, sizes in bytes.

    `persistent` and `ephemeral` are what it was admitted with (the split of a single size included); `learned` says from
    how many runs they were learned, 0 where they were not. `placement` is where a real-time job runs.
    """

    job: JobId
    lane: int
    slot: int
    waited: float
    persistent: int
    ephemeral: int
    learned: int = 0
    placement: RealtimePlacement | None = None


class DryRun(_Message, frozen=True):
    """What a submit would do now: `fits`, with the wait it would have where it does not. `learned` as in `Granted`."""

    fits: bool
    persistent: int
    ephemeral: int
    free: int
    wait: Wait | None = None
    learned: int = 0


class Report(_Message, frozen=True):
    """What became of a job. Times in seconds, sizes in bytes, `share` is device time / (time wanted x device).

    `persistent_advised` and `ephemeral_advised` are what its code's next run is taken to need, as `GetNeeds` tells it
    too (0: a broker of before); `most` is what can be declared there in all (0: not known). `served` is for how long its
    session had the device of the time that it `ran`, which is what is learned of it (None: a broker of before).
    """

    job: JobId
    waited: float
    ran: float
    device_time: float
    share: float
    persistent_declared: int
    persistent_measured: int
    ephemeral_declared: int
    ephemeral_measured: int
    boundaries: int
    turns: int
    persistent_advised: int = 0
    ephemeral_advised: int = 0
    most: int = 0
    served: float | None = None


class ReleasedNow(_Message, frozen=True):
    """What `Release` gave back, in bytes, by notebook name.

    `held` is what they still use, where the broker knows it by now; those in `asked` were sent `Trim`, and what
    they give back is seen a moment later.
    """

    freed: int
    names: tuple[str, ...]
    held: int = 0
    asked: tuple[str, ...] = ()


class SnapshotReply(_Message, frozen=True):
    """The state of the broker as the caller may see it."""

    snapshot: Snapshot


class NeedsReply(_Message, frozen=True):
    """What is known of the caller's code, the latest used first."""

    needs: tuple[NeedView, ...] = ()


Request = (
    Submit
    | Cancel
    | Yield
    | End
    | Release
    | PauseNotebook
    | ResumeNotebook
    | ParkNotebook
    | UnparkNotebook
    | AskHolder
    | RealtimeBeside
    | GetSnapshot
    | GetNeeds
    | SetWeight
    | SetNeeds
    | SetPolicy
    | Stop
    | BundleFilled
    | Drain
    | Evict
    | Proclaim
    | ReloadSettings
    | GetAudit
)
ClientNotice = (
    CellStarted
    | CellEnded
    | RealtimeGrid
    | RealtimeKept
    | RealtimeReleased
    | RealtimeDone
    | WentAside
    | CameBack
)
Reply = (
    Ok
    | Failure
    | Granted
    | DryRun
    | Report
    | ReleasedNow
    | PausedNow
    | ResumedNow
    | ParkedNow
    | UnparkedNow
    | AskedNow
    | SnapshotReply
    | NeedsReply
    | RealtimePlaced
    | EvictedNow
    | Proclaimed
    | SettingsRead
    | Audited
)
BrokerNotice = Waiting | Soon | Slowed | Budget | Trim | Announce | Closing | SetAside | PutBack


class ToBroker(Struct, frozen=True, array_like=True):
    """A frame to the broker."""

    kind: Kind
    id: int
    body: Request | ClientNotice


class FromBroker(Struct, frozen=True, array_like=True):
    """A frame from the broker."""

    kind: Kind
    id: int
    body: Reply | BrokerNotice = field(default_factory=Ok)


def since(message: Request | ClientNotice | BrokerNotice) -> int:
    """Return the first version that knows `message`: the other side would take it for a broken frame, and hang up."""
    return 2 if isinstance(message, _SINCE_2) else 1


_SINCE_2 = (
    SetNeeds
    | GetNeeds
    | PauseNotebook
    | ResumeNotebook
    | ParkNotebook
    | UnparkNotebook
    | SetAside
    | PutBack
    | WentAside
    | CameBack
    | AskHolder
    | RealtimeBeside
    | RealtimeGrid
    | RealtimeKept
    | RealtimeReleased
    | RealtimeDone
    | BundleFilled
    | Budget
    | Trim
    | Drain
    | Evict
    | Proclaim
    | ReloadSettings
    | GetAudit
)
