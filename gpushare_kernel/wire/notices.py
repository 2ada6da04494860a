"""What the broker says unasked."""

from __future__ import annotations

from gpushare_kernel.core.values import JobId, Wait
from gpushare_kernel.wire.handshake import Message


class Waiting(Message, frozen=True):
    """The job waits: why, and in which place."""

    job: JobId
    wait: Wait


class Soon(Message, frozen=True):
    """A grant is about to come: whoever waits for one gets its threads and caches ready. Says nothing else."""


class Slowed(Message, frozen=True):
    """The session has shared its device for a while (`people` others, `fraction` of it ours), or was paused for `paused` seconds."""

    people: int
    fraction: float
    paused: float = 0.0
    reason: str = ""


class Budget(Message, frozen=True):
    """What this session may hold of its device from now on, in bytes, its contexts apart. None: no cap of ours.

    The client applies it at the next boundary or cell end: it gives back what is unused above `limit`, and
    caps its frameworks there.
    """

    limit: int | None


class Trim(Message, frozen=True):
    """Give back the memory that the frameworks keep unused, once no cell is in the way. The broker sees by itself what is held then."""


class Announce(Message, frozen=True):
    """A line for the user. `keep`: where no cell runs it is shown with the next one; of those `about` one thing the newest is."""

    text: str
    keep: bool = False
    about: str = ""


class Closing(Message, frozen=True):
    """The broker goes away on purpose."""

    reason: str
