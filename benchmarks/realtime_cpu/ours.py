"""(d): the same taskset as pipelines on nodes, with a decision after each layer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.realtime_cpu.models import Net, nets
from gpushare_kernel.core.errors import Refused
from gpushare_kernel.realtime import host
from gpushare_kernel.realtime.admissions import Own
from gpushare_kernel.realtime.measurement import measure
from gpushare_kernel.realtime.model import Kind, NodeType, Stage
from gpushare_kernel.realtime.nodes import Nodes
from gpushare_kernel.realtime.pipeline import Pipeline
from gpushare_kernel.realtime.placement import Fixed, Placement
from gpushare_kernel.realtime.profile import Profile

READY = 2
"""Jobs that each best-effort model has on its way: one always waits."""


def run(given: dict[str, Any]) -> dict[str, Any]:
    """Run all for so many seconds: those with deadlines as far as they are admitted, or all by the small rule where that is asked for."""
    rt, be = nets(given["device"])
    built = {net.name: net.built("cpu") for net in (*rt, *be)}
    known = profiles(given)
    placement, rt = _placement(given, rt, be, known)
    nodes = Nodes(Fixed(placement.nodes, placement.stages, placement.bounds))
    with contextlib.ExitStack() as stack:

        def opened(net: Net, **more: Any) -> Pipeline:
            model, x = built[net.name]
            pipe = Pipeline(model, x, name=net.name, nodes=nodes, profile=known[net.name], tell=lambda _: None, **more)  # fmt: skip
            return stack.enter_context(pipe)

        deadlines = [
            opened(net, period=given["periods"][net.name], deadline=given["periods"][net.name], weight=_weight(net, given))
            for net in rt
        ]  # fmt: skip
        others = [opened(net, class_="BE") for net in be]
        return _run(given, deadlines, others, {name: x for name, (_, x) in built.items()})


def profiles(given: dict[str, Any]) -> dict[str, Profile]:
    """Return how long each net's layers take on each type of node; measured once."""
    types = [*dict.fromkeys([*Own().types(host.cores(), host.gpus()), *_types(given)])]
    found = {}
    for part in nets(given["device"]):
        for net in part:
            model, x = net.built("cpu")
            found[net.name] = measure(model, x, types, name=net.name, seconds=given["measure"])
    return found


def _types(given: Mapping[str, Any]) -> list[NodeType]:
    return [NodeType.parse(name) for name in given["nodes"]]


def _weight(net: Net, given: Mapping[str, Any]) -> int:
    rt, _ = nets(given["device"])
    return len(rt) - rt.index(net)


def _placement(
    given: Mapping[str, Any], rt: Sequence[Net], be: Sequence[Net], known: Mapping[str, Profile]
) -> tuple[Placement, Sequence[Net]]:
    """Return where all run and who is in: by the analysis; where that refuses one of them, and a rule is asked for, by that."""
    types = Own().types(host.cores(), host.gpus())
    others = [known[net.name].task(net.name, Kind.BE, types) for net in be]
    placement, tasks, admitted = None, others, []
    for net in rt:
        period = given["periods"][net.name]
        task = known[net.name].task(net.name, Kind.RT, types, period=period, deadline=period, weight=_weight(net, given))  # fmt: skip
        with contextlib.suppress(Refused):
            placement = Own().admit(task, tasks)
            tasks, admitted = [task, *tasks], [*admitted, net]
    if given["rule"] and len(admitted) < len(rt):
        return Placement(tuple(_types(given)), placed(rt, be, known, _types(given), given["periods"])), rt  # fmt: skip
    return placement or Own().admit(others[0], others[1:]), admitted


