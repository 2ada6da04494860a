"""Placements: the programme finds what trying all placements finds, and moving tasks again never makes loads worse."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import inf
from random import Random

import pytest

from benchmarks.realtime_sets import draw
from gpushare_kernel.realtime.allocation import Board, Placed, allocate
from gpushare_kernel.realtime.configurations import configurations
from gpushare_kernel.realtime.model import Kind, Layer, NodeType, Task
from gpushare_kernel.realtime.taskset import Overhead, Taskset
from gpushare_kernel.realtime.work import Work, works

CPU, GPU = NodeType(2), NodeType(2, 1)


def placements(layers: int, nodes: int) -> Iterator[Placed]:
    """Every way to cut a task and to choose its nodes."""
    for parts in range(1, min(layers, nodes) + 1):
        for cuts in combinations(range(1, layers), parts - 1):
            edges = (0, *cuts, layers)
            for where in combinations(range(nodes), parts):
                yield tuple((node, edges[n], edges[n + 1]) for n, node in enumerate(where))


def can_run(work: Work, board: Board, placed: Placed) -> bool:
    return all(
        work.on(board.configuration[node]).start[after] <= first for node, first, after in placed
    )


def judged(work: Work, board: Board, placed: Placed) -> tuple[float, int, int]:
    """The largest load, the total time and the stages, reckoned anew from the layers."""
    loads, total, from_gpu = board.loads[:], 0, False
    for node, first, after in placed:
        kind = board.configuration[node]
        cost = sum(work.on(kind).worst[first:after]) + work.queue
        cost += work.transfer[first] if kind.gpus or from_gpu else 0
        loads[node] += cost / work.period
        total, from_gpu = total + cost, kind.gpus > 0
    return max(loads), total, len(placed)


@pytest.mark.parametrize("seed", range(300))
def test_the_programme_is_as_good_as_trying_all(seed: int) -> None:
    """R5: the least largest load; of these the least time; of these the fewest stages."""
    chance = Random(seed)
    work, board = _random(chance)
    tried = [
        judged(work, board, one)
        for one in placements(work.layers, len(board.loads))
        if can_run(work, board, one)
    ]
    found = board.place(work)
    if not tried:
        assert found is None
        assert board.least_level(work) == inf
        return
    assert found is not None
    assert can_run(work, board, found)
    load, time, stages = judged(work, board, found)
    best = min(tried)
    assert load == pytest.approx(best[0], rel=1e-12)
    assert (time, stages) == min((t, s) for level, t, s in tried if level <= load * (1 + 1e-12))


@pytest.mark.parametrize("seed", range(100))
def test_prices_are_met_at_the_least(seed: int) -> None:
    """With a price for time and for a stage on each node, and a level that no node may pass."""
    chance = Random(1000 + seed)
    work, board = _random(chance)
    prices = [(chance.uniform(0.5, 4), chance.uniform(0, 5e6)) for _ in board.loads]
    level = chance.uniform(0.2, 1.5)

    def price(placed: Placed) -> float:
        costs = board.costs(work, placed)
        return sum(
            prices[node][0] * cost + prices[node][1]
            for (node, _, _), cost in zip(placed, costs, strict=True)
        )

    def allowed(placed: Placed) -> bool:
        return can_run(work, board, placed) and all(
            board.loads[node] + cost / work.period <= level
            for (node, _, _), cost in zip(placed, board.costs(work, placed), strict=True)
        )

    tried = [price(one) for one in placements(work.layers, len(board.loads)) if allowed(one)]
    found = board.quickest(work, level, prices)
    if not tried:
        assert found is None
    else:
        assert found is not None
        assert allowed(found)
        assert price(found) == pytest.approx(min(tried))


def _random(chance: Random) -> tuple[Work, Board]:
    """A task with some layers that run on some types only, on nodes that have some load already."""
    kinds = [NodeType(1), NodeType(2), NodeType(1, 1), NodeType(2, 1)]
    layers = tuple(
        Layer(
            {kind: chance.randint(1, 20) / 1e3 for kind in kinds if chance.random() < 0.9}
            or {kinds[0]: 0.001},
            transfer=chance.choice((0.0, 0.002, 0.01)),
        )
        for _ in range(chance.randint(1, 6))
    )
    task = Task("a", Kind.RT, layers, period=1.0, deadline=1.0)
    overhead = Overhead(layer=0.0001, job=chance.choice((0.0, 0.001)))
    taskset = Taskset(8, (task,), gpus=2, max_nodes=4, overhead=overhead)
    board = Board([chance.choice(kinds) for _ in range(chance.randint(1, 4))])
    board.loads = [chance.choice((0.0, chance.random() / 20)) for _ in board.loads]
    return works(taskset)[0], board


def test_input_is_brought_where_the_memory_is_another() -> None:
    """From the host to a GPU, from a GPU to cores or to another GPU; the previous *used* node counts. R6."""
    layers = tuple(Layer({CPU: 0.001, GPU: 0.001}, transfer=0.01) for _ in range(3))
    task = Task("a", Kind.RT, layers, period=1.0, deadline=1.0)
    work = works(Taskset(6, (task,), gpus=2))[0]
    board, ms = Board([CPU, CPU, GPU, GPU]), 1_000_000
    assert board.costs(work, ((0, 0, 1), (1, 1, 3))) == [1 * ms, 2 * ms]
    assert board.costs(work, ((2, 0, 3),)) == [13 * ms]
    assert board.costs(work, ((0, 0, 1), (2, 1, 2), (3, 2, 3))) == [1 * ms, 11 * ms, 11 * ms]
    board = Board([GPU, CPU, CPU])
    assert board.costs(work, ((0, 0, 1), (2, 1, 3))) == [11 * ms, 12 * ms]


@pytest.mark.parametrize("seed", range(20))
def test_moving_again_leaves_loads_no_worse(seed: int) -> None:
    """Against placing each once, in the same order."""
    taskset = draw(seed, cpus=4, gpus=1, max_nodes=3, realtime=4, best_effort=2, depth=5, load=0.2)
    found = [work for work in works(taskset) if work.realtime]
    for configuration in list(configurations(4, 1, 3))[::5]:
        board, once = Board(configuration), Board(configuration)
        placed = allocate(found, board)
        for work in sorted(found, key=lambda w: (-_mean(w, once), w.name)):
            where = once.place(work)
            assert where is not None
            once.add(work, where)
        assert placed is not None
        assert max(board.loads) <= max(once.loads) + 1e-9


def _mean(work: Work, board: Board) -> float:
    return sum(work.on(kind).total[-1] for kind in board.configuration) / work.period


@pytest.mark.parametrize("level", [None, 0.95])
def test_best_effort_moves_no_task_that_has_a_deadline(level: float | None) -> None:
    """R7."""
    taskset = draw(5, cpus=4, gpus=1, max_nodes=3, realtime=4, best_effort=3, depth=5, load=0.2)
    everybody = works(taskset)
    realtime = [work for work in everybody if work.realtime]
    for configuration in configurations(4, 1, 3):
        both = allocate(everybody, Board(configuration), level)
        alone = allocate(realtime, Board(configuration), level)
        assert both is not None
        assert alone == {work.name: both[work.name] for work in realtime}
