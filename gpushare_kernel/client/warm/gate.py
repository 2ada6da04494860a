"""While memory is away, no message leads to code of the user's: it waits until the memory is back, or is answered empty (W10 to W13).

The place is the kernel's own table of handlers, by type of message, for the shell channel and the control channel; subshells use
the same. It is the same in ipykernel 6 and 7. What is not known to be harmless waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpushare_kernel.client.warm import replies
from gpushare_kernel.wire import parking_texts

Line = Callable[[str], None]
"""Shows a line in the output of the message that is handled, and changes it from then on."""

_HARMLESS = {
    *("kernel_info_request", "connect_request", "history_request", "comm_info_request"),
    *("shutdown_request", "interrupt_request", "usage_request"),
    *("create_subshell_request", "delete_subshell_request", "list_subshell_request"),
}
_RESCUE = re.compile(r"\s*%gpushare\s+rescue(?:\s+(\S[^\n]*?))?\s*")
_EVERY = 1.0
"""Seconds after which it is asked again how long it may take."""


@dataclass(eq=False, slots=True)
class _Hold:
    """One message that waits, on the loop of its thread."""

    loop: asyncio.AbstractEventLoop
    gives_up: bool
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    interrupted: bool = False

    def ended(self) -> bool:
        """Say whether its user does not want to wait any longer."""
        return self.interrupted

    def wake(self) -> None:
        """Let it look again (any thread)."""
        with contextlib.suppress(RuntimeError):  # its subshell has ended
            self.loop.call_soon_threadsafe(self.woken.set)


class Gate:
    """The gate of one kernel.

    Parameters
    ----------
    kernel
        ipykernel's kernel.
    line
        Returns a new line in the output of whatever is handled.
    rescue
        Saves what is away to a file (or one of its own choice), and returns what to say of it.
    """

    def __init__(self, kernel: Any, line: Callable[[], Line], rescue: Callable[[str | None], str]) -> None:  # fmt: skip
        self._kernel, self._line, self._rescue = kernel, line, rescue
        self.waits: Callable[[], str] = lambda: parking_texts.HELD
        self.given_up: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._before: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._holds: list[_Hold] = []
        self._owner: _Hold | None = None

    def is_shut(self) -> bool:
        """Whether messages wait here."""
        return bool(self._before)

    @property
    def held(self) -> int:
        """How many messages wait here."""
        return len(self._holds)

    def install(self) -> None:
        """Let no message through from now on."""
        with self._lock:
            for name in () if self._before else ("shell_handlers", "control_handlers"):
                handlers: dict[str, Any] = getattr(self._kernel, name)
                self._before.append((handlers, dict(handlers)))
                control = name == "control_handlers"
                for kind, handler in [*handlers.items()]:
                    handlers[kind] = self._instead(kind, handler, control=control)

    def remove(self) -> None:
        """Let them all through, in the order in which they came."""
        with self._lock:
            while self._before:
                handlers, before = self._before.pop()
                handlers.update(before)
            holds = list(self._holds)
        for hold in holds:
            hold.wake()

    # --- Handlers ------------------------------------------------------------------------------------------

    def _instead(self, kind: str, original: Any, *, control: bool) -> Any:
        if kind in _HARMLESS:
            return original
        if kind in replies.EMPTY:
            return lambda stream, ident, parent: replies.empty(self._kernel, stream, ident, parent)
        if control:  # its channel must stay free for interrupt and shutdown
            return lambda stream, ident, parent: replies.aborted(self._kernel, stream, ident, parent)  # fmt: skip

        async def handle(stream: Any, ident: Any, parent: dict[str, Any]) -> None:
            content = parent["content"]
            if kind == "execute_request" and self.is_shut():
                saved = _RESCUE.fullmatch(str(content.get("code", "")))
                if saved is not None:
                    return self._save(stream, ident, parent, saved[1])
                if content.get("silent", False):
                    return replies.aborted(self._kernel, stream, ident, parent)
            if not await self._held(gives_up=kind == "execute_request"):
                return replies.interrupted(self._kernel, stream, ident, parent)
            self._kernel.set_parent(ident, parent, channel="shell")  # others were handled meanwhile
            result = original(stream, ident, parent)
            if inspect.isawaitable(result):
                await result
            return None

        return handle

    def _save(self, stream: Any, ident: Any, parent: dict[str, Any], file: str | None) -> None:
        try:
            told = self._rescue(file)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the user reads it
            replies.failed(self._kernel, stream, ident, parent, f"{type(problem).__name__}: {problem}")  # fmt: skip
        else:
            self._line()(told)
            replies.done(self._kernel, stream, ident, parent)

    # --- Waiting -------------------------------------------------------------------------------------------

    async def _held(self, *, gives_up: bool) -> bool:
        """Wait until the gate is open; False where the user interrupted it."""
        hold = _Hold(asyncio.get_running_loop(), gives_up)
        with self._lock:
            if not self.is_shut():
                return True
            self._holds.append(hold)
        line = _Shown(self._line())
        restore = self._take_interrupts(hold)
        try:
            while self.is_shut() and not hold.ended():
                line.show(self._why())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVERY):
                        await hold.woken.wait()
                hold.woken.clear()
        finally:
            restore()
            with self._lock:
                self._holds.remove(hold)
                if hold.ended() and not self._holds:
                    self.given_up()
        line.show("" if hold.ended() else parking_texts.MEMORY_BACK)
        return not hold.ended()

    def _why(self) -> str:
        try:
            return self.waits()
        except Exception:  # noqa: BLE001 - a text that is not to be had must not end a cell
            return parking_texts.HELD

    def _take_interrupts(self, hold: _Hold) -> Callable[[], None]:
        """Let the interrupt button end waiting cells: while a loop waits, an exception would end the kernel."""
        if threading.current_thread() is not threading.main_thread() or self._owner is not None:
            return lambda: None
        self._owner = hold
        before = signal.signal(signal.SIGINT, self._interrupt)

        def restore() -> None:
            self._owner = None
            if signal.getsignal(signal.SIGINT) == self._interrupt:
                signal.signal(signal.SIGINT, before)

        return restore

    def _interrupt(self, _number: int, _frame: object) -> None:
        # No lock: this runs between any two lines of the main thread.
        for hold in list(self._holds):
            if hold.gives_up:
                hold.interrupted = True
                hold.wake()


class _Shown:
    """A line that is shown anew only where it says something else."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._last = ""

    def show(self, text: str) -> None:
        if text != self._last:
            self._last = text
            with contextlib.suppress(Exception):  # a line that cannot be shown must not end a cell
                self._line(text)
