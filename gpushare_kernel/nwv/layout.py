"""Where the parameters of a model lie in memory that is made for them: one after the other, each at a good address."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from gpushare_kernel.nwv.check import dtype_of
from gpushare_kernel.nwv.packed import Piece

ALIGNED = 256
"""Bytes: what cuBLAS asks of its fastest paths (MKL and oneDNN of 64). It is the same in all modes, or they would take other paths and round differently."""


def aligned(size: int) -> int:
    """Return the bytes after which what lies behind so many begins at a good address."""
    return -(-size // ALIGNED) * ALIGNED


@dataclass(frozen=True, slots=True)
class Place:
    """A parameter, and where it lies: from byte `offset`, `count` weights that begin at `first` in its model's vector."""

    name: str
    first: int
    count: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """Return it as it lies in `memory` (bytes)."""
        end = self.offset + self.count * self.dtype.itemsize
        return memory[self.offset : end].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Parameters, and the bytes that they take together."""

    places: Sequence[Place]
    size: int


def laid_out(pieces: Iterable[Piece], start: int = 0) -> Layout:
    """Place parameters one after the other, from byte `start` on."""
    places, offset = [], start
    for piece in pieces:
        dtype, count = dtype_of(piece.dtype), prod(piece.shape)
        places.append(Place(piece.name, piece.first, count, offset, dtype, piece.shape))
        offset += aligned(count * dtype.itemsize)
    return Layout(places, offset - start)
