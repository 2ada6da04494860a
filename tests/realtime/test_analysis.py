"""Admission: what is admitted holds by the bound, the search is as good as trying all, and a refusal says what would fit."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from random import Random

import pytest

from benchmarks.realtime_sets import draw
from gpushare_kernel.realtime import analysis as module
from gpushare_kernel.realtime.analysis import Analysis, analyse, bounds
from gpushare_kernel.realtime.answers import answer_from, answer_to
from gpushare_kernel.realtime.configurations import configurations, count
from gpushare_kernel.realtime.model import BadTaskset, Kind, Layer, NodeType, Task
from gpushare_kernel.realtime.proof import NICE
from gpushare_kernel.realtime.search import SMALL
from gpushare_kernel.realtime.taskset import Drain, Mode, Taskset

C1, C2, G2 = NodeType(1), NodeType(2), NodeType(2, 1)


def small(seed: int, load: float = 0.15, mode: Mode = Mode.LAYER) -> Taskset:
    return draw(
        seed,
        cpus=4,
        gpus=1,
        max_nodes=3,
        realtime=3,
        best_effort=1,
        depth=4,
        load=load,
        mode=mode,
        costs=True,
    )


def check(taskset: Taskset, found: Analysis) -> None:
    """Every promise of an answer: stages cover all layers in order, bounds are the reckoned ones, W is as published."""
    placed = {task.name: task.stages for task in found.tasks}
    promised = bounds(taskset, found.configuration, placed)
    assert [task.name for task in found.tasks] == [task.name for task in taskset.tasks]
    for task, one in zip(taskset.tasks, found.tasks, strict=True):
        layers = [n for stage in one.stages for n in range(stage.first, stage.last + 1)]
        assert layers == list(range(len(task.layers)))
        nodes = [stage.node for stage in one.stages]
        assert nodes == sorted(set(nodes))
        for stage in one.stages:
            kind = found.configuration[stage.node]
            assert all(kind in task.layers[n].worst for n in range(stage.first, stage.last + 1))
        assert one.bound == promised.get(one.name)
    realtime = [task for task in taskset.tasks if task.kind is Kind.RT]
    if found.admitted:
        assert all((promised[task.name] or 9) <= (task.deadline or 0) for task in realtime)
        objective = sum(
            task.weight / len(realtime) * (promised[task.name] or 9) / (task.deadline or 1)
            for task in realtime
        )
        assert found.objective == pytest.approx(objective)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("seed", range(15))
def test_an_answer_keeps_its_promises(seed: int, mode: Mode) -> None:
    taskset = small(seed, Random(seed).uniform(0.1, 0.5), mode)
    pruned, exact = analyse(taskset), analyse(taskset, exact=True)
    check(taskset, pruned)
    check(taskset, exact)
    assert exact.candidates == count(4, 1, 3)
    assert exact.admitted >= pruned.admitted
    if pruned.admitted:
        assert pruned.objective is not None
        assert exact.objective is not None
        assert exact.objective <= pruned.objective * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_tasks_changes_nothing(seed: int) -> None:
    """R9."""
    taskset = small(seed)
    tasks = list(taskset.tasks)
    Random(seed).shuffle(tasks)
    one, other = analyse(taskset), analyse(dataclasses.replace(taskset, tasks=tuple(tasks)))
    assert (one.configuration, one.objective) == (other.configuration, other.objective)
    assert sorted(one.tasks, key=str) == sorted(other.tasks, key=str)


@pytest.mark.parametrize("seed", range(20))
def test_without_best_effort_no_bound_is_higher(seed: int) -> None:
    """Where the same nodes run the same layers; what is found without it may be placed otherwise."""
    taskset = small(seed, 0.2)
    found = analyse(taskset)
    left = tuple(task for task in taskset.tasks if task.kind is Kind.RT)
    placed = {task.name: task.stages for task in found.tasks}
    alone = bounds(dataclasses.replace(taskset, tasks=left), found.configuration, placed)
    for one in found.tasks:
        if one.bound is not None:
            assert (alone[one.name] or 0) <= one.bound


def test_best_of_all_by_trying_everything() -> None:
    """Two layers, two cores: every configuration and placement, by hand."""
    layers = (Layer({C1: 0.004, C2: 0.001}), Layer({C1: 0.002, C2: 0.0019}))
    a = Task("a", Kind.RT, layers, 0.01, 0.01, weight=2)
    b = dataclasses.replace(a, name="b", weight=1)
    found = analyse(Taskset(2, (a, b)), exact=True)
    # one node of both cores: a waits for a layer of b, b for all of a; two nodes: 6 and 6 at best
    assert found.configuration == (C2,)
    assert [task.bound for task in found.tasks] == [pytest.approx(0.0048), pytest.approx(0.0058)]
    assert found.objective == pytest.approx(2 / 2 * 0.48 + 1 / 2 * 0.58)


def test_json_and_pickles_lose_nothing() -> None:
    for taskset in (small(1), small(1, 2.0)):
        found = analyse(taskset)
        assert answer_from(json.loads(json.dumps(answer_to(found)))) == found
        assert pickle.loads(pickle.dumps(found)) == found
        assert pickle.loads(pickle.dumps(taskset)) == taskset


def test_the_answer_has_the_words_that_programs_read() -> None:
    answer = answer_to(analyse(small(1)))
    assert set(answer) == {"admitted", "objective", "configuration", "tasks", "candidates"}
    assert set(answer["tasks"][0]) == {"name", "bound", "stages"}
    assert set(answer["tasks"][0]["stages"][0]) == {"node", "first", "last"}
    assert set(answer["configuration"][0]) == {"cpus", "gpus"}
    assert answer["tasks"][-1]["bound"] is None  # the BE task


# --- refusals -------------------------------------------------------------------------------------------------


def one(name: str, seconds: float, deadline: float, *, weight: float = 1.0) -> Task:
    return Task(name, Kind.RT, (Layer({C2: seconds}),), deadline, deadline, weight)


def test_a_set_that_fits_only_without_best_effort_is_told_so() -> None:
    be = Task("be", Kind.BE, (Layer({C2: 0.02}),))
    found = analyse(Taskset(2, (one("a", 0.005, 0.01), be), max_nodes=1))
    assert not found.admitted
    assert found.objective is None
    refusal = found.refusal
    assert refusal is not None
    assert (refusal.task, refusal.bound, refusal.deadline) == ("a", 0.025, 0.01)
    assert refusal.without_best_effort
    assert refusal.without is None
    assert refusal.slower == 2.5
    assert refusal.message == (
        "task a may take 25 ms, 15 ms longer than its deadline of 10 ms, in the best of 1 configurations (c2). "
        "It fits without best effort, or with all periods and deadlines 2.5 times as long."
    )
    assert analyse(Taskset(2, (one("a", 0.005, 0.01),), max_nodes=1)).admitted


def test_an_overload_is_told_by_how_much() -> None:
    tasks = (one("a", 0.006, 0.01, weight=2), one("b", 0.012, 0.02))
    refusal = analyse(Taskset(2, tasks, max_nodes=1)).refusal
    assert refusal is not None
    assert (refusal.task, refusal.bound) == ("b", None)
    assert "RT tasks alone keep node c2 busy 1.20 of the time" in refusal.message
    assert not refusal.without_best_effort
    assert refusal.without == "b"
    assert refusal.slower is not None
    for factor, admitted in ((refusal.slower, True), (refusal.slower - 0.01, False)):
        slow = tuple(
            dataclasses.replace(
                t, period=(t.period or 0) * factor, deadline=(t.deadline or 0) * factor
            )
            for t in tasks
        )
        assert analyse(Taskset(2, slow, max_nodes=1)).admitted is admitted


def test_a_drain_longer_than_the_slack_is_refused_with_the_numbers() -> None:
    layers = (Layer({G2: 0.002}),)
    rt = Task("a", Kind.RT, layers, 0.02, 0.02)
    assert analyse(Taskset(2, (rt,), gpus=1, drain=Drain(gpu=0.018))).admitted
    refusal = analyse(Taskset(2, (rt,), gpus=1, drain=Drain(gpu=0.04))).refusal
    assert refusal is not None
    assert (refusal.bound, refusal.deadline, refusal.slower) == (0.042, 0.02, 2.1)


def test_layers_that_no_pipeline_has_in_their_order_are_named() -> None:
    """One GPU, and both ends of a chain need it: there is no way back."""
    layers = (Layer({G2: 0.001}), Layer({C2: 0.001}), Layer({G2: 0.001}))
    found = analyse(
        Taskset(4, (one("a", 0.001, 0.1), Task("b", Kind.RT, layers, 0.1, 0.1)), gpus=1)
    )
    assert (found.admitted, found.configuration) == (False, ())
    assert [task.stages for task in found.tasks] == [(), ()]
    assert found.refusal is not None
    assert found.refusal.task == "b"
    assert "none of" in found.refusal.message


def test_before_a_set_is_refused_all_of_a_small_machine_is_tried() -> None:
    taskset = small(2, 3.0)
    assert count(4, 1, 3) <= SMALL
    found = analyse(taskset)
    assert not found.admitted
    assert found.candidates == len(list(configurations(4, 1, 3)))


def test_a_refusal_says_where_not_all_was_tried() -> None:
    """Two tasks that need the one GPU for longer than either may wait."""
    layers = (Layer({NodeType(cpus, 1): 0.006 for cpus in range(1, 17)}),)
    tasks = tuple(Task(name, Kind.RT, layers, 0.02, 0.01) for name in "ab")
    found = analyse(Taskset(16, tasks, gpus=1))
    assert found.refusal is not None
    assert found.candidates < count(16, 1, 4) == 2166
    assert f"{found.candidates} of 2166 configurations were tried" in found.refusal.message


def test_an_exact_search_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EXACT", 5)
    with pytest.raises(BadTaskset, match=r"16 are more than 5\. Lower max_nodes"):
        analyse(small(1), exact=True)


def test_what_is_wrong_with_the_set_is_said_first() -> None:
    with pytest.raises(BadTaskset, match="deadline"):
        analyse(Taskset(2, (dataclasses.replace(one("a", 0.001, 0.01), deadline=0.02),)))


def test_a_proof_stands_back() -> None:
    """Deadlines run on the same cores while it is made; it answers all the same."""
    said = "from gpushare_kernel.realtime import proof; import os, sys; before = os.nice(0); proof.main(); print(os.nice(0) - before, file=sys.stderr)"
    question = {
        "taskset": {
            "cpus": 1,
            "tasks": [
                {"name": "a", "class": "RT", "period": 1, "deadline": 1, "layers": [{"c1": 0.01}]}
            ],
        },
        "configuration": [],
        "stages": {},
    }
    done = subprocess.run([sys.executable, "-c", said], input=json.dumps(question), capture_output=True, text=True, check=True)  # fmt: skip
    assert "bounds" in json.loads(done.stdout)
    assert int(done.stderr) == min(NICE, 19 - os.nice(0))
