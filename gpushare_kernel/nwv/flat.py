"""A bundle as one piece of memory, so that another kernel needs nothing but that: a head that says what lies where, then the tensors."""

from __future__ import annotations

import msgspec
import torch

from gpushare_kernel.core.errors import PeerError
from gpushare_kernel.nwv.layout import ALIGNED, aligned
from gpushare_kernel.nwv.packed import Member, Packed
from gpushare_kernel.nwv.region import Part, parts_of

_LENGTH = 8
_MOST = 2**26
"""Bytes of a head; more is no head."""


class _Head(msgspec.Struct, frozen=True):
    """What is in the memory. Offsets of parts count from the end of the head."""

    page_size: int
    bits: int
    members: tuple[Member, ...]
    parts: tuple[Part, ...]


def tensors_of(packed: Packed) -> dict[str, torch.Tensor]:
    """Return all that a bundle is, by name, the head first: laid out one behind the other (`parts_of`) it can be read back."""
    found = packed.named()
    parts, _ = parts_of(found)
    head = _Head(packed.page_size, packed.bits, tuple(packed.members.values()), parts)
    said = msgspec.msgpack.encode(head)
    whole = len(said).to_bytes(_LENGTH, "little") + said
    whole += bytes(-len(whole) % ALIGNED)
    return {"head": torch.frombuffer(bytearray(whole), dtype=torch.uint8), **found}


def write(tensors: dict[str, torch.Tensor], memory: torch.Tensor) -> None:
    """Write what `tensors_of` returned into memory (bytes) of whatever device."""
    parts, _ = parts_of(tensors)
    for part, tensor in zip(parts, tensors.values(), strict=True):
        source = tensor.detach().contiguous().view(-1).view(torch.uint8)
        memory[part.offset : part.offset + part.size].copy_(source)


def read(memory: torch.Tensor) -> tuple[Packed, tuple[Part, ...]]:
    """Return a bundle whose pages and scales lie in `memory` (bytes), and all parts of it; tables and what is private are copies.

    Raises
    ------
    PeerError
        Where it is none.
    """
    length = int.from_bytes(bytes(memory[:_LENGTH].tolist()), "little")
    if not 0 < length <= min(_MOST, len(memory) - _LENGTH):
        msg = f"a bundle in shared memory begins with its head, and this one claims {length} bytes of {len(memory)}."
        raise PeerError(msg)
    try:
        head = msgspec.msgpack.decode(
            bytes(memory[_LENGTH : _LENGTH + length].tolist()), type=_Head
        )
    except msgspec.MsgspecError as problem:
        msg = f"a bundle in shared memory begins with its head, and this is none: {problem}."
        raise PeerError(msg) from problem
    start = aligned(_LENGTH + length)
    parts = tuple(msgspec.structs.replace(part, offset=part.offset + start) for part in head.parts)
    found = {part.name: _view(memory, part) for part in parts}
    apart = {
        name: one if name in {"pages", "scales"} else one.clone() for name, one in found.items()
    }
    try:
        return Packed.assembled(head.page_size, head.bits, head.members, apart), parts
    except KeyError as missing:
        msg = f"a bundle in shared memory has all of its parts, and this one lacks {missing}."
        raise PeerError(msg) from None


def _view(memory: torch.Tensor, part: Part) -> torch.Tensor:
    if part.offset < 0 or part.offset + part.size > len(memory):
        msg = f"a bundle in shared memory lies inside it, and {part.name} does not."
        raise PeerError(msg)
    return memory[part.offset : part.offset + part.size].view(part.kind).view(part.shape)
