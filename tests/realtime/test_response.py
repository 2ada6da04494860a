"""Bounds: node by node against an independent analysis, by hand, and what may never lower one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random

import pytest
import response_time_analysis as rta
from response_time_analysis import model as rm

from benchmarks.realtime_sets import draw, scatter
from gpushare_kernel.realtime.analysis import bounds
from gpushare_kernel.realtime.configurations import configurations
from gpushare_kernel.realtime.model import Kind, Layer, NodeType, Stage, Task
from gpushare_kernel.realtime.response import FAR, Load, delay, starts
from gpushare_kernel.realtime.taskset import Drain, Mode, Overhead, Taskset

C2, C4, G2 = NodeType(2), NodeType(4), NodeType(2, 1)


@pytest.mark.parametrize("seed", range(400))
def test_one_node_is_as_the_verified_theory_says(seed: int) -> None:
    """R2: the same number as response-time-analysis, which implements what PROSA proved (Bozhko and Brandenburg 2020).

    It counts from arrival, not from nominal release, and in whole ticks: a blocking of B needs a piece of B + 1.
    """
    chance = Random(seed)
    loads = [_load(chance) for _ in range(chance.randint(1, 5))]
    if sum(load.cost / load.period for load in loads) >= 1:
        loads = [dataclasses.replace(load, period=load.period * len(loads) * 2) for load in loads]
    blocking, (me, *higher) = chance.choice((0, chance.randint(1, 60))), loads
    late = [
        start + me.last - max(0, job * me.period - me.jitter)
        for job, start in enumerate(starts(me, higher, blocking))
    ]
    found = _oracle(me, higher, blocking)
    if not late:  # so nearly overloaded that we look no further
        assert found.busy_window_bound is not None
        assert found.busy_window_bound > FAR * me.period
    else:
        assert max(late) == found.response_time_bound


def _load(chance: Random) -> Load:
    cost = chance.randint(1, 40)
    last = chance.randint(1, cost)
    return Load(
        cost, chance.randint(41, 300), chance.choice((0, chance.randint(1, 400))), last, cost
    )


def _oracle(me: Load, higher: Sequence[Load], blocking: int) -> rta.analysis.Solution:
    def task(load: Load, priority: int) -> rm.Task:
        return rm.Task(
            rm.PeriodicWithJitter(period=load.period, jitter=load.jitter),
            rm.LimitedPreemptive(rm.WCET(load.cost), load.longest, load.last),
            priority=rm.Priority(priority),
        )

    mine = task(me, 2)
    others = [
        task(load, 2 + place % 2) for place, load in enumerate(higher)
    ]  # equals, and higher ones
    pieces = [
        rm.Task(
            rm.Periodic(period=10**9),
            rm.FullyNonPreemptive(rm.WCET(blocking + 1)),
            priority=rm.Priority(1),
        )
    ]
    return rta.fp.rta(rm.taskset(mine, *others, *pieces), mine, rm.IdealProcessor())


def task(
    name: str, *costs: float, kind: Kind = Kind.RT, weight: float = 1.0, **more: float
) -> Task:
    """A task of layers that cost the same on every node type here (ms); period and deadline 100 ms."""
    layers = tuple(Layer(dict.fromkeys((C2, C4, G2), ms / 1e3)) for ms in costs)
    times = {"period": 0.1, "deadline": 0.1} if kind is Kind.RT else {}
    return Task(name, kind, layers, weight=weight, **{**times, **more})


def where(*stages: tuple[int, int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(*stage) for stage in stages)


def test_alone_a_task_takes_its_layers() -> None:
    taskset = Taskset(4, (task("a", 2, 3),))
    assert bounds(taskset, [C4], {"a": where((0, 0, 1))}) == {"a": 0.005}
    assert bounds(taskset, [C2, C2], {"a": where((0, 0, 0), (1, 1, 1))}) == {"a": 0.005}


def test_overheads_jitter_transfers_and_drains_are_in_it() -> None:
    """R3: 2 layers, 2 nodes, one crossing, one drain on the GPU's node."""
    layers = tuple(Layer({C2: 0.002, G2: 0.001}, transfer=0.003) for _ in range(2))
    late = Task("a", Kind.RT, layers, period=0.1, deadline=0.1, jitter=0.004)
    taskset = Taskset(
        4, (late,), gpus=1, overhead=Overhead(layer=0.0001, job=0.0005), drain=Drain(gpu=0.01)
    )
    found = bounds(taskset, [C2, G2], {"a": where((0, 0, 0), (1, 1, 1))})
    assert found["a"] == pytest.approx(
        0.004 + 0.002 + 0.001 + 0.003 + 2 * 0.0001 + 2 * 0.0005 + 0.01
    )


