"""What a bundle takes in memory, beside its models each for itself."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from msgspec import field
from torch.nn.parameter import UninitializedParameter

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.nwv.check import dtype_of
from gpushare_kernel.nwv.gather import Pages
from gpushare_kernel.nwv.packed import Member, Packed, Sizes
from gpushare_kernel.nwv.report import compared
from gpushare_kernel.nwv.room import measured
from gpushare_kernel.shown import Table


class Resident(Sizes, frozen=True):
    """Bytes of a bundle on its device, by part; `tables` with what our kernel is told of where weights go.

    Attributes
    ----------
    alone
        By model: what it would take by itself, as it was before it was packed.
    allocated
        What torch has given out on that GPU in this process, for whatever; None on a CPU.
    shared
        As what pages and scales are with a holder; None where they are this process's own.
    """

    alone: dict[str, int] = field(default_factory=dict)
    allocated: int | None = None
    shared: str | None = None

    @property
    def copies(self) -> int:
        """The models each for itself."""
        return sum(self.alone.values())

    @property
    def ratio(self) -> float:
        """How many times less the bundle is."""
        return self.copies / self.total


def scratch(packed: Packed, modules: Mapping[str, torch.nn.Module], mode: str = "switch") -> int:
    """Return the bytes of scratch that a bundle of these will have, before it is made."""
    found = measured((one, modules[name]) for name, one in packed.members.items())
    return 2 * found.half + found.kept if mode == "layers" else found.whole


def needs(packed: Packed, modules: Mapping[str, torch.nn.Module], mode: str = "switch") -> int:
    """Return all the bytes that it will take."""
    unsaved = sum(
        one.nbytes
        for name in packed.members
        for key, one in modules[name].named_buffers()
        if key not in modules[name].state_dict()
    )
    return packed.sizes(scratch(packed, modules, mode)).total + unsaved


def packing(modules: Mapping[str, torch.nn.Module], ratio: float, bits: int | None = None) -> int:
    """Return the bytes that packing modules takes beside them, data and activations; counted, not measured.

    All weights in float32 eight times: as they are cut, their copies, what each matters, their values, and how models left them
    in four states. Pages ten times: four states, gradient, Adam's moments, and what holds them. One model's step is ten times
    the largest.
    """
    counts = [sum(one.numel() for one in each.parameters() if not isinstance(one, UninitializedParameter)) for each in modules.values()]  # fmt: skip
    whole, largest = 4 * sum(counts), 4 * max(counts)
    pages = max(largest, min(whole, int(whole * 32 / (bits or 32) / ratio)))
    return 8 * whole + 10 * pages + 10 * largest


def alone(member: Member, own: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes that a model takes by itself; `own` is what it has to itself."""
    paged = sum(prod(one.shape) * dtype_of(one.dtype).itemsize for one in member.pieces)
    return paged + sum(one.nbytes for one in own.values())


def table(found: Resident, pages: Pages, mode: str, used: int) -> Table:
    """Return all of it as a table; models use `used` pages in all."""
    largest = "the largest model" if mode == "switch" else "the largest layers"
    copies = ", ".join(f"{name} {format_size(size)}" for name, size in found.alone.items())
    rows = [
        ("pages", format_size(found.pages), f"{len(pages.pages):,} of {pages.page_size} weights; the models' tables name {used:,}"),
        ("scales", format_size(found.scales), "one a page" if found.scales else "not quantised"),
        ("tables", format_size(found.tables), "which page holds what"),
        ("private", format_size(found.private), "what models have to themselves"),
        ("scratch", format_size(found.scratch), f"one for all: {largest}"),
        ("in all", format_size(found.total), compared(found.ratio, "less", "more")),
        ("separate copies", format_size(found.copies), copies),
    ]  # fmt: skip
    notes = []
    if found.shared is not None:
        notes.append(f"Pages and scales are shared as {found.shared!r}: one holder has them for all your kernels.")  # fmt: skip
    if found.allocated is not None:
        notes.append(f"torch has given out {format_size(found.allocated)} on this GPU in all.")
    title = f"Bundle of {len(found.alone)} models, mode {mode}"
    return Table(title, ("", ">memory", ""), rows, notes)
