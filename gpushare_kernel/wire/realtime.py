"""What a real-time job says of itself: the task whose deadline is to be proven. Times in seconds."""

from __future__ import annotations

from msgspec import Struct


class RealtimeLayer(Struct, frozen=True, omit_defaults=True):
    """One piece of work that nothing interrupts: its costs by node type (`c2`, `c2g1`), the longest and the shortest measured."""

    worst: dict[str, float]
    best: dict[str, float] = {}
    transfer: float = 0.0
    name: str = ""


class RealtimeTask(Struct, frozen=True, omit_defaults=True):
    """A chain of layers, released at most once in `period`, done `deadline` later. A larger `weight` comes first."""

    name: str
    period: float
    deadline: float
    layers: tuple[RealtimeLayer, ...]
    weight: float = 1.0
    jitter: float = 0.0


class RealtimePlacement(Struct, frozen=True, omit_defaults=True):
    """Where an admitted real-time job runs: node types in pipeline order, its stages (node, first layer, layer after the last), what was proven.

    `bound` is how long after a release it is done at the latest; `absorbs` how long others' work may take to stop with that.
    """

    configuration: tuple[str, ...]
    stages: tuple[tuple[int, int, int], ...]
    bound: float
    absorbs: float
