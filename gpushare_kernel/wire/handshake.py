"""The handshake: the first frame of a connection, and its answer. Sent on the raw socket: file descriptors travel with them."""

from __future__ import annotations

from msgspec import Struct, field

from gpushare_kernel.core.values import JobId, SessionId


class Message(Struct, frozen=True, tag=True, omit_defaults=True):
    """Base: a tagged, immutable message."""


class Open(Message, frozen=True):
    """A provisioner is about to start a kernel. Reply: `Opened`, with the session's page as fd.

    `device` is a device's id, or its number in the broker's list; empty lets the broker choose. `needs` are the bytes
    it is known to need, 0 where nothing is known. A `background` session yields to every other. `hub_token` is that of the
    JupyterHub server that starts it: who it is, where many people share a uid.
    """

    name: str
    kernel_id: str = ""
    language: str = "python"
    weight: float = 1.0
    device: str = ""
    needs: int = 0
    background: bool = False
    hub_token: str = ""


class Restart(Message, frozen=True):
    """The kernel of `session` starts anew: its jobs end, its memory is free, the token changes. Reply: `Opened` + page fd.

    `hub_token` as in `Open`, for a session that was opened while the hub did not answer.
    """

    session: SessionId
    token: str
    hub_token: str = ""


class Bind(Message, frozen=True):
    """The kernel's process, as a pidfd beside the frame. No pid is believed from a message. Reply: `Ok`."""

    session: SessionId
    token: str


class Close(Message, frozen=True):
    """The kernel is gone for good (or was never launched). Idempotent. Reply: `Ok`."""

    session: SessionId
    token: str


class Exempt(Message, frozen=True):
    """Resume the session now and do not pause it for `seconds`: a signal or a shutdown is coming. Reply: `Ok` once resumed."""

    session: SessionId
    token: str
    seconds: float


class TakePage(Message, frozen=True):
    """A session's starter has no page, or that of a broker before this one. Reply: `Ok`, with the page as fd."""

    session: SessionId
    token: str


class HeldJob(Struct, frozen=True):
    """A job that ran on while its broker was gone."""

    job: JobId
    name: str
    persistent: int
    ephemeral: int
    lane: int
    slot: int
    running: bool
    plain: bool = False


class Again(Struct, frozen=True, omit_defaults=True):
    """What a session's own process knows of it, for a broker that does not: its ledger is lost. `baseline`: bytes it held at its start."""

    session: SessionId
    name: str
    baseline: int = 0
    device: str = ""


class Attach(Message, frozen=True):
    """The client inside the kernel (or in a child process of it). Reply: `Attached` + page fd + tally fd. The connection stays.

    `aside` are bytes of device memory that it has set aside itself, for a broker that has gone meanwhile. `again` comes
    from the kernel's own process only: who that is says the socket.
    """

    token: str
    held: tuple[HeldJob, ...] = ()
    persistent: int = 0
    aside: int = 0
    again: Again | None = None


class Observe(Message, frozen=True):
    """A command line or a view: reads snapshots, acts for its uid, or whom `hub_token` tells. Reply: `Ok`. The connection stays."""

    hub_token: str = ""


class OfferBundle(Message, frozen=True):
    """Have a holder keep pages for this user's kernels, `size` bytes. Reply: `BundleHeld` + fd. The connection stays: it is a use of them.

    On a host the pages come with it as a sealed memfd, and others may map them at once. On a GPU the holder takes the memory,
    and others wait until `BundleFilled`. `pages` and `shared` are how many there are, and how many more than one model uses.
    """

    token: str
    name: str
    size: int
    pages: int = 0
    shared: int = 0


class MapBundle(Message, frozen=True):
    """Map pages that a kernel of the same user, on the same device, offered. Reply: `BundleHeld` + fd. The connection stays: it is a use of them."""

    token: str
    name: str


class LeaseArena(Message, frozen=True):
    """Set `size` bytes of the host's memory apart for this kernel. Reply: `ArenaLeased` + memfd. The connection stays: it is the lease.

    It is answered when there is memory behind all of it, which takes about half a second a GiB where nobody had it before.
    """

    token: str
    size: int


OfStarter = Open | Restart | Bind | Close | Exempt | TakePage
"""What whoever starts a kernel says: one a connection."""


HelloBody = OfStarter | Attach | Observe | OfferBundle | MapBundle | LeaseArena
"""What a connection begins with."""


class Hello(Struct, frozen=True):
    """The first frame of every connection."""

    versions: tuple[int, ...]
    agent: str
    body: HelloBody


class Opened(Message, frozen=True):
    """A session exists on `device`. `token` and `environment` go to the kernel's environment.

    `needs` is what it is known to need (bytes): its starter gives it back where a broker has forgotten the session.
    `remark` is what its user should know of it (empty: nothing); our client hears it too, a bare kernel has none.
    """

    session: SessionId
    token: str
    device: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    needs: int = 0
    remark: str = ""


class Attached(Message, frozen=True):
    """The client is known. Sizes in bytes; `device` is a device id, `kind` its kind (host, cuda, model).

    `reserve` is what one context takes of the device; `limit` as in `Budget`. `warm`: it may be asked to set its own memory aside.
    """

    session: SessionId
    device: str
    kind: str
    device_name: str
    capacity: int
    plain_grace: float
    reserve: int = 0
    limit: int | None = None
    warm: bool = False


class BundleHeld(Message, frozen=True):
    """Pages, as the descriptor beside it; `size` in bytes. They stay where they are while anybody's connection for them stands."""

    name: str
    size: int


class ArenaLeased(Message, frozen=True):
    """An extent of the user's arena, which is the descriptor beside it: `size` bytes (of whole 2 MiB) from `offset`; all of it has `whole` bytes now.

    Nobody else gets these bytes while the connection stands, and the broker never ends it. What is in them at first is
    nothing to rely on: zeros, or what another kernel of the same user left.
    """

    offset: int
    size: int
    whole: int


class Ok(Message, frozen=True):
    """Done."""


CANCELLED = "Cancelled"
"""The code of a job that left the queue as it was asked to."""


class Failure(Message, frozen=True):
    """Not done. `code` names a class of `core/errors.py`; `message` has the rule, the value and the next step."""

    code: str
    message: str


class Welcome(Struct, frozen=True):
    """The answer to `Hello`. `version` is the one to speak from here on."""

    version: int
    broker_pid: int
    broker_version: str
    body: Opened | Attached | BundleHeld | ArenaLeased | Ok | Failure
