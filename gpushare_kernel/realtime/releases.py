"""When the simulation's jobs are released: plans that try to make jobs meet where it hurts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from gpushare_kernel.realtime.model import NodeType
from gpushare_kernel.realtime.work import Work

JOBS = 6
"""Jobs of a task in one episode, at most."""
_SLACK, _HALF = 0.25, 0.5


@dataclass(frozen=True, slots=True)
class Episode:
    """Releases (nanoseconds) of each task, a period apart at least, and how a job's times are drawn."""

    releases: list[list[int]]
    parts: Callable[[Random], Callable[[], float]]


def plan(
    chance: Random,
    tasks: Sequence[Work],
    routes: Mapping[str, Sequence[int]],
    configuration: Sequence[NodeType],
    now: int,
) -> Episode:
    """Draw one episode: one task is the victim, and the jobs of all others come to one of its nodes when it does."""
    longest = max(work.period for work in tasks)
    victim = chance.choice(tasks)
    node = chance.choice(sorted(set(routes[victim.name])))
    meet = now + 4 * longest
    scatter = chance.choice((0.0, 0.0, 0.02, 1.0))
    releases = []
    for work in tasks:
        way = _time_to(work, routes[work.name], configuration, node)
        if work.weight < victim.weight and chance.random() < _HALF:
            way += _into(chance, work, routes[work.name], configuration[node], node)
        first = meet - way + round(chance.uniform(-scatter, scatter) * work.period)
        if work is not victim and chance.random() < _SLACK:
            first -= work.period * chance.randint(0, 1)  # the one before is still under way
        steps = [_step(chance, work.period) for _ in range(chance.randint(1, JOBS) - 1)]
        first = max(first, now + longest)  # a period after the last job of the episode before
        releases.append([first + sum(steps[:n]) for n in range(len(steps) + 1)])
    return Episode(releases, chance.choice((_worst, _worst, _mixed, _extreme)))


def _time_to(work: Work, route: Sequence[int], configuration: Sequence[NodeType], node: int) -> int:
    """What its layers before `node` take, undisturbed and at worst."""
    found = 0
    for layer, at in enumerate(route):
        if at >= node:
            break
        found += work.on(configuration[at]).worst[layer]
    return found


def _into(chance: Random, work: Work, route: Sequence[int], kind: NodeType, node: int) -> int:
    """What its layers on `node` take before one of them, and a nanosecond of that: the victim comes when it has just begun."""
    here = [work.on(kind).worst[layer] for layer, at in enumerate(route) if at == node]
    return sum(here[: chance.randrange(len(here))]) + 1 if here else 0


def _step(chance: Random, period: int) -> int:
    return period + (round(chance.expovariate(4 / period)) if chance.random() < _SLACK else 0)


def _worst(_: Random) -> Callable[[], float]:
    return lambda: 1.0


def _mixed(chance: Random) -> Callable[[], float]:
    return chance.random


def _extreme(chance: Random) -> Callable[[], float]:
    """A job at its worst, or one that is as fast as it can be: the next comes close behind the one before."""
    part = float(chance.random() < 0.7)  # noqa: PLR2004
    return lambda: part
