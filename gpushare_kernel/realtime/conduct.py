"""Whether a task keeps to what was measured of it: one that overruns has no deadline promised until it behaves again.

Pure. The others' bounds were proven with what this task was measured to take, so it is the one that loses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpushare_kernel.realtime.model import Kind

AMENDS = 3
"""Jobs in a row without an overrun, after which a task has its class again."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a pipeline's user is told: `at` is the machine's monotonic clock in seconds."""

    at: float
    text: str


@dataclass(slots=True)
class Conduct:
    """One task's conduct."""

    kind: Kind
    demoted: bool = False
    overruns: int = 0
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
        return True

    def ended(self, number: int) -> bool:
        """Job `number` is over; tell whether the task has its class again."""
        if number in self._bad:
            self._bad.discard(number)
            return False
        if not self.demoted:
            return False
        self.good += 1
        if self.good < AMENDS:
            return False
        self.demoted, self.good = False, 0
        return True
