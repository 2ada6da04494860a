"""A set of tasks and the machine they are for: its JSON, both ways, and what is refused at once (docs/realtime.md, section 1)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any, NoReturn, TypeVar

from gpushare_kernel.realtime.model import BadTaskset, Kind, Layer, NodeType, Task

MOST_CPUS, MOST_NODES = 1024, 16
_TOP = ("cpus", "gpus", "max_nodes", "mode", "tasks", "overhead", "drain")
_TASK = ("name", "class", "period", "deadline", "weight", "jitter", "layers")
_LAYER = ("name", "min", "transfer")
_Word = TypeVar("_Word", bound=StrEnum)


class Mode(StrEnum):
    """Where a task makes room for one of a larger weight: after any layer, or only where its stage ends."""

    LAYER = "layer"
    STAGE = "stage"


@dataclass(frozen=True, slots=True)
class Overhead:
    """What running costs beside the layers, at most (seconds): `layer` to start each layer, `job` to pass each job to a node."""

    layer: float = 0.0
    job: float = 0.0


@dataclass(frozen=True, slots=True)
class Drain:
    """How long a node may have to wait until processes that are none of its own are off it (seconds; rule I7).

    `gpu` holds for each node with a GPU, `cpu` for each without.
    """

    gpu: float = 0.0
    cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class Taskset:
    """Tasks, and what there is to run them on: `cpus` cores and `gpus` GPUs in at most `max_nodes` nodes."""

    cpus: int
    tasks: tuple[Task, ...]
    gpus: int = 0
    max_nodes: int = 4
    mode: Mode = Mode.LAYER
    overhead: Overhead = Overhead()
    drain: Drain = Drain()

    def check(self) -> None:
        """Raise `BadTaskset` where this cannot be analysed: rule, value, and what to do."""
        _check_machine(self.cpus, self.gpus, self.max_nodes)
        for where, seconds in (
            ("overhead: layer", self.overhead.layer),
            ("overhead: job", self.overhead.job),
            ("drain: gpu", self.drain.gpu),
            ("drain: cpu", self.drain.cpu),
        ):
            if not (isfinite(seconds) and seconds >= 0):
                _refuse(where, f"must be 0 or more seconds, not {seconds}", "Measure it again")
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            _refuse(f"task {twice[0]}", "its name is there twice", "Give each task its own name")
        for task in self.tasks:
            task.check()
            self._check_nodes(task)
        if not any(task.kind is Kind.RT for task in self.tasks):
            _refuse(
                "tasks",
                f"none of {len(self.tasks)} is RT, and only RT tasks have deadlines to prove",
                'Give at least one task "class": "RT", a period and a deadline',
            )

    def _check_nodes(self, task: Task) -> None:
        for place, layer in enumerate(task.layers):
            if not any(self.can_have(kind) for kind in layer.worst):
                known = ", ".join(str(kind) for kind in sorted(layer.worst))
                _refuse(
                    f"task {task.name}, layer {place}",
                    f"it runs on {known} only, and no split of {self.cpus} cores and {self.gpus} GPUs into at most {self.max_nodes} nodes has such a node",
                    "Measure it on other node types, or allow more nodes",
                )

    def can_have(self, kind: NodeType) -> bool:
        """Whether any configuration has a node of this type."""
        cores, gpus = self.cpus - kind.cpus, self.gpus - kind.gpus
        if cores == 0:
            return gpus == 0
        return 0 <= gpus <= self.max_nodes - 1 >= 1 and cores >= max(1, gpus)


def _check_machine(cpus: int, gpus: int, max_nodes: int) -> None:
    if not 1 <= cpus <= MOST_CPUS:
        _refuse("cpus", f"must be 1 to {MOST_CPUS}, not {cpus}", "Say how many cores there are")
    if not 1 <= max_nodes <= MOST_NODES:
        _refuse(
            "max_nodes",
            f"must be 1 to {MOST_NODES}, not {max_nodes}",
            "Write 4: more nodes seldom help",
        )
    if not 0 <= gpus <= min(cpus, max_nodes):
        _refuse(
            "gpus",
            f"must be 0 to {min(cpus, max_nodes)}, not {gpus}: each has a node of its own, with a core to start its work",
            "Allow more nodes, or give fewer GPUs",
        )


def parse_taskset(text: str | bytes) -> Taskset:
    """Read a task set from its JSON, and check it.

    Raises
    ------
    BadTaskset
        With the place, the rule, the value seen and what to do.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as problem:
        msg = f"a task set is a JSON object, and this is none: {problem}. See examples/realtime/camera.json"
        raise BadTaskset(msg) from None
    return taskset_from(found)


def taskset_from(found: object) -> Taskset:
    """Return the task set that plain dicts, lists and numbers say: `parse_taskset` without the text. The same errors."""
    top = _object("the task set", found, _TOP)
    tasks = top.get("tasks", ())
    if not isinstance(tasks, Sequence) or isinstance(tasks, str) or not tasks:
        _refuse("tasks", f"must be a list of at least one task, not {tasks!r}", "Add the tasks")
    taskset = Taskset(
        cpus=_whole("cpus", top.get("cpus")),
        gpus=_whole("gpus", top.get("gpus", 0)),
        max_nodes=_whole("max_nodes", top.get("max_nodes", 4)),
        mode=_word("mode", top.get("mode", "layer"), Mode),
        tasks=tuple(_task(place, task) for place, task in enumerate(tasks)),
        overhead=Overhead(**_seconds("overhead", top.get("overhead", {}), ("layer", "job"))),
        drain=Drain(**_seconds("drain", top.get("drain", {}), ("gpu", "cpu"))),
    )
    taskset.check()
    return taskset


