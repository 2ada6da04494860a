"""What parking and restoring cost: a guess at first, then what was measured (seconds, bytes)."""

from __future__ import annotations

from gpushare_kernel.core.config import Config
from gpushare_kernel.core.values import GiB

TELLING = GiB // 4
"""A move of less than this (bytes) says little about larger ones."""
_LEARNS = 0.3
_LEAST, _MOST = 0.1, 10.0
"""A move that took so much less or more than was thought counts as this much."""


class Speeds:
    """How long moves take on one device: a fixed part and one by size, both scaled by how long moves took of late."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._out = self._back = 1.0

    def out(self, size: int) -> float:
        """Return how long it takes to park `size` bytes."""
        return self._out * self._guess(size, self._config.park_speed)

    def back(self, size: int) -> float:
        """Return how long it takes to restore them."""
        return self._back * self._guess(size, self._config.restore_speed)

    def both(self, size: int) -> float:
        """Return how long it takes to park them and to restore them again."""
        return self.out(size) + self.back(size)

    def went(self, size: int, took: float) -> None:
        """A park took `took` seconds."""
        self._out = self._learn(self._out, self._guess(size, self._config.park_speed), size, took)

    def came(self, size: int, took: float) -> None:
        """A restore took `took` seconds."""
        guess = self._guess(size, self._config.restore_speed)
        self._back = self._learn(self._back, guess, size, took)

    def _guess(self, size: int, speed: float) -> float:
        return self._config.park_cost + size / speed if size else 0.0

    @staticmethod
    def _learn(factor: float, guess: float, size: int, took: float) -> float:
        if size < TELLING or took <= 0 or guess <= 0:
            return factor
        seen = min(max(took / guess, _LEAST), _MOST)
        return factor + _LEARNS * (seen - factor)