@pytest.mark.parametrize(("mode", "high"), [(Mode.LAYER, 2 + 4), (Mode.STAGE, 2 + 7)])
def test_a_lesser_task_blocks_by_a_layer_or_by_a_stage(mode: Mode, high: float) -> None:
    tasks = (task("high", 2, weight=2), task("low", 3, 4))
    placed = {"high": where((0, 0, 0)), "low": where((0, 0, 1))}
    found = bounds(Taskset(4, tasks, mode=mode), [C4], placed)
    assert found == {"high": high / 1e3, "low": pytest.approx(0.009)}


def test_equals_hold_each_other_up() -> None:
    tasks = (task("a", 2), task("b", 3))
    found = bounds(Taskset(4, tasks), [C4], dict.fromkeys("ab", where((0, 0, 0))))
    assert found == {"a": 0.005, "b": 0.005}


@pytest.mark.parametrize(
    ("at", "blocked"),
    [
        (((0, 0, 0), (1, 1, 1)), (9, 9)),  # from its first node on, any layer may be anywhere
        (((1, 0, 1),), (0, 9)),  # never on the first: it moves forward only
    ],
)
def test_best_effort_blocks_wherever_it_may_be(at, blocked: tuple[int, int]) -> None:
    """R4."""
    tasks = (task("rt0", 1), task("rt1", 1), task("be", 7, 9, kind=Kind.BE))
    placed = {"rt0": where((0, 0, 0)), "rt1": where((1, 0, 0)), "be": where(*at)}
    found = bounds(Taskset(4, tasks), [C2, C2], placed)
    assert found == {"rt0": (1 + blocked[0]) / 1e3, "rt1": (1 + blocked[1]) / 1e3}


def test_best_effort_does_not_block_where_it_cannot_run() -> None:
    be = Task("be", Kind.BE, (Layer({C2: 0.007}),))
    placed = {"a": where((1, 0, 0)), "be": where((0, 0, 0))}
    found = bounds(Taskset(6, (task("a", 1), be)), [C2, C4], placed)
    assert found == {"a": 0.001}


def test_lateness_at_one_node_is_jitter_at_the_next() -> None:
    """The plain sum of both nodes' response times says 33 ms, and a job can be later.

    `low` comes to the second node between 1 and 21 ms after its release. `high` is there each 30 ms, and twice in the way where
    the first node kept it: with the jitter its load counts once more.
    """
    high = task("high", 20, 12, weight=3, period=0.033, deadline=0.033)
    low = Task("low", Kind.RT, (Layer({C2: 0.001}), Layer({C2: 0.001})), 0.1, 0.1)
    taskset = Taskset(4, (high, low))
    placed = {name: where((0, 0, 0), (1, 1, 1)) for name in ("high", "low")}
    found = bounds(taskset, [C2, C2], placed)
    assert found["high"] == pytest.approx(0.020 + 0.001 + 0.012 + 0.001)
    # second node: B 0, own 1, high 12, and high's jitter of 21 ms (it may take no time before) lets a second one follow
    assert found["low"] == pytest.approx(0.021 + 0.001 + 2 * 0.012)


def test_an_overloaded_node_bounds_nothing() -> None:
    tasks = (task("a", 60), task("b", 40, weight=2), task("c", 5, weight=3))
    placed = dict.fromkeys("abc", where((0, 0, 0)))
    found = bounds(Taskset(4, tasks), [C4], placed)
    assert found == {"a": None, "b": pytest.approx(0.105), "c": pytest.approx(0.065)}