def taskset_to(taskset: Taskset) -> dict[str, Any]:
    """Return what `taskset_from` reads: plain values, ready for JSON. What is as by default is left away."""
    return {
        "cpus": taskset.cpus,
        "gpus": taskset.gpus,
        "max_nodes": taskset.max_nodes,
        "mode": str(taskset.mode),
        "tasks": [_task_to(task) for task in taskset.tasks],
        "overhead": {"layer": taskset.overhead.layer, "job": taskset.overhead.job},
        "drain": {"gpu": taskset.drain.gpu, "cpu": taskset.drain.cpu},
    }


def _task_to(task: Task) -> dict[str, Any]:
    times = {"period": task.period, "deadline": task.deadline}
    return {
        "name": task.name,
        "class": str(task.kind),
        **{key: seconds for key, seconds in times.items() if seconds is not None},
        "weight": task.weight,
        **({"jitter": task.jitter} if task.jitter else {}),
        "layers": [_layer_to(layer) for layer in task.layers],
    }


def _layer_to(layer: Layer) -> dict[str, Any]:
    return {
        **({"name": layer.name} if layer.name else {}),
        **{str(kind): seconds for kind, seconds in layer.worst.items()},
        **({"min": {str(kind): s for kind, s in layer.best.items()}} if layer.best else {}),
        **({"transfer": layer.transfer} if layer.transfer else {}),
    }


def _task(place: int, found: object) -> Task:
    given = _object(f"task {place}", found, _TASK)
    name = given.get("name")
    if not isinstance(name, str) or not name.strip():
        _refuse(f"task {place}", f"must have a name, not {name!r}", 'Write "name": "camera"')
    where = f"task {name}"
    layers = given.get("layers", ())
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        _refuse(where, f"layers must be a list, not {layers!r}", "Write its layers, in order")
    times = {
        key: _number(where, key, given[key])
        for key in ("period", "deadline", "weight", "jitter")
        if given.get(key) is not None
    }
    return Task(
        name=name,
        kind=_word(f"{where}: class", given.get("class"), Kind),
        layers=tuple(_layer(f"{where}, layer {n}", layer) for n, layer in enumerate(layers)),
        **times,
    )


def _layer(where: str, found: object) -> Layer:
    if not isinstance(found, Mapping):
        _refuse(where, f"must be an object, not {found!r}", 'Write {"c2": 0.004} (seconds)')
    name = found.get("name", "")
    if not isinstance(name, str):
        _refuse(where, f"name must be a text, not {name!r}", "Leave it away")
    costs = {key: value for key, value in found.items() if key not in _LAYER}
    least = found.get("min", {})
    if not isinstance(least, Mapping):
        _refuse(where, f"min must be an object, not {least!r}", 'Write "min": {"c2": 0.003}')
    layer = Layer(
        worst=_costs(where, costs, known=_LAYER),
        best=_costs(f"{where}: min", least, known=()),
        transfer=_number(where, "transfer", found.get("transfer", 0.0)),
        name=name,
    )
    for kind in layer.best:
        if kind not in layer.worst:
            _refuse(where, f"min has {kind}, for which no cost is given", f"Add {kind} itself")
    return layer


def _costs(
    where: str, found: Mapping[str, object], known: Collection[str]
) -> dict[NodeType, float]:
    costs = {}
    for key, value in found.items():
        try:
            kind = NodeType.parse(key)
        except BadTaskset as problem:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            msg = f"{where}: {problem}.{hint}"
            raise BadTaskset(msg) from None
        costs[kind] = _number(where, key, value)
    return costs


def _seconds(where: str, found: object, keys: Sequence[str]) -> dict[str, float]:
    return {key: _number(where, key, value) for key, value in _object(where, found, keys).items()}


def _object(where: str, found: object, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        _refuse(where, f"must be an object, not {found!r}", f"It may have {', '.join(known)}")
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}"
            _refuse(where, f"has {key!r}, which means nothing here", hint)
    return found


def _number(where: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(where, f"{key} must be a number, not {value!r}", "Write seconds, such as 0.033")
    try:
        return float(value)
    except OverflowError:
        _refuse(where, f"{key} is too large: {str(value)[:12]}...", "Write seconds, such as 0.033")


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(key, f"must be a whole number, not {value!r}", f'Write "{key}": 4')
    return value


def _word(where: str, value: object, words: type[_Word]) -> _Word:
    known = [str(word) for word in words]
    if not isinstance(value, str) or value not in known:
        near = difflib.get_close_matches(str(value).upper(), [one.upper() for one in known], 1)
        fix = next((one for one in known if near and one.upper() == near[0]), None)
        _refuse(
            where,
            f"must be {' or '.join(known)}, not {value!r}",
            f"Did you mean {fix}?" if fix else f"Write {known[0]}",
        )
    return words(value)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        _refuse(f"{twice!r}", "is there twice in one object", "Remove one of them")
    return found


def _refuse(where: str, rule: str, fix: str) -> NoReturn:
    msg = f"{where}: {rule}. {fix}" + ("" if fix.endswith("?") else ".")
    raise BadTaskset(msg)
