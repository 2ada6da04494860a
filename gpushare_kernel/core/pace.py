"""How fast a session goes on, by its own count: alone on the device, and beside others.

A session's share is its progress over its progress alone. Boundaries count progress; here they are put to the
kind of time in which they were met. What lies back longer than `MEMORY` seconds of such time fades.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MEMORY = 2.0
"""Seconds of one kind of time over which a rate is averaged."""
FRESH = 1.0
"""Seconds after which the latest stretch is compared with what was known: a change of phase shows in it."""
CHANGED = 0.3
"""By how much they must differ, as a part of the former."""
ENOUGH, ENOUGH_TIME = 8, 0.25
"""Boundaries, and seconds, from which a rate is known."""


@dataclass(slots=True)
class Rate:
    """Boundaries a second, in one kind of time."""

    count: float = 0.0
    seconds: float = 0.0
    _fresh_count: float = 0.0
    _fresh_seconds: float = 0.0

    @property
    def known(self) -> bool:
        """Whether enough was seen."""
        return self.count >= ENOUGH and self.seconds >= ENOUGH_TIME

    @property
    def value(self) -> float:
        """Boundaries a second; 0 where nothing was seen."""
        return self.count / self.seconds if self.seconds > 0 else 0.0

    def add(self, count: int, seconds: float) -> bool:
        """Take in a stretch; say whether it goes at another pace than before (then only the new one counts)."""
        self.count += count
        self.seconds += seconds
        self._fresh_count += count
        self._fresh_seconds += seconds
        if self.seconds > MEMORY:
            self.count *= MEMORY / self.seconds
            self.seconds = MEMORY
        if self._fresh_seconds < FRESH:
            return False
        fresh = self._fresh_count / self._fresh_seconds
        # One boundary more or less is no change: long iterations are counted in whole ones.
        off = abs(fresh - self.value) * self._fresh_seconds
        changed = self.known and off > max(1.5, CHANGED * self.value * self._fresh_seconds)
        if changed:
            self.count, self.seconds = self._fresh_count, self._fresh_seconds
        self._fresh_count = self._fresh_seconds = 0.0
        return changed

    def forget(self) -> None:
        """Begin anew."""
        self.count = self.seconds = self._fresh_count = self._fresh_seconds = 0.0


@dataclass(slots=True)
class Pace:
    """One session's rates, and how far it is behind its share."""

    #: Alone on the device, and beside all others who want it.
    solo: Rate = field(default_factory=Rate)
    beside: Rate = field(default_factory=Rate)
    #: Which of them the time since it came to its turn belongs to; None: to neither.
    rate: Rate | None = None
    #: Seconds with the device that no sample has told the count of yet.
    seconds: float = 0.0
    #: Boundaries met since its work began: where there are none, its progress cannot be seen.
    met: int = 0
    #: When it last had the device alone, and when its demand was last measured.
    solo_at: float = 0.0
    measured_at: float = 0.0
    #: Its demand is to be measured although one is known: its work has changed.
    stale: bool = False
    #: It was taken for idle, and was seen at work: what others did meanwhile they may have done beside it.
    woke: bool = False
    #: When its work began, and when its last work ended.
    began_at: float = -1e9
    worked_at: float = -1e9
    #: Seconds of the device alone by which its progress is behind its share (negative: ahead).
    lag: float = 0.0
    #: Seconds that its submitted work took to drain, smoothed.
    drain: float = 0.0
    deep: int = 0

    def take(self, steps: int) -> bool:
        """A sample tells of `steps` boundaries since the last one; say whether its pace has changed."""
        if steps and not self.met:
            # Its loop begins only now: what it did on the device before, uncounted, would make it look slow.
            self.solo.forget()
            self.beside.forget()
        self.met += steps
        seconds, self.seconds = self.seconds, 0.0
        return self.rate is not None and self.rate.add(steps, seconds)

    @property
    def seen(self) -> bool:
        """Whether its progress can be told from its boundaries."""
        return self.met > 0 and self.solo.known

    @property
    def ratio(self) -> float | None:
        """Its progress beside all others over its progress alone; None where not known."""
        if not (self.seen and self.beside.seconds >= ENOUGH_TIME):
            return None
        return self.beside.value / self.solo.value

    def forget(self) -> None:
        """Other work begins: how fast the former went on says nothing of it."""
        self.solo.forget()
        self.beside.forget()
        self.met, self.lag, self.deep, self.drain = 0, 0.0, 0, 0.0
