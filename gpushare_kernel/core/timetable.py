"""Which entry of a timetable holds at a minute of the week. Minutes count from Monday, 00:00, by the clock on the wall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DAY = 24 * 60
WEEK = 7 * DAY


@dataclass(frozen=True, slots=True)
class Period:
    """Every week on these `days` (0 is Monday), from the minute `begins` to the minute `ends` of the day.

    One that ends where it begins, or before, goes on into the next day: it belongs to the day on which it begins.
    """

    days: frozenset[int]
    begins: int
    ends: int

    def covers(self, minute: int) -> bool:
        """Whether the `minute` of the week lies in it."""
        length = (self.ends - self.begins) % DAY or DAY
        starts = (day * DAY + self.begins for day in self.days)
        return any((minute - start) % WEEK < length for start in starts)


def in_force(periods: Sequence[Period], minute: int) -> int | None:
    """Return which of `periods` holds at this `minute` of the week: the first that covers it; None where none does."""
    return next((n for n, period in enumerate(periods) if period.covers(minute)), None)
