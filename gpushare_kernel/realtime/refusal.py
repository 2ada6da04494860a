"""Why a set is refused, in numbers, and what would fit: each is said only where it was tried and did fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from gpushare_kernel.realtime.allocation import Board
from gpushare_kernel.realtime.configurations import count
from gpushare_kernel.realtime.model import Kind, Task
from gpushare_kernel.realtime.response import Pipeline
from gpushare_kernel.realtime.search import Candidate, Search
from gpushare_kernel.realtime.work import SECOND, Work

NEAREST = 8
"""In so many of the best configurations it is tried what would fit."""
SLOWEST = 6400
"""Hundredths: periods and deadlines 64 times as long."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which task fails, and by how much (seconds), in the configuration that comes nearest; what would fit.

    `bound` is None where nothing bounds it. `slower`: all RT periods and deadlines so many times as long. `without`: this
    RT task left out. `without_best_effort`: all BE tasks left out.
    """

    task: str
    bound: float | None
    deadline: float | None
    without_best_effort: bool
    slower: float | None
    without: str | None
    message: str


def refusal(search: Search, best: Candidate | None) -> Refusal:
    """Return why what `search` found at best is not admitted."""
    if best is None:
        return _no_place(search)
    failing = max(search.realtime, key=lambda work: (_ratio(best, work), work.name))
    bound = best.late[failing.name]
    alone = _without_best_effort(search)
    slower = _slower(search)
    without = _without_one(search, failing)
    return Refusal(
        task=failing.name,
        bound=None if bound is None else bound / SECOND,
        deadline=failing.deadline / SECOND,
        without_best_effort=alone,
        slower=slower,
        without=without,
        message=_message(search, best, failing)
        + _advice(alone=alone, slower=slower, without=without)
        + _untried(search),
    )


def _ratio(one: Candidate, work: Work) -> float:
    bound = one.late[work.name]
    return inf if bound is None else bound / work.deadline


def _message(search: Search, best: Candidate, failing: Work) -> str:
    nodes = " ".join(str(node) for node in best.configuration)
    where = f"in the best of {len(search.tried)} configurations ({nodes})"
    bound = best.late[failing.name]
    if bound is not None:
        over = bound - failing.deadline
        return (
            f"task {failing.name} may take {_ms(bound)}, {_ms(over)} longer than its deadline of "
            f"{_ms(failing.deadline)}, {where}."
        )
    board = Board(best.configuration)
    for work in search.realtime:
        board.add(work, best.placed[work.name])
    load = max(board.loads)
    busiest = best.configuration[board.loads.index(load)]
    return f"task {failing.name} has no bound {where}: RT tasks alone keep node {busiest} busy {load:.2f} of the time."


def _advice(*, alone: bool, slower: float | None, without: str | None) -> str:
    ways = [
        *(["without best effort"] if alone else []),
        *([f"without task {without}"] if without else []),
        *([f"with all periods and deadlines {slower:g} times as long"] if slower else []),
    ]
    if not ways:
        return " Nothing that was tried would fit: measure the layers on more node types, or make the models smaller."
    return f" It fits {', or '.join(ways)}."


def _untried(search: Search) -> str:
    t = search.taskset
    known = count(t.cpus, t.gpus, t.max_nodes)
    tried = len(search.tried)
    return (
        f" {tried} of {known} configurations were tried: --exact tries all."
        if tried < known
        else ""
    )


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds * 1e3 / SECOND:.4g} ms"


def _no_place(search: Search) -> Refusal:
    """No configuration can run all tasks: a layer has no node in any, or their order is none of a pipeline's."""
    configurations = list(search.tried)
    for work in search.works:
        if not any(Board(nodes).place(work) for nodes in configurations):
            break
    else:
        work = max(search.works, key=lambda one: one.layers)
    message = (
        f"task {work.name}: none of {len(configurations)} configurations has nodes on which its layers can run in their order, "
        "beside the other tasks. Measure its layers on more node types, or allow more nodes."
    )
    deadline = work.deadline / SECOND if work.realtime else None
    return Refusal(work.name, None, deadline, _without_best_effort(search), None, None, message)


def _fits(search: Search, tasks: Sequence[Task]) -> bool:
    """Whether these tasks fit into one of the configurations that came nearest."""
    if not any(task.kind is Kind.RT for task in tasks):
        return False
    other = Search(dataclasses.replace(search.taskset, tasks=tuple(tasks)))
    nearest = [one.configuration for one in search.best(NEAREST)] or list(search.tried)
    found = (other.quick(configuration) for configuration in nearest)
    return any(one is not None and one.admitted for one in found)


def _without_best_effort(search: Search) -> bool:
    tasks = [task for task in search.taskset.tasks if task.kind is Kind.RT]
    if len(tasks) == len(search.taskset.tasks):
        return False
    if _fits(search, tasks):
        return True
    best = Search(dataclasses.replace(search.taskset, tasks=tuple(tasks))).pruned()
    return best is not None and best.admitted


def _without_one(search: Search, failing: Work) -> str | None:
    """The first RT task without which the others fit: the failing one, then by the time that it takes."""
    others = sorted(
        (work for work in search.realtime if work is not failing),
        key=lambda work: (-max(t.total[-1] for t in work.tables.values()) / work.period, work.name),
    )
    for work in (failing, *others):
        if _fits(search, [task for task in search.taskset.tasks if task.name != work.name]):
            return work.name
    return None


def _slower(search: Search) -> float | None:
    """The least factor, in hundredths, by which RT periods and deadlines are longer and all hold: placements as they are."""
    nearest = search.best(NEAREST)
    low, high = 100, SLOWEST
    if not _holds(search, nearest, high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if _holds(search, nearest, middle):
            high = middle
        else:
            low = middle
    return high / 100


def _holds(search: Search, candidates: Sequence[Candidate], hundredths: int) -> bool:
    works = [
        dataclasses.replace(
            work, period=work.period * hundredths // 100, deadline=work.deadline * hundredths // 100
        )
        for work in search.works
    ]
    for one in candidates:
        late = Pipeline(search.taskset, works, Board(one.configuration), one.placed).bounds()
        ends = [(late[work.name], work.deadline) for work in works if work.realtime]
        if all(bound is not None and bound <= deadline for bound, deadline in ends):
            return True
    return False
