"""What became of a pipeline's jobs: every response is kept, of very many the latest, and never without bound."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence

from gpushare_kernel.realtime.conduct import Event

MOST = 1_000_000
"""Responses that are kept, 8 bytes each. The longest is known of all, also of those that are not kept."""
_EVENTS = 100
DISTURBED = 0.001
"""Seconds without a core from which on a job counts as disturbed."""


class Responses:
    """Seconds, one for each job."""

    def __init__(self, most: int = MOST) -> None:
        self._kept = array("d")
        self._most = most
        self.count = 0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        if len(self._kept) < self._most:
            self._kept.append(seconds)
        else:
            self._kept[self.count % self._most] = seconds
        self.count += 1
        self.longest = max(self.longest, seconds)

    def kept(self) -> Sequence[float]:
        """Return a copy of those that are kept."""
        return array("d", self._kept)


class Record:
    """A pipeline's counters."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.responses = Responses()
        self.delivered = Responses()
        self.releases = self.failed = self.misses = self.delayed = self.skipped = self.moved = 0
        self.latest_release = self.longest_wait = 0.0
        self.disturbed = 0
        self.events: deque[Event] = deque(maxlen=_EVENTS)

    def done(self, response: float, delivered: float) -> None:
        """A job is done: seconds from its release to its result, and until that was in the user's hands."""
        self.responses.add(response)
        self.delivered.add(delivered)
        if self.deadline is not None and response > self.deadline:
            self.misses += 1

    def waited(self, seconds: float) -> None:
        """A job's layers had no core for so long, because somebody else was on it."""
        self.longest_wait = max(self.longest_wait, seconds)
        self.disturbed += seconds > DISTURBED

    def skip(self, ticks: int) -> None:
        """So many ticks passed without a release."""
        self.skipped += ticks

    def late(self, seconds: float) -> None:
        """A release came so much after its time: its source, or the interpreter, was not there."""
        self.latest_release = max(self.latest_release, seconds)
