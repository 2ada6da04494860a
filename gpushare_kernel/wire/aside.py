"""What a broker and a notebook's client say to each other when the client moves its own memory (the warm tier). Sizes in bytes."""

from __future__ import annotations

from gpushare_kernel.wire.handshake import Message


class SetAside(Message, frozen=True):
    """Copy out what you can, where you are quiet, and hold user code until it is back. Answer: `WentAside` of the same ticket.

    Asks are done one after the other: who has answered a `PutBack` has nothing aside, and begins nothing of before.
    """

    ticket: int


class PutBack(Message, frozen=True):
    """There is room: copy it back. Answer: `CameBack` of the same ticket."""

    ticket: int


class WentAside(Message, frozen=True):
    """`size` bytes of device memory are given back and kept, now; 0: none, and `why`. Copying took `copied` seconds of that."""

    ticket: int
    size: int
    why: str = ""
    copied: float = 0.0


class CameBack(Message, frozen=True):
    """It is all back; else `why` it is not yet, and nothing is lost: it is asked for again. Copying took `copied` seconds."""

    ticket: int
    why: str = ""
    copied: float = 0.0
