"""Which page goes where: models one at a time, each matched against the true weights of those that are there.

What two pages lose where they become one (the paper's Eq. 4): sum over their weights of (p - q)^2 (F(p) + F(q)). Expanded, all pairs
are one matrix product; for a virtual page with several occupants its right side is the sum of theirs. (The published code compares with
the page array, which is noise until training.)
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from gpushare_kernel.nwv.assignment import assign

Method = Literal["best", "random", "identity"]
BLOCK, WHOLE = 8_000, 20_000
"""Pages of a block, and up to how many there is one block only."""
_LEAST, _MOST = 1e-4, 1e4
"""A Fisher is clipped to these (its mean is 1): heavy tails cancel badly in the product, and 0 would make any pair free."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A model to place: (M, P) values and Fisher, and the number of each page's content (see `pages.twins`)."""

    values: torch.Tensor
    fisher: torch.Tensor
    contents: Sequence[int]


@dataclass(frozen=True, slots=True)
class Placement:
    """By model (M,) the virtual page of each of its pages, and what that costs."""

    tables: dict[str, torch.Tensor]
    cost: float


def place(cuts: Mapping[str, Cut], pages: int, *, method: Method = "best", own: int = 0, seed: int = 0) -> Placement:  # fmt: skip
    """Return a place for each page of each model, none twice in a model.

    Parameters
    ----------
    pages
        How many virtual pages there are: at least as many as the largest model has.
    own
        How many of the most important pages may be kept for their model alone, where there is room.
    """
    contents = {number for one in cuts.values() for number in one.contents}
    if len(contents) <= pages:  # everything has room: equal pages are shared, and nothing is lost
        columns = {number: column for column, number in enumerate(sorted(contents))}
        tables = {name: torch.tensor([columns[number] for number in one.contents]) for name, one in cuts.items()}  # fmt: skip
        return Placement(tables, 0.0)
    kept = _kept(cuts, pages, own)
    board = _Board(cuts, pages - sum(map(len, kept.values())), method, seed)
    tables, last = {}, pages
    for name in sorted(cuts, key=lambda name: -len(cuts[name].values)):
        mine = kept[name]
        table = torch.empty(len(cuts[name].values), dtype=torch.int64)
        shared = [place for place in range(len(table)) if place not in mine]
        table[shared] = board.put(cuts[name], shared)
        for place in sorted(mine):
            last -= 1
            table[place] = last
        tables[name] = table
    tables = {name: tables[name] for name in cuts}
    return Placement(tables, total_cost(cuts, tables, pages))


def total_cost(cuts: Mapping[str, Cut], tables: Mapping[str, torch.Tensor], pages: int) -> float:
    """Return what all pairs of occupants cost, pair by pair and without the expansion."""
    names = list(cuts)
    total = 0.0
    for number, name in enumerate(names):
        one, table = cuts[name], tables[name]
        for other in names[:number]:
            where = torch.full((pages,), -1)
            where[tables[other]] = torch.arange(len(tables[other]))
            theirs = where[table]
            met = theirs >= 0
            p, q = met.nonzero().squeeze(1), theirs[met]
            total += float(pair_costs(one, p, cuts[other], q).sum())
    return total


def pair_costs(one: Cut, p: torch.Tensor, other: Cut, q: torch.Tensor) -> torch.Tensor:
    """Return what each page `p` of one and `q` of the other cost together, directly."""
    p, q = p.to(one.values.device), q.to(other.values.device)
    apart = (one.values[p] - other.values[q]).to(torch.float64)
    weight = clipped(one.fisher[p]) + clipped(other.fisher[q])
    return (apart.square() * weight).sum(dim=1)


def clipped(fisher: torch.Tensor) -> torch.Tensor:
    """Return a Fisher as matching counts it."""
    return fisher.clamp(_LEAST, _MOST)


