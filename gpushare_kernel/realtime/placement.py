"""Where tasks run: the nodes, in pipeline order, and each task's stages. Who decides it is an `Admission`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from gpushare_kernel.core.errors import Refused
from gpushare_kernel.realtime.model import NodeType, Stage, Task


@dataclass(frozen=True, slots=True)
class Placement:
    """The nodes in pipeline order, the stages of each task by its name, and what response is proven for it (seconds).

    `spare` is by how much a best-effort layer may take longer than measured, with every deadline kept (seconds).
    """

    nodes: tuple[NodeType, ...]
    stages: Mapping[str, tuple[Stage, ...]]
    bounds: Mapping[str, float] = field(default_factory=dict)
    spare: float = 0.0


class Admission(Protocol):
    """Decides whether a task comes in, and where everybody runs then."""

    def types(self, cores: int, gpus: int) -> Sequence[NodeType]:
        """Return the node types that it may use on such a machine; layers are measured on each."""

    def admit(self, task: Task, others: Sequence[Task]) -> Placement:
        """Return where `task` and `others` run.

        Raises
        ------
        Refused
            Where a deadline would not be certain, with the numbers.
        """

    def leaves(self, task: Task) -> None:
        """Take back what was promised to `task`, if anything was."""

    def promised(self) -> Mapping[str, float | None]:
        """Return what is promised now to each task of which somebody else may change that; None: nothing any more."""

    def grid(self, task: Task, first: float | None) -> None:
        """Take in when the jobs of `task` are released: at `first` (monotonic clock) and every period from then on; None: nobody knows."""

    def released(self, task: Task) -> None:
        """Take in that a job of `task` is released now."""

    def done(self, task: Task, left: int) -> None:
        """Take in that one is done, and `left` that were released are not."""


class Alone:
    """Tells nobody: nobody stands aside for these nodes."""

    def leaves(self, task: Task) -> None:
        """Nothing was promised elsewhere."""

    def promised(self) -> Mapping[str, float | None]:
        """Nothing was promised elsewhere."""
        return {}

    def grid(self, task: Task, first: float | None) -> None:
        """Nobody stands aside."""

    def released(self, task: Task) -> None:
        """Nobody stands aside."""

    def done(self, task: Task, left: int) -> None:
        """Nobody stands aside."""


class OneNode(Alone):
    """All layers on one node of all cores: what needs no analysis, and promises nothing.

    A job of several best-effort layers gives way at each layer all the same.
    """

    def types(self, cores: int, gpus: int) -> Sequence[NodeType]:
        """Return the one type there is."""
        return (NodeType(cores, min(1, gpus)),)

    def admit(self, task: Task, others: Sequence[Task]) -> Placement:
        """Take anybody in whose layers run on the one type."""
        kinds = {kind for layer in task.layers for kind in layer.worst}
        if len(kinds) != 1:
            msg = f"task {task.name}: all layers must run on one node type, and it has {_listed(sorted(kinds))}. Measure it again."
            raise Refused(msg)
        tasks = (*others, task)
        return Placement(
            tuple(kinds), {one.name: (Stage(0, 0, len(one.layers) - 1),) for one in tasks}
        )


class Fixed(Alone):
    """Nodes and stages by hand: for experiments, and for tasks whose analysis was done elsewhere.

    `stages` are by task name; a task that is not named has all its layers on the last node.
    """

    def __init__(
        self,
        nodes: Sequence[NodeType],
        stages: Mapping[str, Sequence[Stage]] | None = None,
        bounds: Mapping[str, float] | None = None,
    ) -> None:
        self.nodes = tuple(nodes)
        self.stages = {name: tuple(given) for name, given in (stages or {}).items()}
        self.bounds = dict(bounds or {})

    def types(self, cores: int, gpus: int) -> Sequence[NodeType]:
        """Return the types of its nodes."""
        del cores, gpus
        return tuple(dict.fromkeys(self.nodes))

    def admit(self, task: Task, others: Sequence[Task]) -> Placement:
        """Place everybody as said."""
        last = len(self.nodes) - 1
        stages = {
            one.name: self.stages.get(one.name, (Stage(last, 0, len(one.layers) - 1),))
            for one in (*others, task)
        }
        for one in (*others, task):
            check_stages(one, stages[one.name], len(self.nodes))
        return Placement(self.nodes, stages, self.bounds)


def check_stages(task: Task, stages: Sequence[Stage], nodes: int) -> None:
    """Refuse stages that are no way through a pipeline of so many nodes.

    Raises
    ------
    Refused
        With the task, the rule and what was given.
    """
    expected = 0
    before = -1
    for stage in stages:
        if stage.first != expected or stage.last < stage.first or not before < stage.node < nodes:
            break
        expected, before = stage.last + 1, stage.node
    else:
        if expected == len(task.layers):
            return
    shown = ", ".join(f"{s.first}-{s.last} on node {s.node}" for s in stages) or "none"
    msg = (
        f"task {task.name}: stages must hold layers 0 to {len(task.layers) - 1} once each and in order, on nodes "
        f"0 to {nodes - 1} in pipeline order, and are: {shown}. Mend the stages."
    )
    raise Refused(msg)


def cores_of(nodes: Sequence[NodeType], cores: Sequence[int] | None = None) -> list[list[int]]:
    """Return which cores each node has: those that this process may use, one after the other.

    Raises
    ------
    Refused
        Where there are fewer.
    """
    free = sorted(os.sched_getaffinity(0)) if cores is None else list(cores)
    wanted = sum(kind.cpus for kind in nodes)
    if wanted > len(free):
        msg = f"nodes {_listed(nodes)} need {wanted} cores, and {len(free)} may be used here. Take fewer, or smaller nodes."
        raise Refused(msg)
    ends = list(accumulate(kind.cpus for kind in nodes))
    return [free[end - kind.cpus : end] for kind, end in zip(nodes, ends, strict=True)]


def _listed(kinds: Iterable[NodeType]) -> str:
    return ", ".join(map(str, kinds))
