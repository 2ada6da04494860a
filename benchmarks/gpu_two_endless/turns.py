"""Who had the GPU when, told from what two jobs counted. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """What both had counted at one moment."""

    at: float
    counts: tuple[int, int]


def begins(points: Sequence[Point]) -> list[int]:
    """Return the points at which a round of turns begins: the first job goes on after the other had its turn.

    The first of them is where the work begins; so from any of them to any other both had equally many turns.
    """
    found: list[int] = []
    last = first = -1
    for number, (one, other) in enumerate(itertools.pairwise(points)):
        moved = [b > a for a, b in zip(one.counts, other.counts, strict=True)]
        if sum(moved) != 1:
            continue  # nobody, or a change within so short a time
        who = moved.index(True)
        if first < 0:
            first = who
        if who == first and last != first:
            found.append(number)
        last = who
    return found


def start(points: Sequence[Point]) -> Point | None:
    """Return the last point before anything was done; None while nothing is."""
    return next((a for a, b in itertools.pairwise(points) if b.counts != a.counts), None)


def between(one: Point, other: Point) -> list[int]:
    """Return what each did from one point to the other."""
    return [b - a for a, b in zip(one.counts, other.counts, strict=True)]


def alone(points: Sequence[Point]) -> float:
    """Return the iterations a second of the first job in its first turn, before the other one had any."""
    until = [point for point in points if min(point.counts) == min(points[0].counts)]
    moving = [a for a, b in itertools.pairwise(until) if b.counts != a.counts]
    if len(moving) < 2:
        return 0.0
    return sum(between(moving[0], moving[-1])) / (moving[-1].at - moving[0].at)


def parts(done: Sequence[int]) -> list[float]:
    """Return the part of each, in percent; nothing was done: nothing for either."""
    return [100 * one / max(1, sum(done)) for one in done]
