"""Which node runs which layers: the programme of Eq. (7) of Xiang and Kim (RTSS 2019), reconstructed (docs/realtime.md, section 3).

The published equation could not be read. What is known is its frame: tasks by falling load, and for each the contiguous
layers for each node by which the largest load of a node becomes least. Ties, which are many, go to the shortest total time,
then to the fewest stages. RT tasks come first: BE ones take what is left, so no BE task moves an RT task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from gpushare_kernel.realtime.model import NodeType, Stage
from gpushare_kernel.realtime.work import Table, Work

Placed = tuple[tuple[int, int, int], ...]
"""A task's stages: node, first layer, and the layer after the last."""
_GAIN = 1e-9
_ROUNDS = 20
_STAGE = 1e-3
"""A stage more is a tie-break below every nanosecond."""
Price = tuple[float, float]
"""What a nanosecond on a node costs, and what a stage on it costs."""


def stages(placed: Placed) -> tuple[Stage, ...]:
    """Return a placement as others read it."""
    return tuple(Stage(node, first, after - 1) for node, first, after in placed)


class Board:
    """The nodes of one configuration, and what of their time is taken by those placed so far."""

    def __init__(self, configuration: Sequence[NodeType]) -> None:
        self.configuration = configuration
        self.on_gpu = [node.gpus > 0 for node in configuration]
        self.loads = [0.0] * len(configuration)
        self._tables: dict[str, list[Table]] = {}

    def tables(self, work: Work) -> list[Table]:
        """Return a task's costs, node by node."""
        found = self._tables.get(work.name)
        if found is None:
            found = self._tables[work.name] = [work.on(node) for node in self.configuration]
        return found

    def add(self, work: Work, placed: Placed, sign: int = 1) -> None:
        """Count the load of a placement, or (`sign` -1) take it away."""
        for (node, _, _), cost in zip(placed, self.costs(work, placed), strict=True):
            self.loads[node] = max(0.0, self.loads[node] + sign * cost / work.period)

    def costs(self, work: Work, placed: Placed) -> list[int]:
        """Return the nanoseconds of each stage: its layers, passing the job on, and bringing the input over."""
        found, from_gpu, tables = [], False, self.tables(work)
        for node, first, after in placed:
            total = tables[node].total
            crosses = self.on_gpu[node] or from_gpu
            brought = work.transfer[first] if crosses else 0
            found.append(total[after] - total[first] + work.queue + brought)
            from_gpu = self.on_gpu[node]
        return found

    def place(self, work: Work) -> Placed | None:
        """Return the best placement beside what is there (not counted yet); None where no order of nodes can run it."""
        found = self.quickest(work, max(self.loads))
        if found is None:
            level = self.least_level(work)
            found = None if level == inf else self.quickest(work, level)
        return found

    def least_level(self, work: Work) -> float:
        """Return the smallest possible largest load once `work` is placed: M[L, N]; inf where it cannot be.

        M[l, k] = min over x < l and the node before of max(M[x, before], load[k] + (cost of layers x to l on k) / period).
        """
        size = work.layers + 1
        from_cpu = [max(self.loads), *[inf] * (size - 1)]
        from_gpu = [inf] * size
        for node, table in enumerate(self.tables(work)):
            gpu = self.on_gpu[node]
            near = [inf] * size if gpu else from_cpu
            far = [min(pair) for pair in zip(from_cpu, from_gpu, strict=True)] if gpu else from_gpu
            own = from_gpu if gpu else from_cpu
            new = _levels(work, table, self.loads[node], (near, far), own)
            if gpu:
                from_gpu = new
            else:
                from_cpu = new
        return min(from_cpu[-1], from_gpu[-1])

    def quickest(
        self,
        work: Work,
        level: float,
        prices: Sequence[Price] | None = None,
    ) -> Placed | None:
        """Return the placement of least total time by which no node of it is loaded above `level`; None where there is none.

        With `prices`, the least total price: what a nanosecond costs on each node, and what a stage there costs.
        """
        never, nowhere = [inf] * work.layers, [None] * work.layers
        from_cpu: _Front = ([0.0, *never], [(None, -1, 0), *nowhere])
        from_gpu: _Front = ([inf, *never], [None, *nowhere])
        for node, table in enumerate(self.tables(work)):
            budget = _budget(self.loads[node], work.period, level)
            if budget <= work.queue:
                continue
            step = _Step(
                work, table, node, budget, (1.0, _STAGE) if prices is None else prices[node]
            )
            if self.on_gpu[node]:
                from_gpu = step.extend(None, _nearest(from_cpu, from_gpu), from_gpu)
            else:
                from_cpu = step.extend(from_cpu, from_gpu, from_cpu)
        sums, ways = _nearest(from_cpu, from_gpu)
        return None if sums[-1] == inf else _path(ways[-1])


_Way = tuple["_Way | None", int, int]
"""The way to the stage before, this stage's node, and the layer after its last."""
_Front = tuple[list[float], list["_Way | None"]]
"""For each number of layers that are done: the least price, and the way that has it."""


def _levels(
    work: Work, table: Table, load: float, before: tuple[list[float], list[float]], own: list[float]
) -> list[float]:
    """One node's column of M. `near`: the input is in this node's memory; `far`: it must be brought."""
    total, start, period, new = table.total, table.start, work.period, own[:]
    near, far = before
    for after in range(1, work.layers + 1):
        best, end = own[after], total[after] + work.queue
        for first in range(after - 1, start[after] - 1, -1):
            cost = end - total[first]
            level = load + cost / period
            if level >= best:
                break
            if near[first] < best:
                best = max(near[first], level)
            if far[first] < best:
                brought = max(far[first], load + (cost + work.transfer[first]) / period)
                best = min(best, brought)
        new[after] = best
    return new


