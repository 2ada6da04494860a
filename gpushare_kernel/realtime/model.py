"""What a deadline is proven from: tasks that are chains of layers, and nodes that work on one layer at a time.

Times are seconds. A *node* is a cluster of CPU cores of one kind, with at most one GPU; its *type* says how many of each,
and a layer's cost is by type. A *stage* is what one node does of a task: consecutive layers, decided once for all jobs.
Terms and symbols are those of Xiang and Kim, RTSS 2019 (section 1 of docs/realtime.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import NoReturn

from gpushare_kernel.core.errors import BadDeclaration

_NAME = re.compile(r"c(?P<cpus>[1-9]\d{0,3})(g(?P<gpus>\d{1,2}))?")


class BadTaskset(BadDeclaration):
    """Tasks that cannot be analysed; the message has the task, the rule, the value seen and what to do."""


SHORTEST, LONGEST = 1e-6, 86400.0
"""Seconds that a period, a deadline or a layer may have, at least and at most: a day, in nanoseconds, is counted exactly."""


@dataclass(frozen=True, slots=True, order=True)
class NodeType:
    """So many CPU cores and GPUs: `c2`, `c2g1`. All its cores work on one layer at a time."""

    cpus: int
    gpus: int = 0

    @classmethod
    def parse(cls, name: str) -> NodeType:
        """Return the type that `name` (`c2`, `c2g1`) says.

        Raises
        ------
        BadTaskset
            Where it is no such name.
        """
        found = _NAME.fullmatch(name)
        if found is None or int(found["gpus"] or 0) > 1:
            msg = f"a node type must be cN or cNg1 (N cores; at most one GPU), not {name!r}. Write c2, or c2g1"
            raise BadTaskset(msg)
        return cls(int(found["cpus"]), int(found["gpus"] or 0))

    def __str__(self) -> str:
        return f"c{self.cpus}g{self.gpus}" if self.gpus else f"c{self.cpus}"


class Kind(StrEnum):
    """Whether a deadline is promised."""

    RT = "RT"
    BE = "BE"


@dataclass(frozen=True, slots=True)
class Layer:
    """One piece of work that nothing interrupts once it runs.

    `worst` and `best` are seconds by node type: the longest and the shortest that were measured. A type that is missing
    in `worst` cannot run it; one that is missing in `best` may take no time at all, which is always safe to assume.
    `transfer` is what bringing its input from a CPU to a GPU, or back, takes at most.
    """

    worst: Mapping[NodeType, float]
    best: Mapping[NodeType, float] = field(default_factory=dict)
    transfer: float = 0.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A chain of layers, released at most once in `period` seconds; of kind RT it must be done `deadline` seconds after.

    A larger `weight` comes first; equals come in the order of their arrival. `jitter` is how much later than it should
    a release may come (seconds). A BE task has no deadline; its period, if any, says how often it is wanted.
    """

    name: str
    kind: Kind
    layers: tuple[Layer, ...]
    period: float | None = None
    deadline: float | None = None
    weight: float = 1.0
    jitter: float = 0.0

    def check(self) -> None:
        """Raise `BadTaskset` where this is no task: rule, value, and what to do."""
        if not self.layers:
            self._refuse("must have at least one layer", "Add its layers, in order")
        if not (isfinite(self.weight) and self.weight > 0):
            self._refuse(
                f"weight must be above 0, not {self.weight}", "Write 1 for the usual weight"
            )
        if not (isfinite(self.jitter) and self.jitter >= 0):
            self._refuse(
                f"jitter must be 0 or more seconds, not {self.jitter}",
                "Leave it away where there is none",
            )
        for name, seconds in (("period", self.period), ("deadline", self.deadline)):
            if seconds is None:
                continue
            if not (isfinite(seconds) and seconds > 0):
                self._refuse(
                    f"{name} must be above 0 seconds, not {seconds}",
                    f"Write the {name} in seconds, such as 0.033",
                )
            if not SHORTEST <= seconds <= LONGEST:
                self._refuse(
                    f"{name} must be {SHORTEST:g} to {LONGEST:g} seconds, not {seconds:g}",
                    f"Write the {name} in seconds, such as 0.033",
                )
        for place, layer in enumerate(self.layers):
            self._check_layer(place, layer)
        if self.kind is Kind.RT:
            self._check_deadline()

    def _check_layer(self, place: int, layer: Layer) -> None:
        where = f"layer {place}" + (f" ({layer.name})" if layer.name else "")
        if not layer.worst:
            self._refuse(
                f"{where} can run on no node", "Give its cost on at least one node type, such as c2"
            )
        if not (isfinite(layer.transfer) and layer.transfer >= 0):
            self._refuse(
                f"{where}: transfer must be 0 or more seconds, not {layer.transfer}",
                "Measure it again",
            )
        for kind, seconds in layer.worst.items():
            least = layer.best.get(kind, 0.0)
            if not (isfinite(seconds) and seconds > 0):
                self._refuse(
                    f"{where}: its cost on {kind} must be above 0 seconds, not {seconds}",
                    "Measure it again, or leave that node type away",
                )
            if seconds > LONGEST:
                self._refuse(
                    f"{where}: its cost on {kind} must be {LONGEST:g} seconds at most, not {seconds}",
                    "Costs are in seconds",
                )
            if not 0 <= least <= seconds:
                self._refuse(
                    f"{where}: its least cost on {kind} must be 0 to {seconds}, not {least}",
                    "Measure it again",
                )

    def _check_deadline(self) -> None:
        if self.period is None or self.deadline is None:
            self._refuse(
                "an RT task has a period and a deadline",
                "Add both, in seconds, or make its class BE",
            )
        if self.deadline > self.period:
            self._refuse(
                f"deadline {self.deadline:g} s is later than its period {self.period:g} s",
                "Jobs of one task must not pile up: shorten the deadline, or lengthen the period",
            )
        fastest = sum(min(layer.worst.values()) for layer in self.layers)
        if fastest > self.deadline:
            self._refuse(
                f"its layers take {fastest:.4g} s on their fastest nodes, alone: more than its deadline of {self.deadline:g} s",
                "Lengthen the deadline, or make the model smaller",
            )

    def _refuse(self, rule: str, fix: str) -> NoReturn:
        msg = f"task {self.name}: {rule}. {fix}"
        raise BadTaskset(msg)


@dataclass(frozen=True, slots=True)
class Stage:
    """What one node does of a task: layers `first` to `last` (0-based, `last` included) on node number `node`."""

    node: int
    first: int
    last: int
