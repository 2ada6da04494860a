"""How a machine can be divided into nodes: Algorithm 2 of Xiang and Kim (RTSS 2019), enumerated directly.

The paper permutes all cores and GPUs, cuts the rows and keeps what is valid. For cores of one kind that is: each split of
the cores into k ordered parts (k - 1 cuts), times each choice of the parts that have a GPU. All cores and GPUs are always
used; the order is that of the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

from gpushare_kernel.realtime.model import NodeType

Configuration = tuple[NodeType, ...]


def count(cpus: int, gpus: int, max_nodes: int) -> int:
    """Return how many configurations there are: the sum over k of C(k, gpus) * C(cpus - 1, k - 1)."""
    return sum(comb(k, gpus) * comb(cpus - 1, k - 1) for k in _lengths(cpus, gpus, max_nodes))


def configurations(cpus: int, gpus: int, max_nodes: int) -> Iterator[Configuration]:
    """Yield every configuration once: few nodes first, then by where the cores are cut, then by where the GPUs are."""
    for k in _lengths(cpus, gpus, max_nodes):
        for cuts in combinations(range(1, cpus), k - 1):
            sizes = [end - start for start, end in pairwise((0, *cuts, cpus))]
            yield from _with_gpus(sizes, gpus)


def coarse(cpus: int, gpus: int, max_nodes: int) -> Iterator[Configuration]:
    """Yield a small part of them, in the same order: each node has 1, 2, 4, 8, ... cores.

    Where so few nodes cannot have that (7 cores in 2), the largest has the rest: there is one of each number of nodes.
    """
    powers = [1 << n for n in range(cpus.bit_length())]
    for k in _lengths(cpus, gpus, max_nodes):
        seen: set[tuple[int, ...]] = set()
        for parts in _rising(powers, k - 1, cpus):
            rest = cpus - sum(parts)
            if rest < (parts[-1] if parts else 1) or (rest not in powers and k >= cpus.bit_count()):
                continue
            for place in range(k):
                seen.update(_orders((*parts[:place], rest, *parts[place:])))
        for sizes in sorted(seen):
            yield from _with_gpus(sizes, gpus)


def neighbours(configuration: Configuration) -> Iterator[Configuration]:
    """Yield what is one step away: a core moved to another node, or two adjacent nodes changed over."""
    for giver in range(len(configuration)):
        if configuration[giver].cpus == 1:
            continue
        for taker in range(len(configuration)):
            if taker != giver:
                nodes = list(configuration)
                nodes[giver] = NodeType(nodes[giver].cpus - 1, nodes[giver].gpus)
                nodes[taker] = NodeType(nodes[taker].cpus + 1, nodes[taker].gpus)
                yield tuple(nodes)
    for first in range(len(configuration) - 1):
        nodes = list(configuration)
        nodes[first], nodes[first + 1] = nodes[first + 1], nodes[first]
        if nodes != list(configuration):
            yield tuple(nodes)


def _lengths(cpus: int, gpus: int, max_nodes: int) -> range:
    return range(max(1, gpus), min(cpus, max_nodes) + 1)


def _with_gpus(sizes: list[int] | tuple[int, ...], gpus: int) -> Iterator[Configuration]:
    for places in combinations(range(len(sizes)), gpus):
        yield tuple(NodeType(cpus, int(k in places)) for k, cpus in enumerate(sizes))


def _rising(powers: list[int], parts: int, most: int) -> Iterator[tuple[int, ...]]:
    """Yield every row of `parts` of the powers, none smaller than the one before it, whose sum is below `most`."""
    if parts == 0:
        yield ()
        return
    for at, power in enumerate(powers):
        if power * parts >= most:
            return
        for more in _rising(powers[at:], parts - 1, most - power):
            yield (power, *more)


def _orders(parts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield each different order of `parts` once."""
    if not parts:
        yield ()
        return
    for part in sorted(set(parts)):
        at = parts.index(part)
        for more in _orders((*parts[:at], *parts[at + 1 :])):
            yield (part, *more)