@dataclass(frozen=True, slots=True)
class _Step:
    """A stage of `work` on one node, which may take `budget` at most."""

    work: Work
    table: Table
    node: int
    budget: int
    price: Price

    def extend(self, near: _Front | None, far: _Front, own: _Front) -> _Front:
        """Extend ways by a stage here (`near`: the input is in this node's memory; `far`: it is brought); keep what `own` has better.

        Ways are compared by their price less what the layers so far would cost here, so that one number says which is best
        to go on from. Where the budget never stops that is kept while layers are added, and nothing is looked at twice.
        """
        work, total, transfer = self.work, self.table.total, self.work.transfer
        slope, stage = self.price
        there = [p + slope * (b - t) for p, b, t in zip(far[0], [*transfer, 0], total, strict=True)]
        here = None
        if near is not None and near[0][0] < inf:
            here = [p - slope * t for p, t in zip(near[0], total, strict=True)]
        free = total[-1] + work.queue + work.most_transfer <= self.budget
        fronts = self._free(here, there) if free else self._tight(here, there)
        sums, ways = own[0][:], own[1][:]
        for after, (best, first, is_far) in enumerate(fronts, 1):
            price = best + slope * (total[after] + work.queue) + stage
            if price < sums[after]:
                before = far if is_far or near is None else near
                sums[after], ways[after] = price, (before[1][first], self.node, after)
        return sums, ways

    def _free(self, here: list[float] | None, there: list[float]) -> Iterator[_From]:
        start, best = self.table.start, _NOWHERE
        for first, far in enumerate(there[:-1]):
            if start[first + 1] > first:
                best = _NOWHERE
                yield best
                continue
            if here is not None and here[first] < best[0]:
                best = (here[first], first, False)
            if far < best[0]:
                best = (far, first, True)
            yield best

    def _tight(self, here: list[float] | None, there: list[float]) -> Iterator[_From]:
        total, transfer, start = self.table.total, self.work.transfer, self.table.start
        for after in range(1, len(total)):
            best, end = _NOWHERE, total[after] + self.work.queue
            for first in range(after - 1, start[after] - 1, -1):
                cost = end - total[first]
                if cost > self.budget:
                    break
                if here is not None and here[first] < best[0]:
                    best = (here[first], first, False)
                if there[first] < best[0] and cost + transfer[first] <= self.budget:
                    best = (there[first], first, True)
            yield best


_From = tuple[float, int, bool]
"""From which number of layers a stage begins best, and whether their output is to be brought."""
_NOWHERE: _From = (inf, 0, False)


def _nearest(one: _Front, other: _Front) -> _Front:
    if other[0][-1] == inf and min(other[0]) == inf:
        return one
    picks = [a <= b for a, b in zip(one[0], other[0], strict=True)]
    sums = [a if pick else b for pick, a, b in zip(picks, one[0], other[0], strict=True)]
    return sums, [a if pick else b for pick, a, b in zip(picks, one[1], other[1], strict=True)]


def _path(way: _Way | None) -> Placed:
    found = []
    while way is not None and way[0] is not None:
        found.append((way[1], way[0][2], way[2]))
        way = way[0]
    return tuple(reversed(found))


def _budget(load: float, period: int, level: float) -> int:
    """Return the largest cost that keeps load + cost / period at `level`, as those floats say it."""
    guess = max(0, int((level - load) * period))
    while load + (guess + 1) / period <= level:
        guess += 1
    while guess >= 0 and load + guess / period > level:
        guess -= 1
    return guess


def allocate(
    works: Sequence[Work], board: Board, level: float | None = None
) -> dict[str, Placed] | None:
    """Place all tasks, RT by falling load, then BE by falling load; None where one has no place.

    Without a `level`, as Eq. (7) has it: loads are balanced, and each group is moved again until nothing is gained. With one,
    each RT task goes where it is quickest as long as no node is loaded above `level`.
    """
    placed: dict[str, Placed] = {}
    for realtime in (True, False):
        group = _by_load([work for work in works if work.realtime is realtime], board)
        for work in group:
            found = None if level is None or not realtime else board.quickest(work, level)
            found = found or board.place(work)
            if found is None:
                return None
            board.add(work, found)
            placed[work.name] = found
        if level is None:
            _place_again(group, board, placed)
    return placed


def _by_load(group: list[Work], board: Board) -> list[Work]:
    """By the mean load over the nodes, the heaviest first; a layer that a node cannot run adds none there."""

    def load(work: Work) -> float:
        return sum(table.total[-1] for table in board.tables(work)) / work.period

    return sorted(group, key=lambda work: (-load(work), work.name))


def _place_again(group: Sequence[Work], board: Board, placed: dict[str, Placed]) -> None:
    """Take each task up and place it again beside all others, until the largest load and the sum of loads stay."""
    if len(group) < 2:  # noqa: PLR2004  it was placed beside all others
        return
    for _ in range(_ROUNDS):
        gained = False
        for work in group:
            before = (max(board.loads), sum(board.loads))
            kept, old = board.loads[:], placed[work.name]
            board.add(work, old, -1)
            new = board.place(work)
            if new is not None and new != old:
                board.add(work, new)
                if _less((max(board.loads), sum(board.loads)), before):
                    placed[work.name], gained = new, True
                    continue
            board.loads = kept
        if not gained:
            return


def _less(one: tuple[float, float], other: tuple[float, float]) -> bool:
    if abs(one[0] - other[0]) > _GAIN:
        return one[0] < other[0]
    return one[1] < other[1] - _GAIN
