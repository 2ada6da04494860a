"""Where a front end enters user code beside cells: silent executions and comm messages (widget callbacks).

While a notebook's GPU memory is set aside, a call to the GPU waits for it. A cell asks for it as it begins; these are no
cells, so they ask here, and what they asked for lapses when they are over. One that goes on for longer says so even where
nothing is set aside: its notebook is not idle then, and what is set aside in the middle of it is asked for.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from typing import TYPE_CHECKING, Any

from gpushare_kernel.client.shown import CellEnded, CellStarted

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session

_TYPES = ("execute_request", "comm_open", "comm_msg", "comm_close")
LONG = 0.1
"""Seconds after which such a message is told of: most are over by then, and say nothing of whether a notebook is idle."""
Handler = Callable[..., Any]


class Entries:
    """The kernel's handlers of messages that run user code, with a word to the broker around each."""

    def __init__(self, kernel: Any, session: Session) -> None:
        self._session = session
        self._handlers: dict[str, Handler] = getattr(kernel, "shell_handlers", {})
        self._numbers = count(-1, -1)  # cells have positive ones
        self._were: dict[str, Handler] = {}

    def watch(self) -> None:
        """Ask from now on."""
        for name in _TYPES:
            handler = self._handlers.get(name)
            if handler is not None and name not in self._were:
                self._were[name] = handler
                self._handlers[name] = self._asking(handler)

    def leave(self) -> None:
        """Put the kernel's own handlers back."""
        self._handlers.update(self._were)
        self._were.clear()

    def _asking(self, handler: Handler) -> Handler:
        @wraps(handler)
        async def awaiting(*arguments: Any, **named: Any) -> Any:
            with self._open(*arguments):
                return await handler(*arguments, **named)

        @wraps(handler)
        def asking(*arguments: Any, **named: Any) -> Any:
            with self._open(*arguments):
                return handler(*arguments, **named)

        return awaiting if inspect.iscoroutinefunction(handler) else asking

    @contextmanager
    def _open(self, *arguments: Any) -> Iterator[None]:
        gpu = self._session.gpu
        if gpu is None or any(_is_cell(one) for one in arguments):
            yield
            return
        entry = _Entry(self._session, next(self._numbers))
        entry.begins(0.0 if gpu.away else LONG)
        try:
            yield
        finally:
            entry.ends()


class _Entry:
    """One message that runs user code; told like a cell, where it lasts."""

    def __init__(self, session: Session, number: int) -> None:
        self._session, self._number = session, number
        self._telling = threading.Lock()
        self._told = self._over = False
        self._timer: threading.Timer | None = None

    def begins(self, after: float) -> None:
        """Say so, at once or after so many seconds: its own thread may wait in the driver by then."""
        if not after:
            self._tell()
            return
        self._timer = threading.Timer(after, self._tell)
        self._timer.daemon = True
        self._timer.start()

    def ends(self) -> None:
        """It is over."""
        if self._timer is not None:
            self._timer.cancel()
        with self._telling:
            self._over = True
        if self._told:
            memory = self._session.memory
            try:
                memory.recent()
            finally:  # interrupted: nobody else would ever say so
                self._session.note(CellEnded(self._number, memory.known()))

    def _tell(self) -> None:
        with self._telling:
            if not self._over:
                self._told = True
                self._session.note(CellStarted(self._number))


def _is_cell(message: Any) -> bool:
    """Tell whether it is a request that cell events tell of anyway."""
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, dict) and content.get("silent") is False
