"""May these tasks come to those that are promised already? Asked by the broker, answered by a process of its own.

    echo QUESTION.json | python -m gpushare_kernel.realtime.proof

Those that run keep their nodes: the new ones are placed beside them. The answer has the bound of each, and how long the work of
others may take to drain (seconds) with every deadline kept (I7).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from gpushare_kernel.realtime.allocation import Board, Placed
from gpushare_kernel.realtime.model import BadTaskset, NodeType
from gpushare_kernel.realtime.refusal import refusal
from gpushare_kernel.realtime.response import Pipeline
from gpushare_kernel.realtime.search import FULL, Candidate, Search
from gpushare_kernel.realtime.taskset import Drain, Overhead, Taskset, taskset_from
from gpushare_kernel.realtime.work import SECOND

OVERHEAD = Overhead(layer=0.0002, job=0.001)
"""Seconds that starting a layer takes at most, and passing up to 1 MiB to a node (`benchmarks/realtime_handover`: p99 0.3 to 1.1 ms)."""
NICE = 10
"""How far a proof stands back."""
CANNOT = "its deadline cannot be promised"
CANNOT_BESIDE = "not every deadline could be promised"
"""How a refusal begins: of a pipeline with a deadline, and of best effort beside one."""
_STEPS = 24
"""Halvings in which the longest drain is found: to a microsecond for a deadline of ten seconds."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proven: node configuration, stages by task (node, first layer, layer after the last), bounds and the drain they absorb in seconds."""

    configuration: tuple[str, ...]
    stages: Mapping[str, Placed]
    bounds: Mapping[str, float]
    absorbs: float


def prove(
    taskset: Taskset, configuration: Sequence[str], placed: Mapping[str, Placed]
) -> Proof | str:
    """Return what is proven of `taskset`, of which `placed` run on `configuration` already; or why nothing can be.

    Without a configuration all are free, and the best one is looked for.
    """
    search = Search(taskset)
    found = _beside(search, configuration, placed) if configuration else search.pruned()
    if found is None or not found.admitted:
        return _refusal(search, found, anew=bool(configuration))
    return Proof(
        configuration=tuple(str(node) for node in found.configuration),
        stages=found.placed,
        bounds={name: (bound or 0) / SECOND for name, bound in found.late.items()},
        absorbs=_absorbs(search, found),
    )


def _beside(
    search: Search, configuration: Sequence[str], placed: Mapping[str, Placed]
) -> Candidate | None:
    """Place those that are new beside those that keep their nodes; best effort comes last, where it makes the least load."""
    board = Board([NodeType.parse(name) for name in configuration])
    works = {work.name: work for work in search.works}
    for name, stages in placed.items():
        board.add(works[name], stages)
    all_placed = dict(placed)
    for work in (*search.realtime, *(one for one in search.works if not one.realtime)):
        if work.name not in placed:
            mine = (board.quickest(work, FULL) if work.realtime else None) or board.place(work)
            if mine is None:
                return None
            all_placed[work.name] = mine
            board.add(work, mine)
    return search.judged(board, all_placed)


def _check_placed(
    taskset: Taskset, configuration: Sequence[str], placed: Mapping[str, Placed]
) -> None:
    """Refuse stages that are no way through the nodes: they may come from a notebook."""
    nodes = [NodeType.parse(name) for name in configuration]
    whole = sum(one.cpus for one in nodes), sum(one.gpus for one in nodes)
    if nodes and whole != (taskset.cpus, taskset.gpus):
        msg = f"it runs on {', '.join(configuration)}, and there are {taskset.cpus} cores and {taskset.gpus} GPUs"
        raise BadTaskset(msg)
    tasks = {task.name: task for task in taskset.tasks}
    for name, stages in placed.items():
        if name not in tasks:
            msg = f"{name} is said to run on nodes, and is no task"
            raise BadTaskset(msg)
        layers = tasks[name].layers
        done, before = 0, -1
        for node, first, after in stages:
            if not before < node < len(nodes) or not done == first < after:
                break
            if any(nodes[node] not in layer.worst for layer in layers[first:after]):
                break
            before, done = node, after
        if done != len(layers):
            msg = f"task {name}: {list(stages)} is no way for {len(layers)} layers through nodes {', '.join(configuration)}"
            raise BadTaskset(msg)


def _late(search: Search, found: Candidate, drain: float) -> dict[str, int | None]:
    """Return every bound (nanoseconds) with a drain of so many seconds on each node."""
    taskset = replace(search.taskset, drain=Drain(drain, drain))
    board = Board(found.configuration)
    return Pipeline(taskset, search.works, board, found.placed).bounds()


def _absorbs(search: Search, found: Candidate) -> float:
    """Return the longest drain with which every deadline holds."""
    deadlines = {work.name: work.deadline for work in search.realtime}
    low, high = 0.0, min(deadlines.values()) / SECOND
    for _ in range(_STEPS):
        middle = (low + high) / 2
        late = _late(search, found, middle)
        holds = all((late[name] or inf) <= deadline for name, deadline in deadlines.items())
        low, high = (middle, high) if holds else (low, middle)
    return low


def _refusal(search: Search, found: Candidate | None, *, anew: bool) -> str:
    """Return why nothing is promised, and what would do."""
    drain = max(search.taskset.drain.gpu, search.taskset.drain.cpu)
    if anew:
        found = search.pruned()
        if found is not None and found.admitted:
            return f"{CANNOT}: those that run have divided the cores in another way. Placed anew all would fit: end the other real-time jobs, and begin them after this one."
    stops = f" {1000 * drain:.3g} ms of that are for others' work to stop." if drain else ""
    return f"{CANNOT}: {refusal(search, found).message}{stops}"


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a question, both as plain values."""
    try:
        taskset = replace(taskset_from(question["taskset"]), overhead=OVERHEAD)
        placed = {
            name: tuple((int(n), int(first), int(after)) for n, first, after in stages)
            for name, stages in question["stages"].items()
        }
        _check_placed(taskset, question["configuration"], placed)
        found = prove(taskset, question["configuration"], placed)
    except BadTaskset as problem:
        found = f"{CANNOT}: {problem}"
    if isinstance(found, str):
        return {"refused": found}
    return {
        "configuration": found.configuration,
        "stages": found.stages,
        "bounds": found.bounds,
        "absorbs": found.absorbs,
    }


def main() -> None:
    """Answer one question, behind everybody else: deadlines run meanwhile, on the same cores."""
    os.nice(NICE)
    json.dump(answer(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
