"""The memory that all models of a bundle share to run in, by mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.nwv.gather import Gather
from gpushare_kernel.nwv.layers import Layered, Stage
from gpushare_kernel.nwv.layout import Layout, laid_out
from gpushare_kernel.nwv.packed import Member
from gpushare_kernel.nwv.scratch import Runner, Scratch, Switched
from gpushare_kernel.nwv.shell import Elsewhere, frozen
from gpushare_kernel.nwv.units import needed

MODES = ("switch", "layers")
Shell = Callable[[dict[str, torch.Tensor]], torch.nn.Module]
"""Makes a model's shell with these tensors for its paged parameters."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Bytes for the largest model, for the largest unit of any, and for the most that one holds all the time."""

    whole: int
    half: int
    kept: int


def measured(members: Iterable[tuple[Member, torch.nn.Module]]) -> Measures:
    """Return what some models need."""
    whole = half = kept = 0
    for member, module in members:
        unit, holds = needed(module, member.pieces)
        whole = max(whole, laid_out(member.pieces).size)
        half, kept = max(half, unit), max(kept, holds)
    return Measures(whole, half, kept)


class Room:
    """Scratch on a device, and how models run in it.

    Raises
    ------
    BadDeclaration
        Where there is no such mode.
    """

    def __init__(self, mode: str, measures: Measures, device: torch.device) -> None:
        if mode not in MODES:
            msg = f"mode is switch (a whole model at a time) or layers, not {mode!r}."
            raise BadDeclaration(msg)
        self.mode, self.measures, self.device = mode, measures, device
        self._stage = (
            Stage(measures.half, measures.kept, device) if mode == "layers" else None
        )  # fmt: skip
        self.scratch = (
            Scratch(measures.whole, device) if self._stage is None else self._stage.scratch
        )

    @classmethod
    def of(cls, mode: str, device: torch.device) -> Callable[[Measures], Room]:
        """Return what makes one, once it is known how large."""
        return lambda measures: cls(mode, measures, device)

    def runner(self, member: Member, gatherer: Callable[[Layout], Gather], shell: Shell) -> Runner:
        """Return what runs a model here."""
        layout = laid_out(member.pieces)
        if self._stage is None:
            views = {place.name: frozen(place.view(self.scratch.memory)) for place in layout.places}
            return Switched(self.scratch, gatherer(layout), shell({**views}))
        away = {place.name: Elsewhere.of(place, self.device) for place in layout.places}
        return Layered(self._stage, member, shell({**away}), gatherer)
