"""Strips of signs to scale, which any text shows: the last seconds, and the memory of a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_HEIGHTS = "▁▂▃▄▅▆▇█"
_NOTHING = "·"
_STOOD = {"drain": "░", "pause": "=", "park": "≡"}
_KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def strip(spans: Iterable[Sequence[Any]], window: float, width: int) -> str:
    """Return a row of time, the oldest first: how much of each moment it ran, or why it stood still."""
    cell = window / width
    spent: list[dict[str, float]] = [{} for _ in range(width)]
    for began, ended, kind in spans:
        start, end = (window - began) / cell, (window - ended) / cell
        for number in range(max(0, int(start)), min(width, int(end) + 1)):
            share = min(end, number + 1) - max(start, number)
            if share > 0:
                spent[number][kind] = spent[number].get(kind, 0.0) + share
    return "".join(map(_sign, spent))


def _sign(spent: dict[str, float]) -> str:
    kind = max(spent, key=lambda one: (spent[one], one != "turn"), default=None)
    if kind is None:
        return _NOTHING
    if kind in _STOOD:
        return _STOOD[kind]
    return _HEIGHTS[min(len(_HEIGHTS) - 1, int(spent[kind] * len(_HEIGHTS)))]


def share(used: float, fair: float, width: int) -> str:
    """Return a bar of what is used of all, with a mark at what is fair."""
    cells = ["█" if number + 0.5 < used * width else _NOTHING for number in range(width)]
    cells[min(width - 1, int(fair * width))] = "│"
    return "".join(cells)


def keys(segments: Sequence[dict[str, Any]]) -> list[str]:
    """Return one sign for each piece of memory: free is a dot."""
    letters = iter(_KEYS)
    return ["." if one["kind"] == "free" else next(letters, "+") for one in segments]


def shares(sizes: Sequence[int], width: int) -> list[int]:
    """Return how many of `width` cells each size has: to scale, and none that is something has none."""
    total = sum(sizes)
    if not total:
        return [0 for _ in sizes]
    exact = [size * width / total for size in sizes]
    cells = [max(1 if size else 0, int(one)) for size, one in zip(sizes, exact, strict=True)]
    left = width - sum(cells)
    while left:
        step = 1 if left > 0 else -1
        candidates = [n for n, count in enumerate(cells) if sizes[n] and (step > 0 or count > 1)]
        if not candidates:
            break
        chosen = max(candidates, key=lambda n: step * (exact[n] - cells[n]))
        cells[chosen] += step
        left -= step
    return cells
