"""How long each layer takes on each node type: measured in a node's own process, with memory traffic on the other cores.

The longest of many runs is not the longest there can be (Xiang and Kim take it as such); a margin on it is stated, and
what takes longer all the same is seen at run time. The shortest bounds how early a job can arrive at its next node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gpushare_kernel.realtime.model import Kind, Layer, NodeType, Task
from gpushare_kernel.realtime.payload import Form
from gpushare_kernel.shown import Table, figure, milliseconds

MARGIN = 0.2
"""What is added to the longest run, as part of it."""
LEAST = 0.0002
"""Seconds that are added at least: of a layer of half a millisecond, 20 % is less than an interrupt and a cold page take."""
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class Costs(msgspec.Struct, frozen=True):
    """Seconds by layer on one node type: the longest and shortest run, and bringing the layer's input in from another node."""

    worst: list[float]
    best: list[float]
    moves: list[float]
    repeats: int


class Profile(msgspec.Struct, frozen=True):
    """What was measured of one model with one form of input. `costs` is by node type (`c2`, `c2g1`)."""

    model: str
    machine: str
    layers: list[str]
    forms: list[Form]
    costs: Mapping[str, Costs]
    margin: float = MARGIN
    when: str = ""

    @property
    def types(self) -> tuple[NodeType, ...]:
        """The node types that it was measured on."""
        return tuple(sorted(map(NodeType.parse, self.costs)))

    def worst(self, layer: int, kind: NodeType) -> float:
        """Return the seconds that a layer takes at most: the longest run and the margin."""
        longest = self.costs[str(kind)].worst[layer]
        return longest + max(self.margin * longest, LEAST if self.margin else 0.0)

    def transfer(self, layer: int) -> float:
        """Return the seconds that bringing a layer's input in takes at most, on whichever type that takes longest."""
        return max(costs.moves[layer] for costs in self.costs.values()) * (1 + self.margin)

    def task(
        self,
        name: str,
        kind: Kind,
        types: Sequence[NodeType],
        *,
        period: float | None = None,
        deadline: float | None = None,
        weight: float = 1.0,
    ) -> Task:
        """Return the task that is analysed."""
        layers = tuple(
            Layer(
                worst={one: self.worst(place, one) for one in types},
                best={one: self.costs[str(one)].best[place] for one in types},
                transfer=self.transfer(place),
                name=layer,
            )
            for place, layer in enumerate(self.layers)
        )
        return Task(name, kind, layers, period, deadline, weight)

    def table(self) -> Table:
        """Return it to look at: milliseconds, each layer in a row."""
        types = self.types
        columns = ("layer", "output", *(f">{kind} max" for kind in types), *(f">{kind} min" for kind in types), ">bring in")  # fmt: skip
        rows = [
            (
                f"{place} {name}",
                str(self.forms[place + 1]),
                *(milliseconds(self.costs[str(kind)].worst[place]) for kind in types),
                *(milliseconds(self.costs[str(kind)].best[place]) for kind in types),
                milliseconds(self.transfer(place)),
            )
            for place, name in enumerate(self.layers)
        ]
        repeats = min((costs.repeats for costs in self.costs.values()), default=0)
        notes = (
            f"Milliseconds of at least {repeats} runs; deadlines are proven with {self.margin:.0%} more than the longest, {milliseconds(LEAST)} ms at least.",
            self.machine,
        )
        return Table(f"Layers of {self.model}", columns, rows, notes)

    def plot(self) -> Any:
        """Return a matplotlib figure: on each node type, the longest run of each layer."""
        drawn = figure(figsize=(8.0, 3.6))
        axes = drawn.subplots()
        types = self.types
        width = 0.8 / len(types)
        for number, kind in enumerate(types):
            costs = self.costs[str(kind)]
            places = [place + number * width for place in range(len(self.layers))]
            heights = [1000 * seconds for seconds in costs.worst]
            below = [1000 * (most - least) for most, least in zip(costs.worst, costs.best, strict=True)]  # fmt: skip
            axes.bar(places, heights, width, label=str(kind), color=_COLOURS[number % len(_COLOURS)], yerr=[below, [0.0] * len(below)])  # fmt: skip
        middle = 0.4 - width / 2
        axes.set_xticks([place + middle for place in range(len(self.layers))], self.layers, rotation=60, ha="right")  # fmt: skip
        axes.set_ylabel("ms (longest; line: to the shortest)")
        axes.set_title(f"Layers of {self.model}")
        axes.legend(title="node type", frameon=False)
        return drawn

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        """Called by IPython."""
        return self.table().html()


def same_measurement(one: Profile, other: Profile) -> bool:
    """Tell whether two are of the same model, forms and machine, so that their types may be joined."""
    return (one.layers, one.forms, one.machine) == (other.layers, other.forms, other.machine)


def joined(old: Profile | None, new: Profile) -> Profile:
    """Return `new` with the types that only `old` has."""
    if old is None or not same_measurement(old, new):
        return new
    return msgspec.structs.replace(new, costs={**old.costs, **new.costs})
