"""The simulation: no bound is ever exceeded, the same seed gives the same run, and it does what it says it does."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest

from benchmarks.realtime_sets import draw, scatter
from gpushare_kernel.realtime.analysis import analyse, bounds
from gpushare_kernel.realtime.configurations import configurations
from gpushare_kernel.realtime.model import Kind, Layer, NodeType, Stage, Task
from gpushare_kernel.realtime.simulation import Simulation, simulate
from gpushare_kernel.realtime.taskset import Drain, Mode, Overhead, Taskset
from gpushare_kernel.realtime.work import SECOND

C1, C2, G2 = NodeType(1), NodeType(2), NodeType(2, 1)


def random_set(seed: int, mode: Mode) -> Taskset:
    chance = Random(seed)
    return draw(
        seed,
        cpus=chance.choice((4, 6)),
        gpus=chance.choice((0, 1)),
        max_nodes=4,
        realtime=chance.randint(2, 5),
        best_effort=chance.randint(0, 2),
        depth=chance.randint(2, 5),
        load=chance.uniform(0.1, 0.5),
        mode=mode,
        least=chance.choice((0.0, 0.3, 1.0)),
        costs=chance.random() < 0.7,
    )


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("seed", range(150))
def test_no_bound_is_exceeded_wherever_layers_are(seed: int, mode: Mode) -> None:
    """R8, placements drawn at random."""
    taskset, chance = random_set(seed, mode), Random(seed)
    nodes = chance.choice(
        [one for one in configurations(taskset.cpus, taskset.gpus, 4) if len(one) > 1]
    )
    placed = scatter(chance, taskset, len(nodes))
    promised = bounds(taskset, nodes, placed)
    seen = simulate(taskset, nodes, placed, seconds=2, seed=seed)
    for name, bound in promised.items():
        assert seen[name] > 0
        assert bound is None or seen[name] <= bound, name


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("seed", range(30))
def test_no_bound_is_exceeded_where_the_analysis_puts_them(seed: int, mode: Mode) -> None:
    taskset = random_set(seed, mode)
    found = analyse(taskset)
    placed = {task.name: task.stages for task in found.tasks}
    seen = simulate(taskset, found.configuration, placed, seconds=2, seed=seed)
    for task in found.tasks:
        assert task.bound is None or seen[task.name] <= task.bound, task.name


def everything() -> Taskset:
    """Two RT tasks that meet on the GPU's node, and a BE task that may be anywhere."""

    def layers(ms: float) -> tuple[Layer, ...]:
        return tuple(Layer({C2: ms / 1e3, G2: ms / 2e3}, transfer=0.0005) for _ in range(3))

    return Taskset(
        4,
        (
            Task("a", Kind.RT, layers(2), 0.05, 0.05, weight=2, jitter=0.005),
            Task("b", Kind.RT, layers(3), 0.05, 0.05),
            Task("be", Kind.BE, layers(8)),
        ),
        gpus=1,
        overhead=Overhead(0.0001, 0.0002),
        drain=Drain(gpu=0.002, cpu=0.001),
    )


PLACED = {name: (Stage(0, 0, 0), Stage(1, 1, 2)) for name in "ab"} | {"be": (Stage(0, 0, 2),)}


def test_the_same_seed_is_the_same_run() -> None:
    runs = [simulate(everything(), (C2, G2), PLACED, seconds=5, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_what_is_seen_comes_close_to_the_bound() -> None:
    """An adversary that does not press proves nothing."""
    promised = bounds(everything(), (C2, G2), PLACED)
    seen = simulate(everything(), (C2, G2), PLACED, seconds=60, seed=0)
    for name, bound in promised.items():
        assert bound is not None
        assert 0.7 * bound < seen[name] <= bound


def test_best_effort_always_has_a_job_and_moves_on_or_stays() -> None:
    placed = {name: tuple((s.node, s.first, s.last + 1) for s in p) for name, p in PLACED.items()}
    run = Simulation(everything(), (C2, G2), placed, 0)
    run.run(5)
    assert run.moved > 0
    assert run.done["be"] > 100
    assert run.done["a"] > 10
    assert run.now >= 5 * SECOND
    run = Simulation(everything(), (C2, G2), {**placed, "be": placed["a"]}, 0)
    run.run(5)
    assert run.stayed > 0


PLAIN = Taskset(2, (Task("a", Kind.RT, (Layer({G2: 0.001}),), 0.1, 0.1, weight=2),), gpus=1)


@pytest.mark.parametrize(
    "more",
    [
        {"drain": Drain(gpu=0.002)},
        {"overhead": Overhead(layer=0.002)},
        {"overhead": Overhead(job=0.002)},
        {"tasks": (dataclasses.replace(PLAIN.tasks[0], jitter=0.002),)},
        {"tasks": (Task("a", Kind.RT, (Layer({G2: 0.001}, transfer=0.002),), 0.1, 0.1),)},
        {"tasks": (*PLAIN.tasks, Task("b", Kind.RT, (Layer({G2: 0.002}),), 0.1, 0.1))},
        {"tasks": (*PLAIN.tasks, Task("be", Kind.BE, (Layer({G2: 0.002}),)))},
    ],
)
def test_each_thing_that_may_happen_does(more: dict[str, object]) -> None:
    """What is seen is above the bound of the set without it: so it is simulated, nearly at its worst."""
    taskset = dataclasses.replace(PLAIN, **more)
    placed = {task.name: (Stage(0, 0, 0),) for task in taskset.tasks}
    seen = simulate(taskset, (G2,), placed, seconds=200, seed=0)["a"]
    without, promised = (bounds(one, (G2,), placed)["a"] for one in (PLAIN, taskset))
    assert without == 0.001
    assert promised == 0.003
    assert 0.0028 < seen <= promised


@pytest.mark.parametrize(("mode", "seen"), [(Mode.LAYER, 0.006), (Mode.STAGE, 0.009)])
def test_a_lesser_task_gives_way_after_a_layer_or_a_stage(mode: Mode, seen: float) -> None:
    tasks = (
        Task("high", Kind.RT, (Layer({C1: 0.002}),), 0.1, 0.1, weight=2),
        Task("low", Kind.RT, (Layer({C1: 0.003}), Layer({C1: 0.004})), 0.1, 0.1),
    )
    placed = {"high": (Stage(0, 0, 0),), "low": (Stage(0, 0, 1),)}
    taskset = Taskset(1, tasks, mode=mode)
    found = simulate(taskset, (C1,), placed, seconds=200, seed=0)
    assert seen * 0.97 < found["high"] <= seen
