"""Whether a set of tasks can keep its deadlines, where its layers run then, and why not (docs/realtime.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpushare_kernel.realtime.allocation import Board, Placed, stages
from gpushare_kernel.realtime.configurations import Configuration, count
from gpushare_kernel.realtime.model import BadTaskset, NodeType, Stage
from gpushare_kernel.realtime.refusal import Refusal, refusal
from gpushare_kernel.realtime.response import Pipeline
from gpushare_kernel.realtime.search import Candidate, Search
from gpushare_kernel.realtime.taskset import Taskset
from gpushare_kernel.realtime.work import SECOND, works

MOST_EXACT = 100_000
"""More configurations are not all tried: at 10 to 40 ms each that is an hour."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a task's layers run, and by when each of its jobs is done (seconds after its release); None for BE."""

    name: str
    bound: float | None
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What `analyse` found. Where the set is refused, `configuration` and `tasks` are those that come nearest."""

    admitted: bool
    objective: float | None
    configuration: Configuration
    tasks: tuple[Bound, ...]
    candidates: int
    refusal: Refusal | None = None


def analyse(taskset: Taskset, *, exact: bool = False) -> Analysis:
    """Find the nodes and the placement by which all deadlines hold and W is least (Algorithms 1 and 2 of Xiang and Kim, RTSS 2019).

    Parameters
    ----------
    taskset
        The tasks and the machine.
    exact
        Try every configuration, not only the promising ones.

    Raises
    ------
    BadTaskset
        Where the set itself is wrong; one that only does not fit is refused in the answer.
    """
    taskset.check()
    if exact:
        number = count(taskset.cpus, taskset.gpus, taskset.max_nodes)
        if number > MOST_EXACT:
            msg = (
                f"an exact search tries all configurations, and {number} are more than {MOST_EXACT}. "
                "Lower max_nodes, or leave --exact away"
            )
            raise BadTaskset(msg)
    search = Search(taskset)
    best = search.exact() if exact else search.pruned()
    if best is None or not best.admitted:
        return _answer(taskset, best, len(search.tried), refusal(search, best))
    return _answer(taskset, best, len(search.tried), None)


def bounds(
    taskset: Taskset,
    configuration: Sequence[NodeType],
    placement: Mapping[str, Sequence[Stage]],
) -> dict[str, float | None]:
    """Return each RT task's bound (seconds) where all tasks are placed already; None where nothing bounds it."""
    found = works(taskset)
    placed: dict[str, Placed] = {
        name: tuple((stage.node, stage.first, stage.last + 1) for stage in where)
        for name, where in placement.items()
    }
    late = Pipeline(taskset, found, Board(configuration), placed).bounds()
    return {name: None if bound is None else bound / SECOND for name, bound in late.items()}


def _answer(
    taskset: Taskset, best: Candidate | None, tried: int, refused: Refusal | None
) -> Analysis:
    late = best.late if best else {}
    placed = best.placed if best else {}
    found = [(task.name, late.get(task.name)) for task in taskset.tasks]
    return Analysis(
        admitted=refused is None,
        objective=best.objective if best and refused is None else None,
        configuration=best.configuration if best else (),
        tasks=tuple(
            Bound(name, None if bound is None else bound / SECOND, stages(placed.get(name, ())))
            for name, bound in found
        ),
        candidates=tried,
        refusal=refused,
    )
