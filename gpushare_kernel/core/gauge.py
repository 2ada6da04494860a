"""How demanding sessions are, told from how busy the device was: does one saturate it, leave some of it, or do nothing?

A session is measured while it has the device alone. In between, what was expected of those who had it is compared
with how busy it was: where they differ, somebody does other work than before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpushare_kernel.core.pace import Pace
from gpushare_kernel.core.records import Session

SATURATES, LIGHT = 0.85, 0.75
"""Part of the time that the device is busy with one session alone: from here on it saturates, below here it does not."""
IDLE = 0.05
"""Below this a session does next to nothing on the device: it is in nobody's way and stands beside the turns."""
DEEP, DEEP_TIMES = 0.0025, 3
"""A session that does not saturate drains within this (seconds); where it does not, so often, it is measured anew."""
IDLE_PAUSE = 60.0
"""Seconds at most after which those who are taken for idle are measured again, where the device is busier than expected."""
COMPARED, MISSING = 1.0, 0.12
"""Over so many seconds a device less busy by that part than expected says that somebody's work has changed."""
MOST = 0.97
"""How busy a saturated device says it is, gaps between kernels included."""


def unmeasured(session: Session, pace: Pace) -> bool:
    """Whether the demand of `session` is not known, or its work has changed since."""
    return session.demand is None or pace.stale


def is_light(session: Session, pace: Pace) -> bool:
    """Whether `session` is known to leave the device some time."""
    return session.demand is not None and session.demand < SATURATES and not pace.stale


def is_idle(session: Session) -> bool:
    """Whether `session` is known to do next to nothing."""
    return session.demand is not None and session.demand < IDLE


def taken(session: Session) -> float:
    """Return which part of the device `session` takes while it runs: all of it where it saturates it, gaps between kernels included."""
    demand = session.demand
    return 1.0 if demand is None or demand >= SATURATES else demand


def settled(before: float | None, utilization: float) -> float:
    """Return the demand that a measurement says: between the two bounds a session stays what it was."""
    if before is None or not LIGHT <= utilization < SATURATES:
        return utilization
    return SATURATES if before >= SATURATES else LIGHT


def drains_deep(pace: Pace, drain: float, *, light: bool) -> bool:
    """Take in how long `pace`'s work drained; say whether that is too long, too often, for one that is light."""
    pace.drain = drain if not pace.drain else (pace.drain + drain) / 2
    pace.deep = pace.deep + 1 if light and drain > DEEP else 0
    if pace.deep < DEEP_TIMES:
        return False
    pace.deep = 0
    return True


@dataclass(slots=True)
class Gauge:
    """How busy the device should have been, by what is known of those who had it, beside how busy it was."""

    #: Busy seconds, and over how long.
    expected: float = 0.0
    expected_for: float = 0.0
    seen: float = 0.0
    seen_for: float = 0.0
    looked: float = 0.0
    #: When those taken for idle may be looked at again, and how long that then waits.
    idle_again: float = 0.0
    idle_pause: float = COMPARED

    def had(self, demands: Iterable[float | None], seconds: float) -> None:
        """Sessions of these demands had the device for `seconds`; where one is not known, nothing is expected."""
        known = [*demands]
        told = [demand for demand in known if demand is not None]
        if len(told) == len(known):
            self.expected += seconds * min(MOST, sum(told))
            self.expected_for += seconds

    def missing(self, utilization: float, at: float) -> float | None:
        """Take in how busy it was; every `COMPARED` seconds return by how much less than expected."""
        passed, self.looked = at - self.looked, at
        self.seen += passed * utilization
        self.seen_for += passed
        if self.seen_for < COMPARED or not self.expected_for:
            return None
        missing = self.expected / self.expected_for - self.seen / self.seen_for
        self.anew()
        return missing

    def may_doubt_idle(self, at: float, *, any_idle: bool) -> bool:
        """Whether to look at those taken for idle, the device being busier than expected. By a stranger, perhaps: ever rarer."""
        if at < self.idle_again:
            return False
        self.idle_pause = min(2 * self.idle_pause, IDLE_PAUSE)
        self.idle_again = at + (self.idle_pause if any_idle else 0.0)
        return any_idle

    def somebody_new(self, at: float) -> None:
        """Whoever is new may be the one."""
        self.idle_pause, self.idle_again = COMPARED, at

    def anew(self) -> None:
        """Compare from here on."""
        self.expected = self.expected_for = self.seen = self.seen_for = 0.0
