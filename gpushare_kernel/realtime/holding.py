"""A task as one node has it: the pieces of its model, its slots, where it goes next."""

from __future__ import annotations

import mmap
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

from gpushare_kernel.realtime import orders
from gpushare_kernel.realtime.conduct import Allowance, Limit
from gpushare_kernel.realtime.queues import Mode, Work


class Holding:
    """What a `Load` brought. Its pieces come one by one: `steps` unpickles the next, so that deadlines wait for one at most."""

    def __init__(self, load: orders.Load, slots_fd: int, blob_fd: int, device: str) -> None:
        self.load, self.device = load, device
        self.kind = load.kind
        self.pieces: dict[int, Callable[[Any], Any]] = {}
        self._slots = mmap.mmap(slots_fd, os.fstat(slots_fd).st_size)
        os.close(slots_fd)
        self._blob_fd = blob_fd
        self._allowed: Allowance | None = None

    @property
    def last(self) -> int:
        """The number of the model's last layer."""
        return len(self.load.names) - 1

    def steps(self) -> Iterator[None]:
        """Load the pieces, one a step."""
        with os.fdopen(self._blob_fd, "rb") as blob:
            blob.seek(0)
            for place, length in enumerate(self.load.blobs, self.load.first):
                piece = pickle.loads(blob.read(length))  # noqa: S301  our own kernel wrote it
                self.pieces[place] = self._placed(piece)
                yield

    def slot(self, number: int) -> memoryview:
        """Return a slot's memory."""
        size = self.load.slot_size
        return memoryview(self._slots)[number * size : (number + 1) * size]

    def watch(self, node: int, mode: Mode) -> None:
        """A task with a deadline has its time on this node for all its layers here together."""
        here = next((span for span in self.load.stages if span.node == node), None)
        if here is None or not self.load.timed:
            return
        worst = [one for one in self.load.worst[here.first : here.last + 1] if one is not None]
        if len(worst) == here.last + 1 - here.first:
            self._allowed = Allowance(here.first, worst, pieces=mode is Mode.LAYER)

    def limit(self, work: Work) -> Limit | None:
        """Return what the next layer of a job may take; None where nobody knows."""
        allowed, layer = self._allowed, work.layer
        if allowed is not None and allowed.has(layer):
            return allowed.limit(layer, work.spent, blamed=work.blamed)
        worst = self.load.worst[layer]
        return None if worst is None else Limit(worst, layer, 0.0, worst)

    def where(self, layer: int) -> str:
        """Return what a layer is called in an error."""
        name = self.load.names[layer]
        return f"layer {layer} ({name}) of {self.load.name}"

    def planned(self, layer: int) -> int:
        """Return the node that runs `layer` by the plan."""
        return next(span.node for span in self.load.stages if span.first <= layer <= span.last)

    def elsewhere(self, layer: int, beyond: int) -> list[int]:
        """Return the nodes after `beyond` that have `layer` and all that follow."""
        return [
            span.node
            for span in self.load.homes
            if span.node > beyond and span.first <= layer and span.last == self.last
        ]

    def _placed(self, piece: Callable[[Any], Any]) -> Callable[[Any], Any]:
        torch = sys.modules.get("torch")
        if self.device != "cpu" and torch is not None and isinstance(piece, torch.nn.Module):
            placed: Callable[[Any], Any] = piece.to(self.device)
            return placed
        return piece
