"""What a bundle is compared with: each model quantised only, and each model trained as long by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from gpushare_kernel.nwv.packed import Packed, table_type
from gpushare_kernel.nwv.pages import Weights
from gpushare_kernel.nwv.quantised import encode
from gpushare_kernel.nwv.task import Task
from gpushare_kernel.nwv.training import Joint, Models, Plan, Progress, State, start

Shown = Callable[[Iterator[Progress], int, str], Iterator[Progress]]
"""Passes rounds on and shows how far they are: rounds, how many are done already, a title."""


def plain(cuts: Mapping[str, Weights], bits: int) -> Packed:
    """Return models in pages of `bits` (8 or 4), none shared, nothing trained."""
    values = torch.cat([one.values for one in cuts.values()])
    kind = table_type(len(values))
    tables, first = {}, 0
    for name, one in cuts.items():
        tables[name] = torch.arange(first, first + len(one.raw), device=values.device).to(kind)
        first += len(one.raw)
    codes, scales = encode(values, bits)
    size = next(iter(cuts.values())).raw.shape[1]
    members = {name: one.member for name, one in cuts.items()}
    private = {name: dict(one.private) for name, one in cuts.items()}
    return Packed(size, bits, codes, scales, members, tables, private).check()


def plain_scores(tasks: Mapping[str, Task], cuts: Mapping[str, Weights], bits: int) -> dict[str, float]:  # fmt: skip
    """Return how good models are that are only quantised."""
    found: dict[str, float] = {}
    for name, one in tasks.items():
        models, state = _by_itself(name, one, cuts[name], bits)
        found |= metrics(models.scores(state, reported=True))
    return found


def control_scores(tasks: Mapping[str, Task], cuts: Mapping[str, Weights], plan: Plan, seed: int, shown: Shown) -> dict[str, float]:  # fmt: skip
    """Return how good each is after the same training by itself, chosen on validation data too."""
    found: dict[str, float] = {}
    for name, one in tasks.items():
        models, state = _by_itself(name, one, cuts[name], cuts[name].raw.dtype.itemsize * 8)
        joint = Joint(
            models, {}, plan, {name: (1.0, 1.0)}, seed
        )  # one task is compared with itself
        reached = joint.begin(state)
        for _ in shown(joint.rounds(reached), 0, f"{name} alone, as long"):
            pass
        found |= metrics(models.scores(reached.best, reported=True))
    return found


def metrics(found: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the metrics of metrics and losses."""
    return {name: metric for name, (metric, _) in found.items()}


def _by_itself(name: str, one: Task, cut: Weights, bits: int) -> tuple[Models, State]:
    table = torch.arange(len(cut.raw), device=cut.raw.device)
    models = Models({name: one}, {name: cut}, {name: table}, bits, cut.raw.dtype)
    return models, start(models, {name: torch.ones_like(cut.values)}, len(table))
