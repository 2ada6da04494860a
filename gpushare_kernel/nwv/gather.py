"""From pages to weights: what a table names is picked, dequantised, scaled and shifted, and written where a model reads it.

A weight is `shift + scale * value`, reckoned in float32 and rounded once to the model's type; `value` is what the page holds,
for quantised pages its code times its page's scale. Where a model has shift 0, scale 1 and the pages' own type it is a copy.

`gatherer` returns what does it best: a kernel of ours on CUDA where CuPy is installed (`gather_cuda`), else torch's own
operations. Both give the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from gpushare_kernel.nwv.layout import Layout, Place

_STEP = {"cpu": 2**19, "cuda": 2**22}
"""Weights that are gathered at once (2 and 16 MiB for that moment): enough that the calls cost little beside the work."""


@dataclass(slots=True)
class Pages:
    """Pages on a device, as in `Packed`."""

    pages: torch.Tensor
    scales: torch.Tensor | None
    page_size: int
    bits: int

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.pages.device

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the values of some pages, (their number, page_size): float32, or the pages' own type where that is one."""
        found = self.pages.index_select(0, numbers)
        if self.scales is None:
            return found
        if self.bits == 4:  # noqa: PLR2004
            pairs = _pairs(self.device).index_select(0, found.view(-1).to(torch.int32))
            values = pairs.view(len(numbers), -1)
        else:
            values = found.float()
        return values.mul_(self.scales.index_select(0, numbers).float()[:, None])


@functools.cache
def _pairs(device: torch.device) -> torch.Tensor:
    """Return the two codes of each byte, (256, 2) float32."""
    every = torch.arange(256, device=device)
    return torch.stack((every % 16 - 8, every // 16 - 8), 1).float()


@dataclass(frozen=True, slots=True)
class Norm:
    """How a model's weights differ from what its pages hold."""

    shift: float = 0.0
    scale: float = 1.0

    @property
    def none(self) -> bool:
        """Whether they are the same."""
        return self.shift == 0.0 and self.scale == 1.0


class Gather(Protocol):
    """Writes some parameters of one model."""

    @property
    def size(self) -> int:
        """Bytes that it keeps on the device to know what goes where."""

    def __call__(self, memory: torch.Tensor) -> None:
        """Write them into `memory` (bytes), on the current stream."""


def gatherer(pages: Pages, table: torch.Tensor, norm: Norm, layout: Layout) -> Gather:
    """Return what writes the parameters of a layout. `table` is the model's, on the device of the pages, and is kept."""
    if pages.device.type == "cuda":
        from gpushare_kernel.nwv import gather_cuda  # noqa: PLC0415  CuPy only where there is a GPU

        if gather_cuda.available(layout):
            return gather_cuda.KernelGather(pages, table, norm, layout)
    return TorchGather(pages, table, norm, layout)


@dataclass(frozen=True, slots=True)
class _Run:
    """Parts of parameters that are gathered at once: pages `begin` to `end` of the table, and (weights from there, how many, of which, from where)."""

    begin: int
    end: int
    parts: Sequence[tuple[int, int, Place, int]]


class TorchGather:
    """By torch's own operations, a run of some parameters at a time."""

    size = 0

    def __init__(self, pages: Pages, table: torch.Tensor, norm: Norm, layout: Layout) -> None:
        self._pages, self._table, self._norm = pages, table, norm
        self._runs = list(_runs(layout.places, pages.page_size, _STEP[pages.device.type]))

    def __call__(self, memory: torch.Tensor) -> None:
        """Write them."""
        with torch.no_grad():
            for run in self._runs:
                self._write(run, memory)

    def _write(self, run: _Run, memory: torch.Tensor) -> None:
        numbers = self._table[run.begin : run.end].to(torch.int64)
        values = self._pages.rows(numbers).view(-1)
        if not self._norm.none:
            values = values.float()
        for start, count, place, at in run.parts:
            target = place.view(memory).view(-1)[at : at + count]
            self._put(values[start : start + count], target)

    def _put(self, values: torch.Tensor, target: torch.Tensor) -> None:
        """Write some weights; the last operation writes where they belong, if that is float32 too."""
        scale, shift = self._norm.scale, self._norm.shift
        if self._norm.none:
            target.copy_(values)
        elif target.dtype != torch.float32:
            target.copy_(values.mul_(scale).add_(shift))
        elif shift == 0.0:
            torch.mul(values, scale, out=target)
        else:
            torch.add(values.mul_(scale), shift, out=target)


def _runs(places: Sequence[Place], page_size: int, step: int) -> Iterator[_Run]:
    """Cut parameters into runs of about `step` weights: neighbours of the vector together, large ones in parts."""
    parts: list[tuple[Place, int, int]] = []
    total = 0
    for place in places:
        for at in range(0, place.count, step):
            count = min(step, place.count - at)
            apart = parts and parts[-1][0].first + parts[-1][1] + parts[-1][2] != place.first + at
            if parts and (apart or total + count > step):
                yield _run(parts, page_size)
                parts, total = [], 0
            parts.append((place, at, count))
            total += count
    if parts:
        yield _run(parts, page_size)


def _run(parts: Sequence[tuple[Place, int, int]], page_size: int) -> _Run:
    first = parts[0][0].first + parts[0][1]
    last = parts[-1][0].first + parts[-1][1] + parts[-1][2]
    begin = first // page_size
    base = begin * page_size
    rows = [(place.first + at - base, count, place, at) for place, at, count in parts]
    return _Run(begin, -(-last // page_size), rows)