def _kept(cuts: Mapping[str, Cut], pages: int, limit: int) -> dict[str, set[int]]:
    """Return, by model, the most important pages that stay its own: so many that the rest still has room."""
    several = Counter(number for one in cuts.values() for number in one.contents)
    weight = {name: one.fisher.sum(dim=1) / one.fisher.sum() for name, one in cuts.items()}
    order = sorted(
        (-float(share), name, place)
        for name, one in cuts.items()
        for place, share in enumerate(weight[name].tolist())
        if several[one.contents[place]] == 1
    )
    kept: dict[str, set[int]] = {name: set() for name in cuts}
    for count, (_, name, place) in enumerate(order[:limit]):
        rest = max(
            len(one.values) - len(kept[other]) - (other == name) for other, one in cuts.items()
        )
        if count + 1 + rest > pages:
            break
        kept[name].add(place)
    return kept


@dataclass(slots=True)
class _Board:
    """Virtual pages that may be shared, and who is there."""

    cuts: Mapping[str, Cut]
    pages: int
    method: Method
    seed: int
    there: torch.Tensor | None = None
    content: dict[int, int] = field(default_factory=dict)

    def put(self, cut: Cut, shared: Sequence[int]) -> torch.Tensor:
        """Return a column for each of these pages of a model, and count it as there."""
        table = torch.full((len(shared),), -1)
        for row, place in enumerate(shared):  # what is there already, bit by bit
            table[row] = self.content.get(cut.contents[place], -1)
        left = (table < 0).nonzero().squeeze(1)
        free = torch.ones(self.pages, dtype=torch.bool)
        free[table[table >= 0]] = False
        columns = free.nonzero().squeeze(1)
        rows = torch.tensor(shared, dtype=torch.int64)
        table[left] = columns[self._chosen(cut, rows[left], columns)]
        for row, place in enumerate(shared):
            self.content.setdefault(cut.contents[place], int(table[row]))
        if self.method == "best":
            self._add(cut, rows, table)
        return table

    def _chosen(self, cut: Cut, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        if self.method == "random":
            source = torch.Generator().manual_seed(self.seed)
            self.seed += 1
            return torch.randperm(len(columns), generator=source)[: len(rows)]
        if self.method == "identity" or self.there is None:
            return torch.arange(len(rows))
        device = cut.values.device
        left = left_side(cut.values[rows.to(device)], cut.fisher[rows.to(device)])
        return matched(left, self.there[columns.to(device)]).cpu()

    def _add(self, cut: Cut, rows: torch.Tensor, table: torch.Tensor) -> None:
        device = cut.values.device
        side = right_side(cut.values[rows.to(device)], cut.fisher[rows.to(device)])
        if self.there is None:
            self.there = torch.zeros(self.pages, side.shape[1], dtype=side.dtype, device=device)
        self.there.index_add_(0, table.to(device), side)


def left_side(values: torch.Tensor, fisher: torch.Tensor) -> torch.Tensor:
    """Return (M, 6P): with `right_side`, costs are one product."""
    v, f = _exact(values, fisher)
    return torch.cat([f * v * v, -2 * f * v, f, v * v, -2 * v, torch.ones_like(v)], dim=1)


def right_side(values: torch.Tensor, fisher: torch.Tensor) -> torch.Tensor:
    """Return (N, 6P); sides of several occupants of a page add up."""
    v, f = _exact(values, fisher)
    return torch.cat([torch.ones_like(v), v, v * v, f, f * v, f * v * v], dim=1)


def _exact(values: torch.Tensor, fisher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in a type that the expansion's cancellation leaves digits of: 64 bits on a CPU, 32 on a GPU."""
    dtype = torch.float32 if values.is_cuda else torch.float64
    return values.to(dtype), clipped(fisher).to(dtype)


def costs_between(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return (M, N) costs of all pairs."""
    with _no_tf32():
        return (left @ right.T).clamp_(min=0)


def matched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return (M,) columns of N >= M; in blocks of pages that matter alike where there are very many."""
    if len(right) <= WHOLE:
        return assign(costs_between(left, right))
    count = -(-len(right) // BLOCK)
    width = left.shape[1] // 6
    rows = left[:, 2 * width : 3 * width].sum(dim=1).argsort(descending=True)
    columns = right[:, 3 * width : 4 * width].sum(dim=1).argsort(descending=True)
    found = torch.empty(len(left), dtype=torch.int64, device=left.device)
    for mine, theirs in zip(rows.tensor_split(count), columns.tensor_split(count), strict=True):
        found[mine] = theirs[assign(costs_between(left[mine], right[theirs]))]
    return found


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
