"""The kernel's event loops: tasks, timers and sockets that are not its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from gpushare_kernel.client.warm.known import Known
from gpushare_kernel.client.warm.threads import subshells

_UNREADABLE = "the kernel's event loop is of a kind that cannot be looked into"
_PARTS = ("_scheduled", "_ready", "_selector", "_signal_handlers")


def reasons(kernel: Any, known: Known) -> Iterator[str]:
    """Yield a sentence for whatever waits in a loop to run code of the user's."""
    for io_loop in (kernel.io_loop, *(thread.io_loop for thread in subshells(kernel))):
        loop = getattr(io_loop, "asyncio_loop", None)
        if loop is None or not all(hasattr(loop, part) for part in _PARTS):
            yield _UNREADABLE
            continue
        yield from _tasks(loop, known)
        yield from _timers(loop, known)
        yield from _sockets(io_loop, loop, known)


def _tasks(loop: Any, known: Known) -> Iterator[str]:
    for task in asyncio.all_tasks(loop):
        code = getattr(task.get_coro(), "cr_code", None)
        if code is None or not known.is_file(code.co_filename, loop=False):
            yield f"the asyncio task {task.get_name()} has not ended"


def _timers(loop: Any, known: Known) -> Iterator[str]:
    for handle in (*loop._scheduled, *loop._ready):
        if not handle.cancelled() and not _is_ours(handle, known):
            yield f"a timer or a callback of asyncio is pending: {_name(handle._callback)}"
    if loop._signal_handlers:
        yield "a signal handler of asyncio is set"


def _sockets(io_loop: Any, loop: Any, known: Known) -> Iterator[str]:
    for _, handler in [*io_loop.handlers.values()]:
        if not known.is_ours(handler):
            yield f"something is connected to the kernel's event loop: {_name(handler)}"
    for key in [*loop._selector.get_map().values()]:
        if any(handle is not None and not _is_ours(handle, known) for handle in key.data or ()):
            yield "something is connected to the kernel's event loop"


def _is_ours(handle: Any, known: Known) -> bool:
    values = [one for one in handle._args or () if callable(one)]
    return all(known.is_ours(one) for one in (handle._callback, *values))


def _name(call: Any) -> str:
    inner = getattr(call, "func", call)
    return str(getattr(inner, "__qualname__", type(inner).__name__))
