"""The JSON of a task set: read as it is written, and each mistake is named with its place, value and remedy."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.realtime_sets import draw
from gpushare_kernel.realtime.model import BadTaskset, Kind, NodeType
from gpushare_kernel.realtime.taskset import (
    Mode,
    parse_taskset,
    taskset_from,
    taskset_to,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "realtime" / "camera.json"
CAM: dict[str, Any] = {
    "name": "cam",
    "class": "RT",
    "period": 0.033,
    "deadline": 0.03,
    "weight": 2,
    "layers": [{"c1": 0.004, "c2": 0.0022, "c2g1": 0.0003}, {"c2": 0.001, "min": {"c2": 0.0005}}],
}
SET: dict[str, Any] = {"cpus": 8, "gpus": 1, "max_nodes": 4, "mode": "layer", "tasks": [CAM]}


def changed(**keys: Any) -> str:
    """The set with some keys of its own (`cpus`), its task's (`t_period`) or its first layer's (`l_c2`) changed."""
    found = copy.deepcopy(SET)
    for key, value in keys.items():
        part, _, name = key.partition("_")
        where = {"t": found["tasks"][0], "l": found["tasks"][0]["layers"][0]}.get(part, found)
        where[name if part in {"t", "l"} else key] = value
    return json.dumps(found)


def test_a_set_is_read_as_it_is_written() -> None:
    taskset = parse_taskset(json.dumps(SET))
    assert (taskset.cpus, taskset.gpus, taskset.max_nodes, taskset.mode) == (8, 1, 4, Mode.LAYER)
    (cam,) = taskset.tasks
    assert (cam.name, cam.kind, cam.period, cam.deadline, cam.weight) == (
        "cam", Kind.RT, 0.033, 0.03, 2.0,
    )  # fmt: skip
    assert cam.layers[0].worst[NodeType(2, 1)] == 0.0003
    assert cam.layers[0].best == {}
    assert cam.layers[1].best == {NodeType(2): 0.0005}


@pytest.mark.parametrize("mode", list(Mode))
def test_both_directions_lose_nothing(mode: Mode) -> None:
    for taskset in (
        parse_taskset(EXAMPLE.read_bytes()),
        draw(3, cpus=4, gpus=1, max_nodes=3, realtime=3, best_effort=2, depth=4, load=0.2, mode=mode, costs=True),
    ):  # fmt: skip
        assert taskset_from(json.loads(json.dumps(taskset_to(taskset)))) == taskset


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed(t_deadline=0.04), "task cam: deadline 0.04 s is later than its period 0.033 s"),
        (changed(t_deadline=0.001), "task cam: its layers take 0.0013 s on their fastest nodes"),
        (changed(l_c2=-1), "task cam: layer 0: its cost on c2 must be above 0 seconds, not -1"),
        (changed(l_c2=float("nan")), "task cam: layer 0: its cost on c2 must be above 0 seconds, not nan"),
        (changed(t_period=float("inf")), "task cam: period must be above 0 seconds, not inf"),
        (changed(t_weight=0), "task cam: weight must be above 0, not 0"),
        (changed(t_jitter=-0.1), "task cam: jitter must be 0 or more seconds, not -0.1"),
        (changed(l_transfer=float("nan")), "task cam: layer 0: transfer must be 0 or more seconds, not nan"),
        (changed(l_min={"c2": 0.01}), "task cam: layer 0: its least cost on c2 must be 0 to 0.0022, not 0.01"),
        (changed(l_min={"c4": 0.01}), "task cam, layer 0: min has c4, for which no cost is given"),
        (changed(l_c2="2ms"), "task cam, layer 0: c2 must be a number, not '2ms'"),
        (changed(l_c2=True), "task cam, layer 0: c2 must be a number, not True"),
        (changed(l_transfr=1), "task cam, layer 0: a node type must be cN or cNg1"),
        (changed(l_transfr=1), "Did you mean transfer?"),
        (changed(l_c2g2=1), "a node type must be cN or cNg1 (N cores; at most one GPU), not 'c2g2'"),
        (changed(t_layers=[]), "task cam: must have at least one layer"),
        (changed(t_layers=[{}]), "task cam: layer 0 can run on no node"),
        (changed(t_layers=[{"c16": 0.001}]), "task cam, layer 0: it runs on c16 only, and no split of 8 cores and 1 GPUs into at most 4"),
        (changed(t_layers=[{"c8": 0.001}]), "task cam, layer 0: it runs on c8 only"),
        (changed(max_nodes=1, t_layers=[{"c2": 0.001}]), "task cam, layer 0: it runs on c2 only"),
        (changed(t_layers=[5]), "task cam, layer 0: must be an object, not 5"),
        (changed(t_layers="x"), "task cam: layers must be a list, not 'x'"),
        (changed(t_deadlin=1), "task 0: has 'deadlin', which means nothing here. Did you mean deadline?"),
        (changed(t_class="rt"), "task cam: class: must be RT or BE, not 'rt'. Did you mean RT?"),
        (changed(t_class="BE"), "none of 1 is RT, and only RT tasks have deadlines"),
        (changed(t_period=None), "task cam: an RT task has a period and a deadline"),
        (changed(t_name=""), "task 0: must have a name, not ''"),
        (changed(tasks=[CAM, CAM]), "task cam: its name is there twice"),
        (changed(tasks=[]), "tasks: must be a list of at least one task, not []"),
        (changed(tasks=3), "tasks: must be a list of at least one task, not 3"),
        (changed(mode="layers"), "mode: must be layer or stage, not 'layers'. Did you mean layer?"),
        (changed(cpus=0), "cpus: must be 1 to 1024, not 0"),
        (changed(cpus=2.5), "cpus: must be a whole number, not 2.5"),
        (changed(gpus=5), "gpus: must be 0 to 4, not 5"),
        (changed(max_nodes=0), "max_nodes: must be 1 to 16, not 0"),
        (changed(max_node=3), "the task set: has 'max_node', which means nothing here. Did you mean max_nodes?"),
        (changed(overhead={"layer": -1}), "overhead: layer: must be 0 or more seconds, not -1"),
        (changed(overhead=0.1), "overhead: must be an object, not 0.1"),
        (changed(drain={"gpu": float("inf")}), "drain: gpu: must be 0 or more seconds, not inf"),
        ("[]", "the task set: must be an object, not []"),
        ("{", "a task set is a JSON object, and this is none: "),
        ('{"cpus": 1, "cpus": 2}', "'cpus': is there twice in one object"),
        (changed(l_c2=10**400), "task cam, layer 0: c2 is too large"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(BadTaskset) as error:
        parse_taskset(text)
    assert said in str(error.value)
