"""Device seconds by user and day, and what of a budget is left. Days and weeks (from Monday) are those of the clock on the wall."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import date

from gpushare_kernel.broker.ledger import Ledger
from gpushare_kernel.core.values import UserId
from gpushare_kernel.wire.snapshot import BudgetView

KEPT = 14
"""Days on which anything was used that are remembered: the newest. By their number, not by their age: the clock on the wall may be weeks ahead for a moment."""


class Spending:
    """What each user has used today and this week; the ledger keeps it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._of: dict[tuple[UserId, int], float] = {}
        #: Device seconds in all up to which each user's are counted.
        self._seen: dict[UserId, float] = {}

    def begin(
        self,
        rows: Iterable[tuple[str, int, float]],
        totals: Iterable[tuple[UserId, float, float]],
    ) -> None:
        """Go on where a broker before us stopped: what it kept, and what everybody had used in all by then."""
        self._of = {(UserId(user), day): seconds for user, day, seconds in rows}
        self._seen = {user: seconds for user, _, seconds in totals}

    def note(self, totals: Iterable[tuple[UserId, float, float]]) -> None:
        """Everybody has used so many device seconds in all by now."""
        today = _today().toordinal()
        for user, _, seconds in totals:
            used = seconds - self._seen.get(user, 0.0)
            self._seen[user] = seconds
            if used > 0:
                total = self._of[user, today] = self._of.get((user, today), 0.0) + used
                self._ledger.spent(user, today, total)
        self._forget()

    def _forget(self) -> None:
        days = sorted({day for _, day in self._of})[:-KEPT]
        for user, day in [key for key in self._of if key[1] in days]:
            del self._of[user, day]
            self._ledger.spent_dropped(user, day)

    def budgets(
        self, user: UserId, day: float | None, week: float | None
    ) -> tuple[BudgetView, ...]:
        """Return what is left of a budget of so many seconds a day, and a week (None: there is none)."""
        today = _today()
        number, weekday = today.toordinal(), today.weekday()
        found = []
        for period, limit, days in (("day", day, 1), ("week", week, 7)):
            if limit is None:
                continue
            first = number if days == 1 else number - weekday
            used = sum(self._of.get((user, one), 0.0) for one in range(first, number + 1))
            found.append(BudgetView(period, limit, used, _until(date.fromordinal(first + days))))
        return tuple(found)


def _today() -> date:
    now = time.localtime()
    return date(now.tm_year, now.tm_mon, now.tm_mday)


def _until(day: date) -> float:
    """Return the seconds until the midnight at which `day` begins."""
    midnight = time.mktime((day.year, day.month, day.day, 0, 0, 0, 0, 0, -1))
    return max(0.0, midnight - time.time())
