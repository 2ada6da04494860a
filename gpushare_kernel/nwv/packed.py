"""A bundle as data: pages of weights, and for each model which page holds which part of it.

Lee and Nirjon, *Fast and scalable in-memory deep multitask learning via neural weight virtualization* (MobiSys 2020, DOI
10.1145/3386901.3388947): a model's weights are one vector, cut into pages; models share pages. A page that one model
alone has (Weight Separation, PerCom 2022), or that several have with equal values, is a page like any other.

What is not in pages (buffers, parameters kept whole) is in `private`. What a model needs to run is all here: its size is counted
from this, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpushare_kernel.core.errors import BadDeclaration, UserError

VERSION = 1
"""Of the file. A newer one is refused."""
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What weights and pages may be, by name."""
UNSIGNED = (torch.uint8, torch.uint16, torch.uint32)
_QUANTISED = {8: torch.int8, 4: torch.uint8}
_KEY = "gpushare.nwv"


class BadBundle(UserError):
    """A bundle that contradicts itself, or a file that is none."""


class Sizes(msgspec.Struct, frozen=True):
    """Bytes by part. `scratch` is what whoever runs it needs besides; 0 where only the bundle is counted."""

    pages: int
    scales: int
    tables: int
    private: int
    scratch: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.pages + self.scales + self.tables + self.private + self.scratch


