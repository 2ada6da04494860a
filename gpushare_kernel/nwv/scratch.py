"""Memory in which one model's weights are at a time, and who they are.

A thread that runs a model holds the lock from before the gather until its kernels are launched; on CUDA the next one's gather
waits, on the device, for those kernels to end. So nobody computes with another model's weights, in whatever thread or stream.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.nwv.gather import Gather

NOT_LOADED = "a capture runs nothing, so a model must be in the scratch before it. Call bundle[name].load() first, or use bundle[name].graphed(x)."


class Scratch:
    """Bytes on a device, a lock, and the owner of what is in them.

    Attributes
    ----------
    memory
        (bytes,) uint8, at one address for as long as it lives.
    owner
        Whose weights are in it; None where they are nobody's. Changed only by who holds it.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.owner: object = None
        self._lock = threading.Lock()
        self._thread = 0
        self._used: torch.cuda.Event | None = None
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have it to oneself; on CUDA also after whatever was launched on it before.

        Raises
        ------
        UserError
            Where this thread has it already: a model would lose its weights to the one that it calls.
        """
        here = threading.get_ident()
        if self._thread == here:
            msg = "a model of a bundle must not be called inside another one of it: they take turns in one scratch. Call it outside, or use bundle[name].unpacked()."
            raise UserError(msg)
        with self._lock:
            self._thread = here
            try:
                self._after_others()
                yield
            finally:
                self._thread = 0
                self._note_use()

    @property
    def captured(self) -> bool:
        """Whether what is launched now goes into a CUDA graph instead of being run."""
        return self.memory.is_cuda and torch.cuda.is_current_stream_capturing()

    def _after_others(self) -> None:
        if self._used is not None and not self.captured:
            stream = torch.cuda.current_stream(self.memory.device)
            if stream != self._stream:
                stream.wait_event(self._used)

    def _note_use(self) -> None:
        if self.memory.is_cuda and not self.captured:
            self._used = self._used or torch.cuda.Event()
            self._stream = torch.cuda.current_stream(self.memory.device)
            self._used.record(self._stream)


class Runner(Protocol):
    """Runs one model in the scratch. Whoever calls it holds the scratch."""

    def ready(self) -> None:
        """Have its weights where it needs them before it starts."""

    def forward(self, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Run it."""

    def forget(self) -> None:
        """Take nothing in the scratch for granted: others may have written it."""

    @property
    def size(self) -> int:
        """Bytes that it keeps on the device to know what goes where."""


class Switched:
    """A whole model at a time: one gather where another one was in the scratch, none where it is there still."""

    def __init__(self, scratch: Scratch, gather: Gather, shell: torch.nn.Module) -> None:
        self._scratch, self._gather, self._shell = scratch, gather, shell
        self.key = object()  # what it signs with: the scratch must not keep it alive

    def ready(self) -> None:
        """Gather its weights, where they are not there."""
        scratch = self._scratch
        if scratch.owner is not self.key:
            if scratch.captured:
                raise UserError(NOT_LOADED)
            scratch.owner = None  # half of a gather is nobody's
            self._gather(scratch.memory)
            scratch.owner = self.key

    def forward(self, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Run it."""
        return self._shell(*given, **named)

    def forget(self) -> None:
        """Gather anew next time."""
        self._scratch.owner = None

    @property
    def size(self) -> int:
        """Bytes of its lists."""
        return self._gather.size
