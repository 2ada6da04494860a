"""The warm tier of one kernel: set aside, wait at the gate, back. All of it on the kernel's main thread, while it is idle."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from gpushare_kernel.client.copying import Copier
from gpushare_kernel.client.warm import aside, rescue
from gpushare_kernel.client.warm.exports import Exports
from gpushare_kernel.client.warm.finding import Finder, Kept
from gpushare_kernel.client.warm.gate import Gate, Line
from gpushare_kernel.client.warm.quiet import Quiet
from gpushare_kernel.client.warm.store import TorchStore, digest
from gpushare_kernel.core.errors import NotSetAside, UserError
from gpushare_kernel.wire import parking_texts

_BEFORE_US = "torch used the GPU before gpushare was there, or gave its memory to a library that does not say what it takes"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was moved: bytes, storages, seconds in all and of copying, and what stays on the device and why."""

    bytes: int = 0
    count: int = 0
    seconds: float = 0.0
    copying: float = 0.0
    kept: tuple[Kept, ...] = ()


class Warm:
    """The warm tier of this kernel.

    Parameters
    ----------
    torch, exports
        The module, and what it gave away since it was imported.
    kernel
        ipykernel's kernel.
    running
        Whether a cell runs.
    line
        Returns a new line in the output of whatever is handled.
    namespace
        Returns the user's variables.
    settle, trim
        The adapter's: wait for what was launched, give back what is unused.
    devices, types
        The types of device whose memory is moved; subclasses of Tensor whose objects are plain tensors.
    verify
        Whether every byte is hashed before and after.
    """

    def __init__(
        self,
        torch: Any,
        exports: Exports,
        *,
        kernel: Any,
        running: Callable[[], bool],
        line: Callable[[], Line],
        namespace: Callable[[], Mapping[str, object]],
        settle: Callable[[], None],
        trim: Callable[[], None],
        devices: Collection[str] = ("cuda",),
        types: Iterable[type] = (),
        verify: bool = False,
    ) -> None:
        self._torch, self._exports = torch, exports
        self._kernel = kernel
        self._quiet = Quiet(kernel, running)
        self._gate = Gate(kernel, line, self.rescue)
        self._finder = Finder(torch, exports, devices, types)
        self._store = TorchStore(torch, settle, trim)
        self._namespace = namespace
        self._verify = digest if verify else None
        self._aside: aside.Aside | None = None
        self._collects = True
        self._lock = threading.Lock()

    @property
    def away(self) -> int:
        """How many bytes are set aside."""
        return 0 if self._aside is None else self._aside.size

    @property
    def held(self) -> int:
        """How many messages wait for the memory."""
        return self._gate.held

    def gate(self, waits: Callable[[], str], given_up: Callable[[], None]) -> None:
        """Have `waits` asked what to tell whoever waits, when it begins to wait and once a second, and `given_up` called when the last of them was interrupted (any thread)."""
        self._gate.waits, self._gate.given_up = waits, given_up

    def why_not(self) -> str:
        """Return why nothing may be set aside now, in plain words; nothing where it may."""
        if not self._exports.all_seen:
            return _BEFORE_US
        return self._quiet.why_not(self._torch)

    def set_aside(self, lease_of: Callable[[int], aside.Lease], copier: Copier) -> Outcome:
        """Move what can be moved to a lease; messages wait from now on, unless there was nothing to move.

        Raises
        ------
        NotSetAside
            Where it is not quiet here, the lease is too small or the copy is not the same. Nothing has changed, as with
            any other error.
        """
        if self._aside is not None:
            return Outcome()
        began = perf_counter()
        with undisturbed():
            # First the gate, then the look: what comes in between waits.
            self._gate.install()
            gc.collect()  # what nobody can reach would be moved to and fro
            self._collects = gc.isenabled()
            gc.disable()  # a finaliser of the user's would read what is away
            try:
                return self._set_aside(lease_of, copier, began)
            finally:
                if self._aside is None:
                    self._open()

    def _set_aside(
        self, lease_of: Callable[[int], aside.Lease], copier: Copier, began: float
    ) -> Outcome:
        why = self.why_not()
        if why:
            raise NotSetAside(f"the memory stays on the device: {why}.")  # noqa: EM102 - the reason is the message
        found = self._finder.find()
        if not found.movable:
            return Outcome(kept=found.kept)
        moved = aside.set_aside(found.movable, self._store, lease_of, copier, self._verify)
        self._aside = moved
        atexit.register(self._end)  # last of all, so first of all to be called
        return Outcome(moved.size, len(moved.entries), perf_counter() - began, moved.seconds, found.kept)  # fmt: skip

    def back(self) -> Outcome:
        """Bring everything back, and let go on what waits. Harmless where nothing is away.

        Raises
        ------
        NotPutBack
            Where there is no room, or what came is not the same. Everything is still set aside: try again.
        """
        with undisturbed(), self._lock:
            moved = self._aside
            if moved is None:
                return Outcome()
            began, size, count = perf_counter(), moved.size, len(moved.entries)
            copying = moved.back()
            self._aside = None
            self._open()
            return Outcome(size, count, perf_counter() - began, copying)

    def rescue(self, file: str | None = None) -> str:
        """Save what is set aside to a file, without the device; returns what to say of it (any thread).

        Raises
        ------
        UserError
            Where nothing is set aside, or the file cannot be written.
        """
        with self._lock:  # it must not come back while it is read
            if self._aside is None:
                raise UserError(parking_texts.NOTHING_ASIDE)
            return rescue.save(self._torch, self._aside, self._namespace(), file)

    def _end(self) -> None:
        """The kernel ends while memory is away: nothing of the user's runs any more, or a half-empty model would overwrite a good file (W14)."""
        for last in (self._close_history, self._kernel._at_shutdown, sys.stdout.flush, sys.stderr.flush):  # fmt: skip
            with contextlib.suppress(Exception):
                last()
        os._exit(0)

    def _close_history(self) -> None:
        self._kernel.shell.history_manager.end_session()

    def _open(self) -> None:
        atexit.unregister(self._end)
        if self._collects:
            gc.enable()
        self._gate.remove()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let an interrupt come after this, not in the middle of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and callable(before):
            before(came[0], None)
