"""May this task come to those that are promised already? Asked by the broker, answered by a process of its own.

    echo QUESTION.json | python -m gpushare_kernel.realtime.proof

Those that run keep their nodes: the new one is placed beside them. The answer has the bound of each, and how long the work of
others may take to drain (seconds) with every deadline kept (I7).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from gpushare_kernel.realtime.allocation import Board, Placed
from gpushare_kernel.realtime.model import BadTaskset, NodeType
from gpushare_kernel.realtime.response import Pipeline
from gpushare_kernel.realtime.search import FULL, Candidate, Search
from gpushare_kernel.realtime.taskset import Drain, Taskset, taskset_from
from gpushare_kernel.realtime.work import SECOND

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
    taskset: Taskset, new: str, configuration: Sequence[str], placed: Mapping[str, Placed]
) -> Proof | str:
    """Return what is proven of `taskset`, of which all but `new` are placed on `configuration`; or why nothing can be.

    Without a configuration all are free, and the best one is looked for.
    """
    search = Search(taskset)
    found = _beside(search, new, configuration, placed) if configuration else search.pruned()
    if found is None or not found.admitted:
        return _refusal(search, found, new, anew=bool(configuration))
    return Proof(
        configuration=tuple(str(node) for node in found.configuration),
        stages=found.placed,
        bounds={name: (bound or 0) / SECOND for name, bound in found.late.items()},
        absorbs=_absorbs(search, found),
    )


def _beside(
    search: Search, new: str, configuration: Sequence[str], placed: Mapping[str, Placed]
) -> Candidate | None:
    """Place `new` beside those that keep their nodes."""
    board = Board([NodeType.parse(name) for name in configuration])
    works = {work.name: work for work in search.works}
    for name, stages in placed.items():
        board.add(works[name], stages)
    mine = board.quickest(works[new], FULL) or board.place(works[new])
    return None if mine is None else search.judged(board, {**placed, new: mine})


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


def _refusal(search: Search, found: Candidate | None, new: str, *, anew: bool) -> str:
    drain = max(search.taskset.drain.gpu, search.taskset.drain.cpu)
    if found is None:
        why = f"no node of this machine can run all layers of {new}"
    else:
        name, bound, deadline = _worst(search, found)
        said = (
            "has no bound: its node is overloaded"
            if bound is None
            else (
                f"is done {1000 * bound / SECOND:.4g} ms after its release at the latest, and its deadline is {1000 * deadline / SECOND:.4g} ms"
            )
        )
        why = f"with it, {name} {said}"
    waits = f", {1000 * drain:.3g} ms of that to let others' work stop" if drain else ""
    fits = _what_fits(search, new, anew=anew)
    return f"its deadline cannot be promised: {why}{waits}. {fits}"


def _worst(search: Search, found: Candidate) -> tuple[str, int | None, int]:
    ratios = {
        work.name: inf
        if found.late[work.name] is None
        else (found.late[work.name] or 0) / work.deadline
        for work in search.realtime
    }
    name = max(ratios, key=lambda one: (ratios[one], one))
    deadline = next(work.deadline for work in search.realtime if work.name == name)
    return name, found.late[name], deadline


def _what_fits(search: Search, new: str, *, anew: bool) -> str:
    """Say what would do: placing all anew, or a longer period and deadline."""
    if anew:
        fresh = search.pruned()
        if fresh is not None and fresh.admitted:
            return "Placed anew, all would fit: end the other real-time jobs and begin them again after this one."
    for factor in (1.5, 2.0, 3.0, 5.0, 10.0):
        tasks = tuple(
            replace(
                task,
                period=None if task.period is None else factor * task.period,
                deadline=None if task.deadline is None else factor * task.deadline,
            )
            if task.name == new
            else task
            for task in search.taskset.tasks
        )
        slower = Search(replace(search.taskset, tasks=tasks)).pruned()
        if slower is not None and slower.admitted:
            return f"With {factor:g} times its period and deadline it would fit."
    return "Make the model smaller, or end other real-time jobs first."


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a question, both as plain values."""
    try:
        taskset = taskset_from(question["taskset"])
        placed = {
            name: tuple((int(n), int(first), int(after)) for n, first, after in stages)
            for name, stages in question["stages"].items()
        }
        found = prove(taskset, question["new"], question["configuration"], placed)
    except BadTaskset as problem:
        found = f"its deadline cannot be promised: {problem}"
    if isinstance(found, str):
        return {"refused": found}
    return {
        "configuration": found.configuration,
        "stages": found.stages,
        "bounds": found.bounds,
        "absorbs": found.absorbs,
    }


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
