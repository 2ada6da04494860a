"""A bundle as data: pages of weights, and for each model which page holds which part of it.

Lee and Nirjon, *Fast and scalable in-memory deep multitask learning via neural weight virtualization* (MobiSys 2020, DOI
10.1145/3386901.3388947): a model's weights are one vector, cut into pages; models share pages. A page that one model
alone has (Weight Separation, PerCom 2022), or that several have with equal values, is a page like any other.

What is not in pages (buffers, parameters kept whole) is in `private`. What a model needs to run is all here: its size is counted
from this, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import torch


class Piece(msgspec.Struct, frozen=True):
    """A parameter that is in pages: `first` is where it begins in its model's vector, in weights."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    first: int


class Member(msgspec.Struct, frozen=True):
    """A model in the bundle.

    Attributes
    ----------
    pieces
        Its parameters that are in pages, in the order of its vector, one after the other.
    weights
        How many weights these are; the last page is filled up beyond.
    shift, scale
        A weight is `shift + scale * value`, with the value from its page: models of different magnitude share pages.
    code
        A hash of what the module does and of the forms of its parameters; another one is refused.
    """

    name: str
    pieces: tuple[Piece, ...]
    weights: int
    shift: float
    scale: float
    code: str


@dataclass(slots=True)
class Packed:
    """Pages, tables and what is private.

    Attributes
    ----------
    pages
        (N, P) values in float32, float16 or bfloat16; with `bits` 8 (N, P) int8 codes, with 4 (N, P / 2) uint8, the even one of a pair
        in the low half, both as code + 8.
    scales
        (N,) float16 of quantised pages: a value is its code times its page's scale. None where pages are not quantised.
    tables
        By model: (its pages,) the number of the page that holds each part of its vector, in the smallest unsigned type that can.
    private
        By model: what it has to itself by its name in the module's `state_dict`.
    """

    page_size: int
    bits: int
    pages: torch.Tensor
    scales: torch.Tensor | None
    members: Mapping[str, Member]
    tables: Mapping[str, torch.Tensor]
    private: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
