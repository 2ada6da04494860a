"""A model layer by layer: each unit's weights are gathered just before it runs, into memory for one unit or two.

On CUDA there are two *halves*: while a unit runs in one, the unit that followed it last time is gathered into the other on a
stream of its own. On a CPU a gather has nothing to hide behind, and there is one. A unit whose weights are not there has
parameters that refuse to be reckoned with (`shell.Elsewhere`), so what is used out of turn is an error and never a wrong answer; so
is a unit that begins inside another one, whose weights it would overwrite.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map_only  # what torch.export and torch.func walk results with

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.nwv.gather import Gather
from gpushare_kernel.nwv.layout import Layout, aligned, laid_out
from gpushare_kernel.nwv.packed import Member
from gpushare_kernel.nwv.scratch import Scratch
from gpushare_kernel.nwv.shell import NotLoaded
from gpushare_kernel.nwv.units import Unit, groups, held

Gatherer = Callable[[Layout], Gather]


class Stage:
    """The halves, and what is held, in one scratch; all models of a bundle share it.

    Parameters
    ----------
    half, kept
        Bytes of the largest unit, and of the most that one model holds.
    """

    def __init__(self, half: int, kept: int, device: torch.device) -> None:
        self.halves = 2 if device.type == "cuda" else 1
        half = aligned(half)
        self.scratch = Scratch(self.halves * half + kept, device)
        memory = self.scratch.memory
        self.areas = [memory[n * half : (n + 1) * half] for n in range(self.halves)]
        self.kept = memory[self.halves * half :]
        self.inside: list[Unit | None] = [None] * self.halves
        self._current = 0
        self._side = torch.cuda.Stream(device) if self.halves > 1 else None
        self._ready = [torch.cuda.Event() for _ in self.areas] if self._side else []
        self._coming = [False] * self.halves

    def enter(self, unit: Unit, following: Unit | None) -> None:
        """`unit` is about to run, and after it probably `following`."""
        if unit in self.inside:
            area = self.inside.index(unit)
            self._await(area)
        else:
            area = (self._current + 1) % self.halves
            self._await(area)
            self._load(unit, area)
        self._current = area
        if self._side is not None and following is not None and following not in self.inside:
            self._prefetch(following, 1 - area)

    def settle(self) -> None:
        """Have the current stream wait for what is still being gathered."""
        for area in range(self.halves):
            self._await(area)

    def forget(self) -> None:
        """Take nothing that is in memory for granted."""
        self.settle()
        for area, unit in enumerate(self.inside):
            if unit is not None:
                unit.hide()
                self.inside[area] = None
        self.scratch.owner = None

    def _load(self, unit: Unit, area: int) -> None:
        """Gather on the current stream. It is there only when that has come about: an interrupt may come at any moment."""
        before = self.inside[area]
        if before is not None:
            before.hide()
        self.inside[area] = None
        unit.gather(self.areas[area])
        unit.show(area)
        self.inside[area] = unit

    def _prefetch(self, unit: Unit, area: int) -> None:
        """Gather beside what runs, after what ran in that half."""
        assert self._side is not None  # noqa: S101 - for the type checker
        self._side.wait_stream(torch.cuda.current_stream(self._side.device))
        self._coming[area] = True
        with torch.cuda.stream(self._side):
            try:
                self._load(unit, area)
            finally:
                self._ready[area].record(self._side)

    def _await(self, area: int) -> None:
        if self._coming[area]:
            torch.cuda.current_stream(self.scratch.memory.device).wait_event(self._ready[area])
            self._coming[area] = False


NOT_BY_HAND = "layer by layer, a graph that is replayed writes the scratch unseen. Use bundle[name].graphed(x), or mode='switch'."


class Layered:
    """One model on the stage."""

    def __init__(
        self, stage: Stage, member: Member, shell: torch.nn.Module, gatherer: Gatherer
    ) -> None:
        self._stage, self._shell = stage, shell
        #: Whether whoever captures it knows that halves are then written unseen.
        self.may_be_captured = False
        self.key = object()  # what it signs with: the scratch must not keep it alive
        self._next: dict[Unit, Unit] = {}
        self._last: Unit | None = None
        #: Units that have begun and not ended, the innermost last.
        self._running: list[Unit] = []
        found = groups(shell, member.pieces)
        keeps, start = held(list(found)), 0
        self._held: list[tuple[Unit, torch.Tensor]] = []
        self._units: list[Unit] = []
        for path, pieces in found.items():
            layout = laid_out(pieces)
            if path in keeps:
                area = stage.kept[start : start + layout.size]
                start += layout.size
                unit = Unit(path, shell, layout, gatherer(layout), [area])
                unit.show(0)
                self._held.append((unit, area))
            else:
                unit = Unit(path, shell, layout, gatherer(layout), stage.areas)
                # No hook: with one on it, attention would go another way than without. This catches a bare forward() too.
                given = vars(unit.module).get("forward")
                unit.module.forward = partial(_run, weakref.ref(self), weakref.ref(unit), given)
            self._units.append(unit)

    def ready(self) -> None:
        """Gather what is held, where another model's is there."""
        scratch = self._stage.scratch
        if scratch.owner is not self.key:
            scratch.owner = None
            for unit, area in self._held:
                unit.gather(area)
            scratch.owner = self.key

    def forward(self, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Run it; its units gather."""
        if self._stage.scratch.captured and not self.may_be_captured:
            raise UserError(NOT_BY_HAND)
        self._last = None
        try:
            return self._shell(*given, **named)
        finally:
            self._running.clear()
            self._stage.settle()

    def forget(self) -> None:
        """Gather all anew next time."""
        self._stage.forget()

    @property
    def size(self) -> int:
        """Bytes of the lists of its units."""
        return sum(unit.gather.size for unit in self._units)

    @contextmanager
    def running(self, unit: Unit) -> Iterator[None]:
        """`unit` runs.

        Raises
        ------
        NotLoaded
            Where another one runs that it would overwrite.
        """
        outer = self._running[-1] if self._running else unit
        if outer is not unit:
            msg = f"layer by layer, one layer's weights are there at a time, and {unit.path} runs inside {outer.path}. Open the bundle with mode='switch'."
            raise NotLoaded(msg)
        self._running.append(unit)
        try:
            self._enter(unit)
            yield
        finally:
            self._running.pop()

    def apart(self, result: Any) -> Any:
        """Return what a unit returns, its own weights copied: the next one is gathered over them."""
        memory = self._stage.scratch.memory.untyped_storage().data_ptr()

        def own(one: torch.Tensor) -> torch.Tensor:
            return one.clone() if one.untyped_storage().data_ptr() == memory else one

        return own(result) if isinstance(result, torch.Tensor) else tree_map_only(torch.Tensor, own, result)  # fmt: skip

    def _enter(self, unit: Unit) -> None:
        if self._last is not None and self._last is not unit:
            self._next[self._last] = unit
        self._last = unit
        self._stage.enter(unit, self._next.get(unit))


def _run(
    layered: weakref.ref[Layered],
    unit: weakref.ref[Unit],
    forward: Callable[..., Any] | None,
    *given: Any,
    **named: Any,
) -> Any:
    """Stand in for a unit's `forward` (`forward`: one that its module had for itself). Holds nobody: with the bundle its memory goes."""
    model, here = layered(), unit()
    assert model is not None and here is not None  # noqa: S101, PT018 - for the type checker
    with model.running(here):
        run = forward if forward is not None else partial(type(here.module).forward, here.module)
        return model.apart(run(*given, **named))