def test_delay_stops_where_it_is_enough() -> None:
    me = Load(10, 100, 0, 10, 10)
    assert delay(me, [], 5) == 15
    assert delay(me, [], 5, most=15) == 15
    assert delay(me, [], 5, most=14) is None


# --- what may never lower a bound ---------------------------------------------------------------------------


def _placed(seed: int, mode: Mode, *, costs: bool = True):
    chance = Random(seed)
    taskset = draw(
        seed,
        cpus=4,
        gpus=1,
        max_nodes=3,
        realtime=4,
        best_effort=2,
        depth=4,
        load=0.15,
        mode=mode,
        least=0.3,
        costs=costs,
    )
    nodes = chance.choice([one for one in configurations(4, 1, 3) if len(one) > 1])
    return taskset, nodes, scatter(chance, taskset, len(nodes))


def _not_lower(new: dict[str, float | None], old: dict[str, float | None]) -> bool:
    """Whether no bound of `old` became less; None is more than any."""
    inf = float("inf")
    return all(
        (inf if new[n] is None else new[n]) >= (inf if b is None else b) for n, b in old.items()
    )


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("seed", range(40))
def test_a_task_more_lowers_no_bound(seed: int, mode: Mode) -> None:
    """R10; RT or BE."""
    taskset, nodes, placed = _placed(seed, mode)
    whole = bounds(taskset, nodes, placed)
    for gone in taskset.tasks:
        left = tuple(one for one in taskset.tasks if one is not gone)
        fewer = dataclasses.replace(taskset, tasks=left)
        found = bounds(fewer, nodes, placed)
        assert _not_lower({name: whole[name] for name in found}, found), gone.name


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("seed", range(40))
def test_a_higher_cost_lowers_no_bound(seed: int, mode: Mode) -> None:
    """R10: of a layer, a transfer, an overhead, a drain, a jitter; and a lower least cost neither."""
    taskset, nodes, placed = _placed(seed, mode)
    before, chance = bounds(taskset, nodes, placed), Random(seed)
    place = chance.randrange(len(taskset.tasks))
    victim = taskset.tasks[place]
    layer = chance.randrange(len(victim.layers))
    old = victim.layers[layer]
    factor = chance.uniform(1, 3)
    for new in (
        dataclasses.replace(old, worst={kind: s * factor for kind, s in old.worst.items()}),
        dataclasses.replace(old, transfer=old.transfer * factor + 1e-6),
        dataclasses.replace(old, best={}),
    ):
        layers = (*victim.layers[:layer], new, *victim.layers[layer + 1 :])
        other = _with(taskset, place, dataclasses.replace(victim, layers=layers))
        assert _not_lower(bounds(other, nodes, placed), before)
    late = dataclasses.replace(victim, jitter=victim.jitter + 0.001)
    assert _not_lower(bounds(_with(taskset, place, late), nodes, placed), before)
    for more in ({"overhead": Overhead(40e-6, 90e-6)}, {"drain": Drain(gpu=0.001, cpu=0.0001)}):
        assert _not_lower(bounds(dataclasses.replace(taskset, **more), nodes, placed), before)


def _with(taskset: Taskset, place: int, new: Task) -> Taskset:
    tasks = (*taskset.tasks[:place], new, *taskset.tasks[place + 1 :])
    return dataclasses.replace(taskset, tasks=tasks)


@pytest.mark.parametrize("seed", range(40))
def test_letting_go_after_each_layer_helps_those_in_front(seed: int) -> None:
    """The heaviest task's bound is no higher in mode `layer` than in mode `stage`."""
    taskset, nodes, placed = _placed(seed, Mode.STAGE)
    heaviest = max(t.weight for t in taskset.tasks if t.kind is Kind.RT)
    stage = bounds(taskset, nodes, placed)
    layer = bounds(dataclasses.replace(taskset, mode=Mode.LAYER), nodes, placed)
    for one in taskset.tasks:
        first, then = layer.get(one.name), stage.get(one.name)
        if one.kind is Kind.RT and one.weight == heaviest and then is not None:
            others = [t for t in taskset.tasks if t.kind is Kind.RT and t.weight == heaviest]
            if len(others) == 1:
                assert first is not None
                assert first <= then
