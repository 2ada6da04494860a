"""A module's weights as pages, and pages as its weights again.

Where models are merged, weights are divided by a power of two near their root mean square, which changes no bit of a float's
mantissa: what was in a page comes out exactly. They are shifted only where they lie far from zero. Where nothing is merged, pages
have the weights themselves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from gpushare_kernel.nwv.code import code_of
from gpushare_kernel.nwv.packed import FLOATS, Member, Piece

SMALL = 0.02
"""Biases and norms stay private where they are at most this part of a model's weights."""
FAR = 0.5
"""A mean over this part of the root mean square is taken off."""


@dataclass(slots=True)
class Weights:
    """A model's weights, cut.

    Attributes
    ----------
    raw
        (M, P) weights as they are, zeros at the end.
    private
        Buffers and small parameters, by name in its `state_dict`.
    trained
        Names of those private ones that are parameters.
    """

    member: Member
    raw: torch.Tensor
    private: dict[str, torch.Tensor]
    trained: tuple[str, ...] = ()
    bytes: int = 0

    @property
    def values(self) -> torch.Tensor:
        """(M, P) float32 values as they are in pages, zeros at the end."""
        values = (self.raw.to(torch.float32) - self.member.shift) / self.member.scale
        values.reshape(-1)[self.member.weights :] = 0
        return values


