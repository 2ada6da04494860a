"""The threads of a kernel that may live on while memory is away: by identity, or by exact type and function."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import MethodType
from typing import Any

_TYPES = (
    ("ipykernel.heartbeat", "Heartbeat"),
    ("ipykernel.parentpoller", "ParentPollerUnix"),
    ("IPython.core.history", "HistorySavingThread"),
    ("zmq.utils.garbage", "GarbageCollectorThread"),
    ("tqdm._monitor", "TMonitor"),
)
_TARGETS = (
    ("ipykernel.iostream", "IOPubThread", "_thread_main"),
    ("ipykernel.iostream", "OutStream", "_watch_pipe_fd"),
    ("gpushare_kernel.client.link", "Link", "_run"),
    ("torch._inductor.compile_worker.subproc_pool", "SubprocPool", "_read_thread"),
    ("torch._inductor.compile_worker.timer", "Timer", "check"),
)


def reasons(kernel: Any) -> Iterator[str]:
    """Yield a sentence for each thread that is not known."""
    known = {id(threading.main_thread()), *map(id, _of_kernel(kernel))}
    idents = {threading.get_ident()}
    for thread in threading.enumerate():
        idents.add(thread.ident or 0)
        if id(thread) not in known and not _is_known(thread):
            yield f"the thread {thread.name} lives"
    if sys._current_frames().keys() - idents:
        yield "a thread lives that was not started by Python's threading"


def subshells(kernel: Any) -> list[Any]:
    """Return the threads of a kernel's subshells."""
    channel = getattr(kernel, "shell_channel_thread", None)
    manager = None if channel is None else getattr(channel, "_manager", None)
    return [] if manager is None else [*manager._cache.values()]


def _of_kernel(kernel: Any) -> Iterator[Any]:
    yield getattr(kernel, "control_thread", None)
    yield getattr(kernel, "shell_channel_thread", None)
    yield from subshells(kernel)


def _is_known(thread: threading.Thread) -> bool:
    if any(type(thread) is _member(module, name) for module, name in _TYPES):
        return True
    target = getattr(thread, "_target", None)
    if type(thread) is not threading.Thread or type(target) is not MethodType:
        return False
    return any(
        target.__func__ is vars(_member(module, name) or object).get(method)
        for module, name, method in _TARGETS
    )


def _member(module: str, name: str) -> type | None:
    found = vars(sys.modules.get(module) or object).get(name)
    return found if isinstance(found, type) else None
