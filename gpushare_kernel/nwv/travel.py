"""A model of a bundle goes to another process of the same user: its structure by pickle, its pages by name.

The pages stay where they are. The other process opens the memfd through `/proc/PID/fd` while the one that sent the model
lives, and maps the same memory; models of one bundle that come to one process share one scratch there, too.
"""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.nwv.packed import Member, Packed
from gpushare_kernel.nwv.region import Part, Region
from gpushare_kernel.nwv.room import Measures, Room

if TYPE_CHECKING:
    from gpushare_kernel.nwv.bundle import Bundle, BundleModel


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where the pages of a bundle are: a process, its descriptor, and which file that is."""

    pid: int
    fd: int
    file: tuple[int, int]
    parts: tuple[Part, ...]
    page_size: int
    bits: int
    mode: str
    measures: Measures


@dataclass(frozen=True, slots=True)
class Luggage:
    """What a model has with it."""

    member: Member
    table: torch.Tensor
    own: Mapping[str, torch.Tensor]
    template: torch.nn.Module


_lock = threading.Lock()
_regions: weakref.WeakValueDictionary[tuple[int, int], Region] = weakref.WeakValueDictionary()
_rooms: weakref.WeakValueDictionary[tuple[tuple[int, int], str], Room] = (
    weakref.WeakValueDictionary()
)


def departing(bundle: Bundle, name: str) -> tuple[Any, ...]:
    """Return how a model is pickled.

    Raises
    ------
    PicklingError
        Where its pages are on a GPU: no other process reads these.
    """
    bundle.check_mapped()
    region = bundle.region
    if region is None:
        msg = (
            f"model {name} of a bundle reads pages on the GPU that this process alone has. "
            f"Use bundle[{name!r}].unpacked(), a module with weights of its own"
        )
        raise pickle.PicklingError(msg)
    ticket = Ticket(
        os.getpid(),
        region.fd,
        _file(region.fd),
        region.parts,
        bundle.pages.page_size,
        bundle.pages.bits,
        bundle.mode,
        bundle.room.measures,
    )
    luggage = Luggage(
        bundle.members[name], bundle.tables[name], bundle.own[name], bundle.templates[name]
    )
    return arrived, (ticket, luggage)


def arrived(ticket: Ticket, luggage: Luggage) -> BundleModel:
    """Return the model as it runs here.

    Raises
    ------
    UserError
        Where the process that sent it is gone, and its pages with it.
    """
    with _lock:
        region = _regions.get(ticket.file) or _opened(ticket)
        _regions[ticket.file] = region
        key = (ticket.file, ticket.mode)
        room = _rooms.get(key) or Room(ticket.mode, ticket.measures, torch.device("cpu"))
        _rooms[key] = room
    return _bundle(ticket, region, room, luggage)[luggage.member.name]


def _opened(ticket: Ticket) -> Region:
    try:
        fd = os.open(f"/proc/{ticket.pid}/fd/{ticket.fd}", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as problem:
        msg = f"the pages of this bundle are in process {ticket.pid}, and this one may not open them: it runs as somebody else, or apart (a container). Send bundle[name].unpacked() instead."
        raise UserError(msg) from problem
    except OSError as problem:
        raise _gone(ticket) from problem
    if _file(fd) != ticket.file:
        os.close(fd)
        raise _gone(ticket)
    try:
        return Region(fd, ticket.parts)
    except BaseException:
        os.close(fd)
        raise


def _bundle(ticket: Ticket, region: Region, room: Room, luggage: Luggage) -> Bundle:
    from gpushare_kernel.nwv.bundle import Bundle  # noqa: PLC0415  it imports us

    member = luggage.member
    pages, scales = region.tensors["pages"], region.tensors.get("scales")
    packed = Packed(ticket.page_size, ticket.bits, pages, scales, {member.name: member}, {member.name: luggage.table})  # fmt: skip
    return Bundle.opened(
        packed, {member.name: luggage.template}, {member.name: luggage.own}, region, room
    )


def _file(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _gone(ticket: Ticket) -> UserError:
    msg = f"the pages of this bundle were in process {ticket.pid}, which is gone or has let them go. Load the bundle again and send its models anew."
    return UserError(msg)
