"""What is due when: deadlines of the core's own, and when it wants to hear how much everybody has used."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

MONITOR_ALONE = 1.0
MONITOR_SHARED = 0.25
"""How often those who run freely are looked at, in seconds."""


def backoff(first: float, longest: float, tries: int) -> float:
    """Return the seconds until the next try after `tries` in vain: `first`, twice as many each time, `longest` at most, however often it was tried."""
    return min(longest, first * 2.0 ** min(tries, 64))


class Deadlines:
    """A heap of things to do, and the wake that was last asked for. Time passes only by `meet`."""

    def __init__(self) -> None:
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._wake: float | None = None
        self._monitor: float | None = None

    def add(self, at: float, then: Callable[[float], None]) -> None:
        """Call `then` with the time of the first `meet` at `at` or later."""
        heappush(self._timers, (at, next(self._order), then))

    def meet(self, at: float) -> None:
        """A wake was answered: do what is due."""
        while self._timers and self._timers[0][0] <= at:
            heappop(self._timers)[2](at)
        if self._monitor is not None and self._monitor <= at:
            self._monitor = None
        self._wake = None  # it may have been this one: say again when the next is due

    def changed(
        self, at: float, *, frame: float | None, look: float | None, wanting: int
    ) -> tuple[float | None] | None:
        """Return the wake to ask for where it is another one than before, as a tuple (of None: no need).

        `frame` is when the frame of turns ends, `look` when the next plain cell is to be looked at; where no frame
        ends, the `wanting` sessions that run freely are looked at from time to time.
        """
        due = [when for when in (frame, look) if when is not None]
        if self._timers:
            due.append(self._timers[0][0])
        if frame is None and wanting:
            if self._monitor is None:
                self._monitor = at + (MONITOR_SHARED if wanting > 1 else MONITOR_ALONE)
            due.append(self._monitor)
        wake = max(at, min(due)) if due else None
        if wake == self._wake:
            return None
        self._wake = wake
        return (wake,)
