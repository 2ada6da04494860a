"""What administrators ask of a broker: maintenance, memory of others, a word to everybody, the file read again, what was done."""

from __future__ import annotations

from msgspec import Struct

from gpushare_kernel.wire.handshake import Message


class Drain(Message, frozen=True):
    """Begin a maintenance (`on`), or end it: meanwhile nothing new is let in. `note` is shown to those who wait. Reply: `Ok`; the snapshot says how far it is."""

    on: bool
    note: str = ""


class Evict(Message, frozen=True):
    """Have a notebook, or all of a user's, give back its device memory as far as nothing is lost by that. Reply: `EvictedNow`."""

    whom: str


class Proclaim(Message, frozen=True):
    """Tell everybody `text`, in the next outputs of each notebook and in the snapshot; empty takes it back. Reply: `Proclaimed`."""

    text: str


class ReloadSettings(Message, frozen=True):
    """Read the administrator's file again. Reply: `SettingsRead`, or `Failure`, and the former one holds."""


class GetAudit(Message, frozen=True):
    """What administrators did, the latest `most` of it. Reply: `Audited`."""

    most: int = 100


class Left(Struct, frozen=True, omit_defaults=True):
    """A notebook that keeps its memory: how much (bytes), and why it cannot be set aside."""

    name: str
    size: int
    why: str


class EvictedNow(Message, frozen=True):
    """Whose memory goes at once, whose as soon as its cell has ended, and who was asked because it cannot be set aside."""

    parked: tuple[str, ...] = ()
    after_cell: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()


class Proclaimed(Message, frozen=True):
    """How many notebooks are told."""

    notebooks: int


class SettingsRead(Message, frozen=True):
    """Which file was read, and how many groups it has."""

    path: str
    groups: int


class AuditEntry(Struct, frozen=True, omit_defaults=True):
    """One act: when (seconds since 1970), who (and under which uid), what, to whom, and what else there is to say."""

    at: float
    who: str
    uid: int
    what: str
    whom: str = ""
    detail: str = ""


class Audited(Message, frozen=True):
    """The acts, the oldest first."""

    entries: tuple[AuditEntry, ...] = ()
