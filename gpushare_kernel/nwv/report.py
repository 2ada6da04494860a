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
        """Return it with what the runtime needs besides, in bytes: every way that has pages needs it, and their ratios count it too."""
        more = scratch - self.sizes.scratch
        bytes_ = {way: size if way == "alone" else size + more for way, size in self.bytes.items()}
        return replace(self, bytes=bytes_, sizes=Sizes(self.sizes.pages, self.sizes.scales, self.sizes.tables, self.sizes.private, scratch))  # fmt: skip

    def holds(self, max_drop: float) -> bool:
        """Tell whether no model loses more; one whose metric is no number does."""
        return all(drop <= max_drop for drop in self.drops.values())

    @property
    def own(self) -> int:
        """Pages that one model has to itself."""
        counts = torch.zeros(self.pages, dtype=torch.int64)
        for table in self.tables.values():
            counts[table.to(torch.int64)] += 1
        return int((counts == 1).sum())

    @property
    def simpler(self) -> int | None:
        """The bits of plain quantisation that takes no more, and does as well as the bundle or as the models did; None where sharing earns its place."""
        asked = min((self._mean(way) or 0.0 for way in ("packed", "alone") if way in self.scores), default=0.0)  # fmt: skip
        for bits in (8, 4):
            plain = self._mean(f"int{bits}")
            if plain is not None and plain >= asked - AS_WELL and self.bytes[f"int{bits}"] <= 1.05 * self.sizes.total:  # fmt: skip
                return bits
        return None

    def _offer(self, bits: int) -> str:
        """Return what is said of plain quantisation that would do."""
        plain, packed = (self._mean(way) or 0.0 for way in (f"int{bits}", "packed"))
        does = "does as well here" if plain >= packed - AS_WELL else f"does as well as the models alone ({plain:.3f}; {packed:.3f} when packed is after more training)"  # fmt: skip
        return f"int{bits} without sharing {does} in as little, and needs no training: plain({bits}) of what gpushare.nwv.pack returns."

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
            f"{compared(self.ratio)}, all bytes counted: {counted}{'' if sizes.scratch else '; what the runtime needs to gather into comes on top'}. Pages alone: {self.page_ratio:.2f}.",
            f"{shared} pages of {self.page_size} weights in {self.pages}; {self.own} of these are one model's alone.",
        ]
        if self.scores:
            lines.append(f"Metrics are of {'test' if self.on_test else 'validation'} data{self._chosen()}.")  # fmt: skip
        if self.cost_random:
            lines.append(f"Matching: cost {self.cost:.3g}, at random {self.cost_random:.3g}.")
        if self.simpler is not None:
            lines.append(self._offer(self.simpler))
        return [*lines, *self.notes]

    def _chosen(self) -> str:
        """Return which round's pages these are."""
        if not self.rounds:
            return "; nothing was trained"
        if not self.best_round:
            return f"; none of {len(self.rounds)} rounds was better than the merge on validation data, which is kept"
        return f"; chosen on validation data: the best of {len(self.rounds)} rounds was round {self.best_round}"

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


def compared(ratio: float, below: str = "smaller", above: str = "larger") -> str:
    """Return in words how many times what was is of what is: `1.25 times larger` for 0.8."""
    return f"{ratio:.2f} times {below}" if ratio >= 1 else f"{1 / ratio:.2f} times {above}"
