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
        self.sizes: dict[ProcessKey, int] = {}

    def add(self, key: ProcessKey, how: Hold = Hold.SIGNAL) -> None:
        """Put a process on record."""
        assert key not in self.hows
        self.hows[key] = how
        (self.workers if how is Hold.WORKER else self.keys).append(key)

    def change(self, key: ProcessKey, how: Hold, size: int = 0) -> None:
        """Note that it stands still in another way."""
        of_worker = {Hold.WORKER, Hold.MOVER}
        assert (self.hows[key] in of_worker) == (how in of_worker)
        self.hows[key] = how
        self.sizes[key] = size

    def size(self, key: ProcessKey) -> int:
        """Return what was noted with it."""
        return self.sizes.get(key, 0)

    def remove(self, key: ProcessKey) -> None:
        """Take it off the record."""
        how = self.hows.pop(key)
        self.sizes.pop(key, None)
        (self.workers if how in {Hold.WORKER, Hold.MOVER} else self.keys).remove(key)

    def held(self, *hows: Hold) -> Sequence[ProcessKey]:
        """Return who is on record."""
        wanted = hows or (Hold.SIGNAL, Hold.LOCK)
        return [key for key, how in self.hows.items() if how in wanted]