def _run(given: dict[str, Any], deadlines: Sequence[Pipeline], others: Sequence[Pipeline], inputs: dict[str, torch.Tensor]) -> dict[str, Any]:  # fmt: skip
    end = time.monotonic() + given["seconds"]
    counts = dict.fromkeys((pipe.task.name for pipe in others), 0)

    def again(pipe: Pipeline) -> None:
        """Whenever a job is done, the next one is there."""

        def done(_: Any) -> None:
            if time.monotonic() < end:
                counts[pipe.task.name] += 1
                submit()

        def submit() -> None:
            pipe.submit(inputs[pipe.task.name]).add_done_callback(done)

        for _ in range(READY):
            submit()

    def source(pipe: Pipeline) -> Any:
        while time.monotonic() < end:
            yield inputs[pipe.task.name]

    def read(pipe: Pipeline) -> None:
        for _ in pipe.every_period(source(pipe)):
            pass

    for pipe in others:
        again(pipe)
    readers = [threading.Thread(target=read, args=(pipe,)) for pipe in deadlines]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    pace = threading.Event()
    pace.wait(max(0.0, end - time.monotonic()))  # where nobody has a deadline
    reports = [pipe.report() for pipe in deadlines]
    return {
        "rt": {one.name: list(one.responses) for one in reports},
        "be": counts,
        "delivered": {one.name: one.longest_delivered for one in reports},
        "bounds": {one.name: one.bound for one in reports},
        "missed": sum(one.misses for one in reports),
        "skipped": sum(one.skipped for one in reports),
        "disturbed": sum(one.disturbed for one in reports),
        "overruns": {one.name: one.overruns for one in (*reports, *(pipe.report() for pipe in others))},
        "moved": sum(pipe.report().moved for pipe in others),
        "stages": {one.name: list(one.stages) for one in reports},
    }  # fmt: skip


def placed(
    rt: Sequence[Net],
    be: Sequence[Net],
    profiles: Mapping[str, Profile],
    types: Sequence[NodeType],
    periods: Mapping[str, float],
) -> dict[str, tuple[Stage, ...]]:
    """Place each model, the largest load first, where the fullest node stays least full. By hand, for two nodes at most.

    Best effort is not cut: it goes to the node that has the least of it, and moves by itself.
    """
    load = [0.0] * len(types)
    stages = {}
    for net in sorted(rt, key=lambda net: -sum(_seconds(profiles[net.name], types[0])) / periods[net.name]):  # fmt: skip
        stages[net.name] = _cut(net, profiles[net.name], types, periods[net.name], load)
    beside = [0.0] * len(types)
    for net in sorted(be, key=lambda net: -sum(_seconds(profiles[net.name], types[0]))):
        node = min(range(len(types)), key=lambda k: beside[k] + sum(_seconds(profiles[net.name], types[k])))  # fmt: skip
        beside[node] += sum(_seconds(profiles[net.name], types[node]))
        stages[net.name] = (Stage(node, 0, net.pieces - 1),)
    return stages


def _cut(net: Net, profile: Profile, types: Sequence[NodeType], period: float, load: list[float]) -> tuple[Stage, ...]:  # fmt: skip
    first, last = types[0], types[-1]
    best: tuple[float, int] = (float("inf"), 0)
    for cut in range(net.pieces + 1):
        here, there = sum(_seconds(profile, first)[:cut]), sum(_seconds(profile, last)[cut:])
        crossed = 0.1 * period if 0 < cut < net.pieces else 0.0  # one stage is better than two
        fullest = max(load[0] + here / period, load[-1] + there / period) + crossed / period
        best = min(best, (fullest, cut))
    cut = best[1]
    load[0] += sum(_seconds(profile, first)[:cut]) / period
    load[-1] += sum(_seconds(profile, last)[cut:]) / period
    stages = (Stage(0, 0, cut - 1), Stage(len(types) - 1, cut, net.pieces - 1))
    return tuple(stage for stage in stages if stage.last >= stage.first)


def _seconds(profile: Profile, kind: NodeType) -> list[float]:
    """Return what layers usually take: between the shortest and the longest run."""
    costs = profile.costs[str(kind)]
    return [(2 * best + worst) / 3 for best, worst in zip(costs.best, costs.worst, strict=True)]
