"""How many pages a budget pays for, with all that running the models needs counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.sizes import format_size, parse_size
from gpushare_kernel.nwv.packed import UNSIGNED, table_type
from gpushare_kernel.nwv.pages import Weights
from gpushare_kernel.nwv.quantised import LEVELS

SCALE = 2
"""Bytes of a page's scale."""
PAGES_MEANT = 2_000
"""Pages of the largest model at most, where page sizes allow: so many are matched exactly."""
SMALLEST, LARGEST = 256, 4096


@dataclass(frozen=True, slots=True)
class Budget:
    """What a bundle may take: one of the three."""

    ratio: float | None = None
    pages: int | None = None
    bytes: int | str | None = None

    def __post_init__(self) -> None:
        given = [key for key in ("ratio", "pages", "bytes") if getattr(self, key) is not None]
        if len(given) != 1:
            msg = f"a budget is one of ratio=, pages= and bytes=, and {' and '.join(given) or 'none'} is given. Write ratio=1.6 (at most what all models take over what the largest does; bits=8 allows four times that)."
            raise BadDeclaration(msg)
        key = given[0]
        value: object = self.limit if key == "bytes" else getattr(self, key)
        whole = key != "ratio"
        if not isinstance(value, int if whole else int | float) or not value >= 1:
            what = "a whole number of 1 or more" if whole else "how many times smaller than the models by themselves, 1 or more"  # fmt: skip
            msg = f"{key} is {what}, and {value!r} is not. Write ratio=1.6 (at most what all models take over what the largest does; bits=8 allows four times that)."
            raise BadDeclaration(msg)

    @property
    def limit(self) -> int | None:
        """The bytes, where these are given."""
        return parse_size(self.bytes) if isinstance(self.bytes, str) else self.bytes

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"ratio {self.ratio:g}"
        return f"{self.pages} pages" if self.pages is not None else format_size(self.limit or 0)


@dataclass(frozen=True, slots=True)
class Bill:
    """What the bytes of a bundle follow from. `rows` is pages by model, `contents` how many of all are different."""

    page_size: int
    bits: int
    rows: Mapping[str, int]
    contents: int
    private: int
    alone: int

    @classmethod
    def of(cls, cuts: Mapping[str, Weights], contents: int, bits: int) -> Bill:
        """Return it for models that are cut, with so many different pages."""
        size = next(iter(cuts.values())).raw.shape[1]
        private = sum(one.numel() * one.element_size() for cut in cuts.values() for one in cut.private.values())  # fmt: skip
        rows = {name: len(cut.raw) for name, cut in cuts.items()}
        return cls(size, bits, rows, contents, private, sum(cut.bytes for cut in cuts.values()))

    @property
    def least(self) -> int:
        """Pages of the largest model: it uses none twice."""
        return max(self.rows.values())

    def total(self, pages: int) -> int:
        """Return the bytes of a bundle with so many pages: pages, scales, tables and what is private."""
        each = self.page_size * self.bits // 8 + (SCALE if self.bits in LEVELS else 0)
        tables = sum(self.rows.values()) * table_type(pages).itemsize
        return pages * each + tables + self.private

    def ratio(self, pages: int) -> float:
        """Return how many times smaller that is than the models by themselves."""
        return self.alone / self.total(pages)

    def pages(self, budget: Budget) -> int:
        """Return how many pages the budget pays for; never more than there are different ones.

        Raises
        ------
        BadDeclaration
            Where that is less than the largest model has, with the budget that would do.
        """
        if budget.pages is not None:
            found = budget.pages
        else:
            limit = self.alone / budget.ratio if budget.ratio is not None else budget.limit or 0
            found = max((self._within(limit, dtype) for dtype in UNSIGNED), default=0)
        if found >= self.least:
            return min(found, self.contents)
        largest = max(self.rows, key=lambda name: self.rows[name])
        msg = (
            f"{budget} pays for {max(0, found)} pages of {self.page_size} weights, and model {largest} alone needs {self.least}, none twice. "
            f"{self._advice()}, or pack more models that are smaller."
        )
        raise BadDeclaration(msg)

    def _within(self, limit: float, dtype: torch.dtype) -> int:
        each = self.page_size * self.bits // 8 + (SCALE if self.bits in LEVELS else 0)
        left = limit - self.private - sum(self.rows.values()) * dtype.itemsize
        return int(min(left // each, torch.iinfo(dtype).max + 1))

    def _advice(self) -> str:
        """Return what would do: ratios from 1 on are possible, or none is."""
        most = self.ratio(self.least)
        takes = f"{self.least} pages, {self.total(self.least)} bytes"
        if most < 1:
            return f"These models cannot be smaller so, with tables and all: give pages={self.least} ({takes}, {self.alone} by themselves){self._fewer_bits()}"
        return f"Give at most ratio={_down(most)} (at least {takes}){self._fewer_bits()}"

    def _fewer_bits(self) -> str:
        for bits in LEVELS:
            fewer = Bill(self.page_size, bits, self.rows, self.contents, self.private, self.alone)
            if bits < self.bits and fewer.ratio(self.least) >= 1:
                return f", or bits={bits} with up to ratio={_down(fewer.ratio(self.least))}"
        return ""


def page_size_for(largest: int) -> int:
    """Return the size of pages where none is given: a power of two that leaves the largest model some `PAGES_MEANT` pages."""
    size = SMALLEST
    while size < LARGEST and largest > size * PAGES_MEANT:
        size *= 2
    return size


def _down(ratio: float) -> str:
    """Return a ratio rounded down: what it says must be possible."""
    return f"{int(ratio * 100) / 100:g}"
