"""What a person does to a notebook from outside, and what came of it. Sizes in bytes, times in seconds."""

from __future__ import annotations

from gpushare_kernel.core.values import SessionId
from gpushare_kernel.wire.handshake import Message


class PauseNotebook(Message, frozen=True):
    """Pause what a notebook of mine runs on the device. `notebook` as in `Release`. Reply: `PausedNow`, or `Failure` where it runs nothing."""

    notebook: str | None = None


class ResumeNotebook(Message, frozen=True):
    """Let a notebook of mine run again that `PauseNotebook` paused. `notebook` as in `Release`. Reply: `ResumedNow`."""

    notebook: str | None = None


class ParkNotebook(Message, frozen=True):
    """Set the device memory of a notebook of mine aside, with its state kept. `notebook` as in `Release`. Reply: `ParkedNow`, or `Failure` saying why it cannot be."""

    notebook: str | None = None


class UnparkNotebook(Message, frozen=True):
    """Put back what is set aside of a notebook of mine, as soon as there is room. `notebook` as in `Release`. Reply: `UnparkedNow`."""

    notebook: str | None = None


class AskHolder(Message, frozen=True):
    """A notebook of mine waits: ask this session, idle and not mine, to release what it holds. Reply: `AskedNow`."""

    session: SessionId


class PausedNow(Message, frozen=True):
    """What `PauseNotebook` paused, by notebook name, and for how many seconds at most."""

    names: tuple[str, ...]
    seconds: float


class ParkedNow(Message, frozen=True):
    """What `ParkNotebook` sets aside, by notebook name, and its bytes; `after_cell`: as soon as what they run has ended."""

    names: tuple[str, ...]
    size: int
    after_cell: bool = False


class UnparkedNow(Message, frozen=True):
    """What `UnparkNotebook` puts back, by notebook name; empty: nothing of them is set aside. `waits`: there is no room yet."""

    names: tuple[str, ...]
    waits: bool = False


class ResumedNow(Message, frozen=True):
    """What `ResumeNotebook` let run again, by notebook name; empty: its owner had paused none of them."""

    names: tuple[str, ...]


class AskedNow(Message, frozen=True):
    """0.0: it was asked. Else it was asked before, and can be again in so many seconds."""

    again: float
