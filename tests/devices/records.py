"""Intents for tests."""

from __future__ import annotations

from collections.abc import Sequence

from gpushare_kernel.core.values import ProcessKey


class Record:
    """Intents in a list; recording one twice, or removing one that is not there, fails."""

    def __init__(self) -> None:
        self.keys: list[ProcessKey] = []

    def add(self, key: ProcessKey) -> None:
        """Put a process on record."""
        assert key not in self.keys
        self.keys.append(key)

    def remove(self, key: ProcessKey) -> None:
        """Take it off the record."""
        self.keys.remove(key)

    def held(self) -> Sequence[ProcessKey]:
        """Return who is on record."""
        return list(self.keys)