def table_type(pages: int) -> torch.dtype:
    """Return the smallest unsigned type that can number so many pages."""
    return next(dtype for dtype in UNSIGNED if pages - 1 <= torch.iinfo(dtype).max)


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

    def sizes(self, scratch: int = 0) -> Sizes:
        """Return the bytes that running it needs, by part; `scratch` as whoever runs it says."""
        return Sizes(
            pages=self.pages.nbytes,
            scales=0 if self.scales is None else self.scales.nbytes,
            tables=sum(one.nbytes for one in self.tables.values()),
            private=sum(one.nbytes for kept in self.private.values() for one in kept.values()),
            scratch=scratch,
        )

    def check(self) -> Packed:
        """Return it, where it holds together.

        Raises
        ------
        BadBundle
            Naming the first part that does not, and what it is.
        """
        width = self.page_size // 2 if self.bits == 4 else self.page_size  # noqa: PLR2004
        rules = [
            (self.page_size >= 1, f"a page has at least one weight, not {self.page_size}"),
            (self.pages.dtype == _QUANTISED[self.bits] if self.bits in _QUANTISED else self.pages.dtype in FLOATS.values() and self.pages.element_size() * 8 == self.bits,
             f"{self.bits}-bit pages cannot be {self.pages.dtype}"),
            (self.pages.ndim == 2 and self.pages.shape[1] == width, f"pages of {self.page_size} weights in {self.bits} bits have {width} columns, and these are {tuple(self.pages.shape)}"),  # noqa: PLR2004
            ((self.scales is not None) == (self.bits in _QUANTISED), "scales are there where pages are quantised, and only there"),
            (self.scales is None or tuple(self.scales.shape) == (len(self.pages),), "there is one scale a page"),
            (self.members.keys() == self.tables.keys() and self.members.keys() >= self.private.keys(), "each model has a table, and nobody else has one"),
        ]  # fmt: skip
        for holds, rule in rules:
            if not holds:
                msg = f"this bundle contradicts itself: {rule}. Pack the models again."
                raise BadBundle(msg)
        for name in self.members:
            self._check_table(name)
        for part, one in (("pages", self.pages), ("scales", self.scales)):
            bad = 0 if one is None or not one.is_floating_point() else int((~one.isfinite()).sum())
            if bad:
                msg = f"{bad} values of this bundle's {part} are NaN or infinite, and weights are numbers. Pack the models again, as float32."
                raise BadBundle(msg)
        return self

    def _check_table(self, name: str) -> None:
        member, table = self.members[name], self.tables[name]
        needed = -(-member.weights // self.page_size)
        held = table.to(torch.int64)
        if table.dtype not in UNSIGNED or tuple(table.shape) != (needed,):
            rule = f"{member.weights} weights in pages of {self.page_size} need a table of {needed} unsigned numbers, and its table is {table.dtype} {tuple(table.shape)}"
        elif needed and int(held.max()) >= len(self.pages):
            rule = f"its table names page {int(held.max())}, and there are {len(self.pages)}"
        elif len(set(held.tolist())) < needed:
            rule = "its table names one page twice"
        else:
            return
        msg = f"this bundle contradicts itself: model {name}: {rule}. Pack the models again."
        raise BadBundle(msg)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one safetensors file, whole or not at all; what is no tensor is JSON in its metadata.

        Raises
        ------
        BadDeclaration
            Where it cannot be written there.
        """
        from safetensors import SafetensorError  # noqa: PLC0415  an extra
        from safetensors.torch import save_file  # noqa: PLC0415  an extra

        place = Path(path)
        if not place.parent.is_dir():
            msg = f"a bundle is saved into a folder that is there, and {place.parent} is none. Make it first, or give another path."
            raise BadDeclaration(msg)
        partial = place.with_name(f".{place.name}.{os.getpid()}")
        # Own and contiguous: safetensors writes no views.
        tensors = {key: one.detach().clone().contiguous() for key, one in self.named().items()}
        said = _Said(VERSION, self.page_size, self.bits, list(self.members.values()))
        said = msgspec.structs.replace(said, checksum=_checksum(said, tensors))
        try:
            save_file(tensors, partial, {_KEY: msgspec.json.encode(said).decode()})
            partial.replace(place)
        except (OSError, SafetensorError) as problem:
            msg = f"{path} cannot be written: {problem}. Give another path, or make room there."
            raise BadDeclaration(msg) from None
        finally:
            partial.unlink(missing_ok=True)
        return place

    def named(self) -> dict[str, torch.Tensor]:
        """Return all its tensors by name, as `assembled` takes them."""
        found = {"pages": self.pages}
        if self.scales is not None:
            found["scales"] = self.scales
        for number, name in enumerate(self.members):
            found[f"table/{number}"] = self.tables[name]
            kept = self.private.get(name, {})
            found.update({f"private/{number}/{key}": one for key, one in kept.items()})
        return found

    @classmethod
    def assembled(cls, page_size: int, bits: int, members: Sequence[Member], tensors: Mapping[str, torch.Tensor]) -> Packed:  # fmt: skip
        """Return it from what `named` gave.

        Raises
        ------
        KeyError
            Naming a part that is missing.
        """
        tables, private = {}, {}
        for n, one in enumerate(members):
            tables[one.name] = tensors[f"table/{n}"]
            prefix = f"private/{n}/"
            private[one.name] = {key.removeprefix(prefix): kept for key, kept in tensors.items() if key.startswith(prefix)}  # fmt: skip
        by_name = {one.name: one for one in members}
        return cls(page_size, bits, tensors["pages"], tensors.get("scales"), by_name, tables, private)  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Packed:
        """Read what `save` wrote.

        Raises
        ------
        BadBundle
            Where the file is no bundle, a newer one, damaged, or contradicts itself.
        BadDeclaration
            Where there is no such device.
        """
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415  an extra

        place = device_named(device)
        try:
            with safe_open(path, framework="pt") as file:
                said = _said(path, (file.metadata() or {}).get(_KEY))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError) as problem:
            msg = (
                f"{path} cannot be read as a bundle: {problem}. Give a file that Packed.save wrote."
            )
            raise BadBundle(msg) from None
        if said.checksum != _checksum(said, tensors):
            what = "is damaged: its content is not what was saved (checksum)" if said.checksum else "has no checksum: another gpushare wrote it"  # fmt: skip
            msg = f"{path} {what}. Copy it again, or pack the models again."
            raise BadBundle(msg)
        tensors = {key: one.to(place) for key, one in tensors.items()}
        try:
            return cls.assembled(said.page_size, said.bits, said.members, tensors).check()
        except KeyError as missing:
            msg = f"{path} lacks its part {missing}. Copy it again, or pack the models again."
            raise BadBundle(msg) from None


def device_named(device: torch.device | str) -> torch.device:
    """Return a device that is there, a GPU by its number.

    Raises
    ------
    BadDeclaration
        Where there is none such.
    """
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        msg = f"device is cpu, cuda or cuda:NUMBER, and {device!r} is none of them. Leave it out, or write one."
        raise BadDeclaration(msg) from None
    if place.type not in ("cpu", "cuda"):
        msg = f"a bundle is on cpu or cuda, not {place}. Leave device out, or write one of them."
        raise BadDeclaration(msg)
    count = torch.cuda.device_count() if place.type == "cuda" else 0
    if place.type == "cuda" and (place.index or 0) >= count:
        msg = f"device is {place}, and torch sees {count or 'no'} GPU{'s' * (count > 1)} here. Leave it out, or write device='cpu'."
        raise BadDeclaration(msg)
    return torch.empty(0, device=place).device


class _Version(msgspec.Struct):
    version: int


class _Said(msgspec.Struct, frozen=True):
    """What a file says beside its tensors."""

    version: int
    page_size: int
    bits: int
    members: list[Member]
    checksum: str = ""
    """Of all the rest, and of the tensors."""


def _checksum(said: _Said, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(msgspec.json.encode(msgspec.structs.replace(said, checksum="")), digest_size=16)  # fmt: skip
    for name, one in sorted(tensors.items()):
        digest.update(f"{name} {one.dtype} {tuple(one.shape)}\0".encode())
        digest.update(one.contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _said(path: Any, text: str | None) -> _Said:
    if text is None:
        msg = f"{path} has tensors and no bundle's description. Give a file that Packed.save wrote."
        raise BadBundle(msg)
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version == VERSION:
            return msgspec.json.decode(text, type=_Said)
    except msgspec.DecodeError as problem:
        msg = f"{path} has a bundle's description that cannot be read: {problem}. Copy it again, or pack the models again."
        raise BadBundle(msg) from None
    msg = f"{path} is a bundle of version {version}, and this gpushare reads {VERSION}. Pack the models again, or update gpushare."
    raise BadBundle(msg)
