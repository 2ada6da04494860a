"""Tasks as the analysis reckons with them: whole nanoseconds, sums from the first layer on, one table for each node type.

Whole numbers, so that the order of additions changes nothing and no bound is too low by a rounding: costs are rounded up,
least costs, periods and deadlines down.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import ceil, floor

from gpushare_kernel.realtime.model import Kind, NodeType, Task
from gpushare_kernel.realtime.taskset import Taskset

SECOND = 1_000_000_000
_DIGITS = 3
"""Of a nanosecond: what a float says beyond them is noise of its own."""


def up(seconds: float) -> int:
    """Return nanoseconds, rounded up."""
    return ceil(round(seconds * SECOND, _DIGITS))


def down(seconds: float) -> int:
    """Return nanoseconds, rounded down."""
    return floor(round(seconds * SECOND, _DIGITS))


@dataclass(frozen=True, slots=True)
class Table:
    """One task on one node type. Costs have the overhead of a layer in them; 0 for a layer that cannot run there."""

    worst: list[int]
    least: list[int]
    #: Sums: `total[n]` is what the first n layers take, `total_least[n]` at least.
    total: list[int]
    total_least: list[int]
    #: `start[n]`: the earliest layer from which on all layers before the n-th can run here.
    start: list[int]
    #: The longest layer that can run here, with the transfer before it; 0 where none can.
    longest: int


@dataclass(frozen=True, slots=True)
class Work:
    """A task in nanoseconds. `queue` is what it costs to pass a job of it to a node."""

    name: str
    realtime: bool
    weight: float
    period: int
    deadline: int
    jitter: int
    queue: int
    transfer: list[int]
    most_transfer: int
    tables: dict[NodeType, Table]
    nowhere: Table

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return len(self.transfer)

    def on(self, kind: NodeType) -> Table:
        """Return its costs on a node type."""
        return self.tables.get(kind, self.nowhere)


def works(taskset: Taskset) -> list[Work]:
    """Return all tasks, by name: in which order they were written changes nothing."""
    nominal = max(task.period or 0.0 for task in taskset.tasks)
    tasks = sorted(taskset.tasks, key=lambda task: task.name)
    return [_work(task, taskset, nominal) for task in tasks]


def _work(task: Task, taskset: Taskset, nominal: float) -> Work:
    """A BE task without a period is taken to come as often as the slowest that has one."""
    has_gpus = (
        taskset.gpus > 0
    )  # one memory for all cores: without a GPU nothing is brought anywhere
    transfer = [up(layer.transfer) if has_gpus else 0 for layer in task.layers]
    kinds = {kind for layer in task.layers for kind in layer.worst}
    start = up(taskset.overhead.layer)
    return Work(
        name=task.name,
        realtime=task.kind is Kind.RT,
        weight=task.weight,
        period=max(1, down(task.period or nominal)),
        deadline=down(task.deadline or 0.0),
        jitter=up(task.jitter),
        queue=up(taskset.overhead.job),
        transfer=transfer,
        most_transfer=max(transfer),
        tables={kind: _table(task, kind, start, transfer) for kind in sorted(kinds)},
        nowhere=_table(task, None, start, transfer),
    )


def _table(task: Task, kind: NodeType | None, start: int, transfer: list[int]) -> Table:
    layers = task.layers
    runs = [kind in layer.worst for layer in layers]
    worst = [up(layer.worst[kind]) + start if kind in layer.worst else 0 for layer in layers]  # type: ignore[index]
    least = [down(layer.best.get(kind, 0.0)) if kind is not None else 0 for layer in layers]
    longest = [
        cost + brought if can else 0
        for cost, brought, can in zip(worst, transfer, runs, strict=True)
    ]
    starts = [0]
    for place, can in enumerate(runs):
        starts.append(starts[-1] if can else place + 1)
    return Table(
        worst=worst,
        least=least,
        total=[0, *accumulate(worst)],
        total_least=[0, *accumulate(least)],
        start=starts,
        longest=max(longest),
    )
