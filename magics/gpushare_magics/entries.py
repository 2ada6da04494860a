"""Where a front end enters user code beside cells: silent executions and comm messages (widget callbacks).

While a notebook's GPU memory is set aside, a call to the GPU waits for it. A cell asks for it as it begins; these are no
cells, so they ask here, and what they asked for lapses when they are over.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from typing import TYPE_CHECKING, Any

from gpushare_kernel.client.shown import CellEnded, CellStarted

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session

_TYPES = ("execute_request", "comm_open", "comm_msg", "comm_close")
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
            with self._open():
                return await handler(*arguments, **named)

        @wraps(handler)
        def asking(*arguments: Any, **named: Any) -> Any:
            with self._open():
                return handler(*arguments, **named)

        return awaiting if inspect.iscoroutinefunction(handler) else asking

    @contextmanager
    def _open(self) -> Iterator[None]:
        gpu = self._session.gpu
        if gpu is None or not gpu.away:
            yield
            return
        number = next(self._numbers)
        self._session.note(CellStarted(number))
        try:
            yield
        finally:
            self._session.note(CellEnded(number, 0))
