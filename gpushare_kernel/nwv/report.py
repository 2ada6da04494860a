"""What packing did: each model by itself and packed, beside what would have been simpler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.nwv.packed import Sizes
from gpushare_kernel.shown import Table, figure

AS_WELL = 0.005
"""A mean that is lower by less than this does as well."""
_TITLES = {
    "alone": "alone",
    "random": "merged at random",
    "merged": "merged, matched",
    "packed": "packed",
    "control": "alone, trained as long",
    "int8": "int8, not shared",
    "int4": "int4, not shared",
}


@dataclass(slots=True)
class PackReport:
    """What a bundle is and how good.

    Attributes
    ----------
    scores
        By way (`alone`, `random`, `merged`, `packed`, `control`, `int8`, `int4`), each model's metric; empty where nothing was trained.
    validated
        The metric on validation data, alone and packed: what `max_drop` looks at.
    bytes
        By way, everything that running all models needs, scratch aside.
    tables
        By model its pages, for the heat map.
    """

    sizes: Sizes
    page_size: int
    pages: int
    bits: int
    tables: Mapping[str, torch.Tensor]
    bytes: Mapping[str, int]
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    validated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    on_test: bool = False
    cost: float = 0.0
    cost_random: float = 0.0
    page_ratio: float = 0.0
    rounds: Sequence[Mapping[str, float]] = ()
    best_round: int = 0
    notes: Sequence[str] = ()

    @property
    def ratio(self) -> float:
        """How many times smaller than the models by themselves: pages, scales, tables and private parts (and scratch, if any)."""
        return self.bytes["alone"] / self.sizes.total

    @property
    def drops(self) -> dict[str, float]:
        """What each model lost on validation data; less than 0 where it gained."""
        if not self.validated:
            return {}
        packed = self.validated["packed"]
        return {name: found - packed[name] for name, found in self.validated["alone"].items()}

    def with_scratch(self, scratch: int) -> PackReport:
        """Return it with what the runtime needs besides, in bytes: the ratio counts that too."""
        return replace(self, sizes=Sizes(self.sizes.pages, self.sizes.scales, self.sizes.tables, self.sizes.private, scratch))  # fmt: skip

    @property
    def own(self) -> int:
        """Pages that one model has to itself."""
        counts = torch.zeros(self.pages, dtype=torch.int64)
        for table in self.tables.values():
            counts[table.to(torch.int64)] += 1
        return int((counts == 1).sum())

    @property
    def simpler(self) -> int | None:
        """The bits of plain quantisation that does as well and takes no more; None where sharing earns its place."""
        mean = self._mean("packed")
        for bits in (8, 4):
            plain = self._mean(f"int{bits}")
            if mean is not None and plain is not None and plain >= mean - AS_WELL and self.bytes[f"int{bits}"] <= 1.05 * self.sizes.total:  # fmt: skip
                return bits
        return None

    def _mean(self, way: str) -> float | None:
        return fmean(self.scores[way].values()) if way in self.scores else None

    def table(self) -> Table:
        """Return it to look at: a model in each column, a way in each row."""
        models = list(self.tables)
        shown = [way for way in _TITLES if way in self.scores or way in self.bytes]
        columns = ("", *(f">{name}" for name in models), *([">mean"] if self.scores else []), ">bytes", ">times smaller")  # fmt: skip
        return Table(f"{len(models)} models in {self.pages} pages", columns, [self._row(way) for way in shown], self._said())  # fmt: skip

    def _row(self, way: str) -> tuple[str, ...]:
        title = f"{_TITLES[way]}, int{self.bits}" if way == "packed" and self.bits < 16 else _TITLES[way]  # noqa: PLR2004  # fmt: skip
        found = self.scores.get(way, {})
        each = [f"{found[name]:.3f}" if name in found else "" for name in self.tables]
        mean = self._mean(way)
        total = self.sizes.total if way == "packed" else self.bytes.get(way)
        size = ("", "") if total is None else (f"{total:,}", f"{self.bytes['alone'] / total:.2f}")
        return (title, *each, *([f"{mean:.3f}" if mean is not None else ""] if self.scores else []), *size)  # fmt: skip

    def _said(self) -> list[str]:
        sizes = self.sizes
        parts = [("pages", sizes.pages), ("scales", sizes.scales), ("tables", sizes.tables), ("private", sizes.private), ("scratch", sizes.scratch)]  # fmt: skip
        counted = ", ".join(f"{name} {format_size(size)}" for name, size in parts if size)
        shared = sum(len(one) for one in self.tables.values())
        lines = [
            f"{self.ratio:.2f} times smaller, all bytes counted: {counted}{'' if sizes.scratch else '; what the runtime needs to gather into comes on top'}. Pages alone: {self.page_ratio:.2f}.",
            f"{shared} pages of {self.page_size} weights in {self.pages}; {self.own} of these are one model's alone.",
        ]
        if self.scores:
            lines.append(f"Metrics are of {'test' if self.on_test else 'validation'} data; training stopped on validation data (best after round {self.best_round} of {len(self.rounds)}).")  # fmt: skip
        if self.cost_random:
            lines.append(f"Matching: cost {self.cost:.3g}, at random {self.cost_random:.3g}.")
        if self.simpler is not None:
            lines.append(f"int{self.simpler} without sharing does as well here in as little, and needs no training: result.plain({self.simpler}).")  # fmt: skip
        return [*lines, *self.notes]

    def sharing(self) -> torch.Tensor:
        """Return (models, models) how many pages each two have in common; on the diagonal a model's own count."""
        sets = [set(table.to(torch.int64).tolist()) for table in self.tables.values()]
        return torch.tensor([[len(one & other) for other in sets] for one in sets])

    def plot(self) -> Any:
        """Return a matplotlib figure: which model has which page, pages of many models first."""
        used = torch.zeros(len(self.tables), self.pages)
        for row, table in enumerate(self.tables.values()):
            used[row, table.to(torch.int64)] = 1
        many = used.sum(dim=0)
        order = many.argsort(descending=True, stable=True)
        drawn = figure(extra="nwv", figsize=(8.0, 0.8 + 0.35 * len(self.tables)))
        axes = drawn.subplots()
        image = axes.imshow((used * many)[:, order].numpy(), aspect="auto", interpolation="nearest", cmap="viridis")  # fmt: skip
        axes.set_yticks(range(len(self.tables)), list(self.tables))
        axes.set_xlabel("page")
        axes.set_title("Who shares which page")
        drawn.colorbar(image, ax=axes, label="models on it")
        return drawn

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        """Called by IPython."""
        return self.table().html()
