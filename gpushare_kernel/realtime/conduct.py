"""Whether a task keeps to what was measured of it: one that overruns has no deadline promised until it behaves again.

Pure. The others' bounds were proven with what this task was measured to take, so it is the one that loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from gpushare_kernel.realtime.model import Kind

QUIET = 10.0
"""Seconds without a line, after one that told of a lost class or of one had again."""
AMENDS = 3
"""Jobs in a row without an overrun, after which a task has its class again."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a pipeline's user is told: `at` is the machine's monotonic clock in seconds."""

    at: float
    text: str


class Telling:
    """Which of losing and having again the class its user is told: a line in `QUIET` seconds. All of it is in the report.

    Who had it again without having been told that it was lost hears neither; a loss that lasts is told in the end.
    """

    def __init__(self) -> None:
        self._last = -inf
        self._told = False
        self._kept_back = ""

    def lost(self, text: str, at: float) -> str | None:
        """It has lost its class; return what is told now."""
        self._told = False
        self._kept_back = text
        return self.overdue(at)

    def overdue(self, at: float) -> str | None:
        """Return what was kept back and is told now: it still has no class."""
        text = self._kept_back
        if not text or at - self._last < QUIET:
            return None
        self._last, self._told, self._kept_back = at, True, ""
        return text

    def kept(self, text: str, at: float) -> str | None:
        """It has its class again; return what is told now."""
        self._kept_back = ""
        if not self._told:
            return None
        self._last, self._told = at, False
        return text


@dataclass(frozen=True, slots=True)
class Limit:
    """What a layer may take: `seconds`. Beyond it layers from `first` to it are to blame, which took `spent` before it and had `worst` in all."""

    seconds: float
    first: int
    spent: float
    worst: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a job with a deadline may take of a node: what the bounds were proven with, and no layer by itself (P6).

    All of them together have what was measured of all; those before the last piece what was measured of those; and no piece
    may be longer than the longest. A layer that is quick so leaves its time to the others: bounds ask for no more.

    Attributes
    ----------
    first
        The stage's first layer.
    worst
        Seconds by layer of the stage.
    pieces
        Whether a weightier job may come between its layers; else all of it is one piece.
    """

    first: int
    worst: Sequence[float]
    pieces: bool = True

    def has(self, layer: int) -> bool:
        """Tell whether `layer` is of the stage."""
        return self.first <= layer < self.first + len(self.worst)

    def limit(self, layer: int, spent: float, *, blamed: bool) -> Limit:
        """Return what `layer` may take, after the stage's layers before it took `spent`; `blamed`: the job has overrun already."""
        longest = max(self.worst) if self.pieces else sum(self.worst)
        is_last = layer == self.first + len(self.worst) - 1
        together = sum(self.worst if is_last or not self.pieces else self.worst[:-1])
        if blamed or longest <= together - spent:
            return Limit(longest, layer, 0.0, self.worst[layer - self.first])
        return Limit(together - spent, self.first, spent, together)


@dataclass(slots=True)
class Conduct:
    """One task's conduct."""

    kind: Kind
    demoted: bool = False
    overruns: int = 0
    losses: int = 0
    good: int = 0
    _bad: set[int] = field(default_factory=set)

    @property
    def runs_as(self) -> Kind:
        """The class of the jobs that are released now."""
        return Kind.BE if self.demoted else self.kind

    def overran(self, number: int) -> bool:
        """Job `number` took too long; tell whether the task loses its class by it."""
        if number not in self._bad:
            self._bad.add(number)
            self.overruns += 1
        self.good = 0
        if self.kind is Kind.BE or self.demoted:
            return False
        self.demoted = True
        self.losses += 1
        return True

    def ended(self, number: int, left: int = 0) -> bool:
        """Job `number` is over, and `left` are under way; tell whether the task has its class again.

        Not before the last of those that lost it is over: a piece of it could be in others' way beside jobs that have it, and
        bounds count a task once.
        """
        if number in self._bad:
            self._bad.discard(number)
            return False
        if not self.demoted:
            return False
        self.good += 1
        if self.good < AMENDS or left:
            return False
        self.demoted, self.good = False, 0
        return True