def cut(name: str, model: nn.Module, page_size: int, *, small: float = SMALL) -> Weights:
    """Return a model's weights in pages of `page_size`, its parameters in order; `fit` has looked whether that can be."""
    parameters = dict(model.named_parameters())
    small_ones = [key for key, one in parameters.items() if one.ndim <= 1]
    count = sum(one.numel() for one in parameters.values())
    if len(small_ones) == len(parameters) or sum(parameters[key].numel() for key in small_ones) > small * count:  # fmt: skip
        small_ones = []
    paged = {key: one.detach() for key, one in parameters.items() if key not in small_ones}
    pieces, first = [], 0
    for key, one in paged.items():
        pieces.append(Piece(key, tuple(one.shape), _named(one.dtype), first))
        first += one.numel()
    dtypes = {one.dtype for one in paged.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    vector = torch.cat([one.reshape(-1).to(dtype) for one in paged.values()])
    state = model.state_dict()
    private = {key: one.detach().clone() for key, one in state.items() if key not in paged}
    shift, scale = normal(vector)
    member = Member(name, tuple(pieces), first, shift, scale, code_of(model))
    size = sum(one.numel() * one.element_size() for one in state.values())
    return Weights(member, _rows(vector, page_size), private, tuple(small_ones), size)


def _rows(vector: torch.Tensor, page_size: int) -> torch.Tensor:
    """Return it as (M, P), zeros at the end."""
    rows = -(-len(vector) // page_size)
    return nn.functional.pad(vector, (0, rows * page_size - len(vector))).view(rows, page_size)


def paged(weights: Weights, by_name: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return (M, P) float32 of something else that parameters have, in the order of the weights."""
    vector = torch.cat([by_name[piece.name].reshape(-1).to(torch.float32) for piece in weights.member.pieces])  # fmt: skip
    return _rows(vector, weights.raw.shape[1])


def normal(vector: torch.Tensor) -> tuple[float, float]:
    """Return the shift and the scale of (n,) weights."""
    exact = vector.to(torch.float64)
    mean, rms = float(exact.mean()), float(exact.square().mean().sqrt())
    if rms == 0:
        return 0.0, 1.0
    shift = mean if abs(mean) > FAR * rms else 0.0
    spread = float((exact - shift).square().mean().sqrt()) or rms
    return shift, 2.0 ** round(math.log2(spread))


def weights_from(member: Member, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the parameters that (M, P) float32 `values` of a model's pages mean, as views where the type allows. Differentiable."""
    flat = values.reshape(-1)[: member.weights] * member.scale
    if member.shift:
        flat = flat + member.shift
    ends = {piece.name: (piece.first, piece.first + math.prod(piece.shape)) for piece in member.pieces}  # fmt: skip
    return {
        piece.name: flat[slice(*ends[piece.name])].view(piece.shape).to(FLOATS[piece.dtype])
        for piece in member.pieces
    }


def page_type(cut_ones: Mapping[str, Weights]) -> torch.dtype:
    """Return what pages are stored as: the models' type where all have the same, else float32."""
    dtypes = {one.raw.dtype for one in cut_ones.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def twins(cut_ones: Mapping[str, Weights]) -> dict[str, list[int]]:
    """Return the number of each page's content by model: pages that are equal, bit by bit, in several models have the same one.

    A model's own pages never share, and pages of zeros are like nobody's. Equal weights are equal values only under one shift and
    scale: `alike` and `as_they_are` see to that.
    """
    known: dict[tuple[torch.dtype, bytes], int] = {}
    numbers: dict[str, list[int]] = {}
    count = 0
    for name, one in cut_ones.items():
        row, used = [], set()
        zeros = (~one.raw.any(dim=1)).tolist()
        for digest, zero in zip(_digests(one.raw), zeros, strict=True):
            found = known.get((one.raw.dtype, digest))
            if found is None or zero or found in used:
                number, count = count, count + 1
                if found is None and not zero:
                    known[one.raw.dtype, digest] = number
            else:
                number = found
            used.add(number)
            row.append(number)
        numbers[name] = row
    return numbers


def as_they_are(cut_ones: Mapping[str, Weights]) -> dict[str, Weights]:
    """Return weights that are what is in their pages: where nothing is merged, no model needs a shift or a scale."""
    return {name: _under(one, 0.0, 1.0) for name, one in cut_ones.items()}


def alike(cut_ones: Mapping[str, Weights], contents: Mapping[str, Sequence[int]], dtype: torch.dtype) -> dict[str, Weights]:  # fmt: skip
    """Return weights of which models with a page in common, or with a third model, have one shift and scale.

    It is that of one of them, with which all of their weights come out of pages of `dtype` as they were; else none.
    """
    found = dict(cut_ones)
    for names in _related(contents):
        norms = {(one.member.shift, one.member.scale) for one in (cut_ones[name] for name in names)}
        if len(norms) == 1:
            continue
        scales = dict.fromkeys(cut_ones[name].member.scale for name in names)
        for scale in (*scales, 1.0):
            same = {name: _under(cut_ones[name], 0.0, scale) for name in names}
            if all(returns(one, one.values.to(dtype)) for one in same.values()):
                break
        found |= same
    return found


def _related(contents: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Return the models by group: those of one group have pages in common, in pairs or by way of others."""
    group = {name: [name] for name in contents}
    first: dict[int, str] = {}
    for name, row in contents.items():
        for number in row:
            mine, theirs = group[name], group[first.setdefault(number, name)]
            if mine is not theirs:
                theirs += mine
                group |= dict.fromkeys(mine, theirs)
    return list({id(one): one for one in group.values()}.values())


def _under(one: Weights, shift: float, scale: float) -> Weights:
    member = one.member
    return replace(one, member=Member(member.name, member.pieces, member.weights, shift, scale, member.code))  # fmt: skip


def returns(one: Weights, values: torch.Tensor) -> bool:
    """Tell whether what is read out of a model's pages, (M, P) `values`, is its weights bit by bit."""
    back = weights_from(one.member, values.to(torch.float32))
    raw = one.raw.reshape(-1)
    for piece in one.member.pieces:
        theirs = raw[piece.first : piece.first + back[piece.name].numel()].to(FLOATS[piece.dtype])
        if not torch.equal(_bits(back[piece.name].reshape(-1)), _bits(theirs)):
            return False
    return True


def _bits(one: torch.Tensor) -> torch.Tensor:
    return one.contiguous().view(torch.uint8)


def _digests(raw: torch.Tensor) -> list[bytes]:
    data = raw.contiguous().cpu().view(torch.uint8).numpy()
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in data]


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
