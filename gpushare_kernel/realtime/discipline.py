"""What becomes of a task whose layer took longer than when it was measured.

One with a deadline loses its class (`conduct.py`). Best effort waits, where the deadlines beside it have no room for what it
took (I7): one miss at most is its fault. It is tried again after a while, after twice as long each time, and at once when
the deadlines are gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gpushare_kernel.realtime import orders
from gpushare_kernel.realtime.model import Kind
from gpushare_kernel.realtime.tenant import Tenant

FIRST, LONGEST = 30.0, 600.0
"""Seconds until it is tried again: the first time, and at most."""


class Discipline:
    """Which best effort waits, and until when (seconds, monotonic clock). `spare` is the room that deadlines leave (seconds)."""

    def __init__(self) -> None:
        self.spare = 0.0
        self.until: dict[int, float] = {}
        self._tries: Counter[int] = Counter()

    def overran(
        self, tenant: Tenant, said: orders.Overran, at: float, *, promised: bool
    ) -> tuple[str | None, orders.Order | None]:
        """Note it; return what its user is told, and what the nodes are. `promised`: there are deadlines that somebody counts on."""
        lost = tenant.conduct.overran(said.number)
        one = said.first == said.layer
        name = tenant.chain.pieces[said.layer].name
        which = f"layer {said.layer} ({name})" if one else f"layers {said.first} to {said.layer} ({name})"  # fmt: skip
        where = f"{which} of {tenant.task.name}"
        longer = f"{'is' if one else 'are'} still running after" if said.running else "took"
        text = f"{where} {longer} {said.took * 1000:.4g} ms on node {said.node}, at most {said.worst * 1000:.4g} when {'it was' if one else 'they were'} measured."
        if lost:
            text = tenant.note(f"{text} Its deadline is not promised until it behaves again.")
            return tenant.telling.lost(text, at), orders.Reclass(tenant.number, Kind.BE)
        excess = said.took - said.worst
        held = promised and excess > self.spare  # best effort, or a task that has lost its class
        if held and tenant.number not in self.until:
            self.until[tenant.number] = at + self._seconds(tenant.number)
            text = f"{text} The deadlines beside it have room for {self.spare * 1000:.4g} ms more: it waits until they have ended, and is tried again now and then."
            return tenant.note(text), orders.Bar(tenant.number, on=True)
        tenant.note(text)
        return None, None

    def over(self, at: float) -> list[orders.Bar]:
        """Let those go, once, that are to be tried again now."""
        return self._let_go(task for task, until in self.until.items() if until <= at)

    def clear(self) -> list[orders.Bar]:
        """No deadline is left: let everybody go, and forget what they did."""
        self._tries.clear()
        return self._let_go(self.until)

    def forget(self, task: int) -> None:
        """`task` is gone."""
        self.until.pop(task, None)
        self._tries.pop(task, None)

    def _let_go(self, tasks: Iterable[int]) -> list[orders.Bar]:
        found = [*tasks]
        for task in found:
            del self.until[task]
        return [orders.Bar(task, on=False) for task in found]

    def _seconds(self, task: int) -> float:
        seconds = min(LONGEST, FIRST * 2.0 ** min(self._tries[task], 10))
        self._tries[task] += 1
        return seconds
