"""Intents for tests."""

from __future__ import annotations

from collections.abc import Sequence

from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold


class Record:
    """Intents in lists; recording one twice, or removing one that is not there, fails."""

    def __init__(self) -> None:
        #: Who is paused, and the workers that hold locks.
        self.keys: list[ProcessKey] = []
        self.workers: list[ProcessKey] = []
        self.hows: dict[ProcessKey, Hold] = {}

    def add(self, key: ProcessKey, how: Hold = Hold.SIGNAL) -> None:
        """Put a process on record."""
        assert key not in self.hows
        self.hows[key] = how
        (self.workers if how is Hold.WORKER else self.keys).append(key)

    def remove(self, key: ProcessKey) -> None:
        """Take it off the record."""
        (self.workers if self.hows.pop(key) is Hold.WORKER else self.keys).remove(key)

    def held(self, *hows: Hold) -> Sequence[ProcessKey]:
        """Return who is on record."""
        wanted = hows or (Hold.SIGNAL, Hold.LOCK)
        return [key for key, how in self.hows.items() if how in wanted]
