"""Which configuration, and which placement on it: Algorithm 1 over the candidates of Algorithm 2 (docs/realtime.md, section 3).

Each candidate's tasks are placed in two ways, balanced as in Eq. (7) and each where it is quickest, and from either tasks are moved
as long as the objective falls. `exact` does so for all configurations. `pruned` looks at few, quickly, goes from the best of them to
their neighbours, and does it for the most promising.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf

from gpushare_kernel.realtime.allocation import Board, Placed, Price, allocate
from gpushare_kernel.realtime.configurations import (
    Configuration,
    coarse,
    configurations,
    count,
    neighbours,
)
from gpushare_kernel.realtime.response import Pipeline
from gpushare_kernel.realtime.taskset import Taskset
from gpushare_kernel.realtime.work import Work, works

FULL = 0.95
"""How much of a node's time RT tasks may take where each goes where it is best for itself, or for the objective."""
FEW, MOST, FRONTS, REFINED = 64, 120, 3, 4
"""Of a pruned search: how many configurations it begins with, how many it looks at in all, from how many it climbs, and how many it
refines."""
SMALL = 600
"""So few configurations are all tried before a set is refused."""


Placements = dict[str, Placed]
"""Task -> where its stages are."""
Way = Callable[[Board], Placements | None]
"""How all tasks are placed on a board at first."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """All tasks on one configuration: `late` in nanoseconds, `ratio` the worst bound / deadline, `objective` W of Algorithm 1."""

    configuration: Configuration
    placed: Mapping[str, Placed]
    late: Mapping[str, int | None]
    ratio: float
    objective: float

    @property
    def admitted(self) -> bool:
        """Whether each deadline holds."""
        return self.ratio <= 1

    @property
    def score(self) -> tuple[float, float]:
        """The less the better: first that deadlines hold, then the objective."""
        return max(1.0, self.ratio), self.objective


class Search:
    """The candidates for one task set."""

    def __init__(self, taskset: Taskset) -> None:
        self.taskset = taskset
        self.works = works(taskset)
        self.realtime = sorted(
            (work for work in self.works if work.realtime),
            key=lambda work: (-work.weight, work.name),
        )
        self.tried: dict[Configuration, Candidate | None] = {}

    def exact(self) -> Candidate | None:
        """Return the best of all configurations; None where none can run all tasks."""
        t = self.taskset
        for configuration in configurations(t.cpus, t.gpus, t.max_nodes):
            self.tried[configuration] = self.refined(configuration)
        return next(iter(self.best(1)), None)

    def pruned(self) -> Candidate | None:
        """Return the best of few configurations; of all where none of those few will do and there are not many."""
        t = self.taskset
        self._look(islice(coarse(t.cpus, t.gpus, t.max_nodes), FEW), (self._quickest,))
        for front in self._fronts():
            self._climb(front)
        for one in self.best(REFINED):
            self.tried[one.configuration] = self.refined(one.configuration)
        best = next(iter(self.best(1)), None)
        if best is not None and best.admitted:
            return best
        return self.exact() if count(t.cpus, t.gpus, t.max_nodes) <= SMALL else best

    def _look(self, candidates: Iterable[Configuration], ways: Sequence[Way]) -> list[Candidate]:
        new = [one for one in candidates if one not in self.tried]
        self.tried.update((one, self._best_of(one, ways)) for one in new)
        return [found for one in new if (found := self.tried[one]) is not None]

    def _fronts(self) -> list[Configuration]:
        """The best so far, and the best of each number of nodes: they lead to different places."""
        everybody = self.best(len(self.tried))
        lengths = {len(one.configuration): one.configuration for one in reversed(everybody)}
        best = (one.configuration for one in everybody[:FRONTS])
        return list(dict.fromkeys((*best, *lengths.values())))

    def _climb(self, front: Configuration) -> None:
        """Go to the best neighbour as long as that is better."""
        best = self.tried[front] = self.quick(front)
        while best is not None and len(self.tried) < MOST:
            found = self._look(neighbours(best.configuration), (self._quickest, self._cheapest))
            better = min([best, *found], key=_rank)
            if better is best:
                return
            best = better

    def best(self, number: int) -> list[Candidate]:
        """The best candidates so far."""
        return sorted((one for one in self.tried.values() if one is not None), key=_rank)[:number]

    def quick(self, configuration: Configuration) -> Candidate | None:
        """Place each task where it is quickest, or where it adds least, and then move them."""
        return self._best_of(configuration, (self._quickest, self._cheapest))

    def refined(self, configuration: Configuration) -> Candidate | None:
        """Begin with balanced loads as well."""
        ways = (self._quickest, self._cheapest, self._balanced)
        return self._best_of(configuration, ways)

    def _best_of(self, configuration: Configuration, ways: Iterable[Way]) -> Candidate | None:
        found = []
        for way in ways:
            board = Board(configuration)
            placed = way(board)
            if placed is not None:
                found.append(self._moved(self.judged(board, placed), board))
        return min(found, key=_rank, default=None)

    def _balanced(self, board: Board) -> Placements | None:
        return allocate(self.works, board)

    def _quickest(self, board: Board) -> Placements | None:
        return allocate(self.works, board, FULL)

    def _cheapest(self, board: Board) -> Placements | None:
        placed: Placements = {}
        best_effort = [work for work in self.works if not work.realtime]
        for work in (*self.realtime, *best_effort):
            found = None
            if work.realtime:
                prices = self._prices(work, board, placed)
                found = board.quickest(work, FULL, prices)
            found = found or board.place(work)
            if found is None:
                return None
            placed[work.name] = found
            board.add(work, found)
        return placed

    def judged(self, board: Board, placed: Mapping[str, Placed]) -> Candidate:
        """Return what a placement is worth. Without a bound it is worth the less, the more its busiest node has to do."""
        pipeline = Pipeline(self.taskset, self.works, board, placed)
        late = pipeline.bounds()
        ratios = [
            inf if bound is None else bound / work.deadline
            for work in pipeline.realtime
            for bound in (late[work.name],)
        ]
        ratio = max(ratios)
        objective = max(board.loads) if ratio == inf else pipeline.objective(late)
        return Candidate(tuple(board.configuration), dict(placed), late, ratio, objective)

    def _moved(self, best: Candidate, board: Board) -> Candidate:
        """Move one RT task after the other to where it adds least to the objective, as long as the score falls."""
        moved = True
        while moved:
            moved = False
            for work in self.realtime:
                old = best.placed[work.name]
                board.add(work, old, -1)
                prices = self._prices(work, board, best.placed)
                new = board.quickest(work, FULL, prices) or old
                if new != old:
                    one = self.judged(board, {**best.placed, work.name: new})
                    if one.score < best.score:
                        best, moved = one, True
                board.add(work, best.placed[work.name])
        return best

    def _prices(self, work: Work, board: Board, placed: Mapping[str, Placed]) -> list[Price]:
        """Return about what a placement of `work` adds to the objective, in nanoseconds of its own, node by node.

        A nanosecond there holds up `work`, and once each who gives way to it; a stage there waits once for each to whom
        it gives way, and for the longest piece of the others.
        """
        own = work.weight / work.deadline
        slopes, waits = [1.0] * len(board.loads), [0.0] * len(board.loads)
        pieces = [0.0] * len(board.loads)
        for other in self.realtime:
            stages = () if other is work else placed.get(other.name, ())
            for (node, first, after), cost in zip(stages, board.costs(other, stages), strict=True):
                if other.weight <= work.weight:
                    slopes[node] += other.weight / other.deadline / own
                if other.weight >= work.weight:
                    waits[node] += cost
                else:
                    longest = max(board.tables(other)[node].worst[first:after])
                    pieces[node] = max(pieces[node], longest)
        return [
            (slope, wait + piece) for slope, wait, piece in zip(slopes, waits, pieces, strict=True)
        ]


def _rank(one: Candidate) -> tuple[tuple[float, float], int, Sequence[object]]:
    """Equals go by fewer nodes, then by the nodes themselves: which was tried first changes nothing."""
    return one.score, len(one.configuration), one.configuration
