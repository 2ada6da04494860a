"""Which pauses of a cell were explained by a line that it showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONG = 5.0
"""A pause longer than this (seconds) must be explained."""
_LATE = 2.0
"""Seconds after a pause in which the line that explains it may still come ("Was paused for 12 s")."""
_EXPLAINS = ("Waiting", "Waited", "paused")


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a cell showed, and when (monotonic clock)."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Pause:
    """A stretch without progress."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end - self.begin


def unexplained(pauses: Sequence[Pause], lines: Sequence[Line], long: float = LONG) -> list[Pause]:
    """Return the pauses over `long` seconds during which, or right after which, no line said why."""
    reasons = [line.at for line in lines if any(word in line.text for word in _EXPLAINS)]
    return [
        pause
        for pause in pauses
        if pause.seconds > long
        and not any(pause.begin <= at <= pause.end + _LATE for at in reasons)
    ]
