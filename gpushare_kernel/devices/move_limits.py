"""How long a checkpoint and a restore may take: for who asks for one, and for who waits until one is over without its broker."""

from __future__ import annotations

LEAST = 20.0
"""Seconds that a move may take whatever its size."""
OUT, BACK = 0.25e9, 0.5e9
"""Bytes a second that it must make: a seventh and a ninth of what was measured (1.8 and 4.4 GB/s)."""


def out_limit(size: int) -> float:
    """Return how long a checkpoint of `size` bytes may take (seconds)."""
    return LEAST + size / OUT


def back_limit(size: int) -> float:
    """Return how long a restore of `size` bytes may take (seconds)."""
    return LEAST + size / BACK
