"""Which rows there are, what each takes, and which of them a call still has time for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

TESTS, PARKING_TESTS = "tests", "tests_parking"
"""Rows that are tests: those of parking, which no default relies on yet, apart from the others."""
_SLACK = 30.0
"""Seconds that a row may take beyond twice its estimate before it is ended."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its folder (tests have none), and the seconds it takes as measured or estimated, starts included."""

    name: str
    seconds: float
    quick: float = 45.0

    def takes(self, *, quick: bool) -> float:
        """Return the seconds to plan with."""
        return min(self.quick, self.seconds) if quick else self.seconds


ROWS = (
    Row(TESTS, 290),
    Row("gpu_saturating", 380, quick=90),
    Row("gpu_shares", 120),
    Row("gpu_users", 90),
    Row("gpu_launch_bound", 100),
    Row("gpu_mixes", 465, quick=120),
    Row("gpu_alone", 170),
    Row("gpu_short_cell", 75),
    Row("gpu_lane_mates", 110),
    Row("gpu_terminal_hog", 80),
    Row("gpu_plain_cell", 75),
    Row("gpu_oom", 45),
    Row("gpu_unexplained_pauses", 75),
    Row("gpu_three_trainings", 70),
    Row("gpu_resident_models", 150),
    Row("gpu_switching", 45),
    Row("gpu_frameworks", 110),
    Row("gpu_arrival", 90),
    Row("gpu_pack", 300, quick=60),
    Row("gpu_live_policies", 270, quick=60),  # one round, as it is by default
    Row("gpu_realtime", 260, quick=120),
    Row("gpu_realtime_nodes", 480, quick=240),
    Row("gpu_nwv", 60, quick=60),
    Row(PARKING_TESTS, 430),
    Row("gpu_parking", 400, quick=120),
    Row("gpu_arena", 130, quick=90),
    Row("gpu_warm", 200, quick=90),
    Row("gpu_parked_rounds", 230, quick=90),
    Row("gpu_parked_cell", 80, quick=60),
    Row("gpu_two_endless", 290, quick=130),
)
"""All rows, in the order of the figures table."""


def chosen(names: Sequence[str], rows: Sequence[Row] = ROWS) -> list[Row]:
    """Return the rows of these names, in the table's order; all where none is named.

    Raises
    ------
    ValueError
        Where a name means no row.
    """
    known = {row.name: row for row in rows}
    full = [name if name in known else f"gpu_{name}" for name in names]
    unknown = [name for name, tried in zip(names, full, strict=True) if tried not in known]
    if unknown:
        msg = f"there is no row {', '.join(unknown)}. There are {', '.join(known)}."
        raise ValueError(msg)
    return [row for row in rows if not names or row.name in full]


@dataclass(frozen=True, slots=True)
class Budget:
    """The time of one call. `end` is the moment (monotonic clock) at which nothing may run any more."""

    end: float
    quick: bool = False

    def left(self, now: float) -> float:
        """Return the seconds that are left."""
        return max(0.0, self.end - now)

    def fits(self, row: Row, now: float) -> bool:
        """Say whether a row may be started now."""
        return row.takes(quick=self.quick) <= self.left(now)

    def limit(self, row: Row, now: float) -> float:
        """Return the seconds after which a row that is started now is ended."""
        return min(self.left(now), 2 * row.takes(quick=self.quick) + _SLACK)


@dataclass(slots=True)
class Plan:
    """The rows of one call: those that are done already are passed over, those that do not fit are left."""

    rows: Sequence[Row]
    done: Collection[str]
    budget: Budget

    def waiting(self) -> list[Row]:
        """Return the rows that have no result yet."""
        return [row for row in self.rows if row.name not in self.done]

    def next(self, tried: Collection[str], now: float) -> Row | None:
        """Return the first row that was not tried in this call and fits; a short one may pass a long one."""
        return next(self._fitting(tried, now), None)

    def left(self, tried: Collection[str]) -> list[Row]:
        """Return the rows that are for another call."""
        return [row for row in self.waiting() if row.name not in tried]

    def _fitting(self, tried: Collection[str], now: float) -> Iterator[Row]:
        return (row for row in self.left(tried) if self.budget.fits(row, now))
