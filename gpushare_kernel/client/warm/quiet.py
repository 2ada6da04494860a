"""Is this kernel provably quiet? Nothing of the user's may run, now or by itself later, while memory is away (W5).

What is not known to be harmless is not quiet: the list is of what may be there, not of what may not.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gpushare_kernel.client.warm import graphs, loops, threads
from gpushare_kernel.client.warm.known import Known

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_TOOLS = range(6)


class Quiet:
    """Looks for whatever could run.

    Parameters
    ----------
    kernel
        ipykernel's kernel.
    running
        Whether a cell runs, as far as the front end's events tell.
    """

    def __init__(self, kernel: Any, running: Callable[[], bool]) -> None:
        self._kernel, self._running = kernel, running

    def why_not(self, torch: Any) -> str:
        """Return why not, in plain words; nothing where it is quiet. On the main thread, in no cell."""
        try:
            return next(self._reasons(torch), "")
        except Exception as problem:  # noqa: BLE001 - a version that has other parts: then nobody knows
            return f"it cannot be seen here what runs ({type(problem).__name__}: {problem})"

    def _reasons(self, torch: Any) -> Iterator[str]:
        if threading.current_thread() is not threading.main_thread():
            yield "this is not the kernel's main thread"
        yield from self._cells()
        known = Known(self._kernel)
        yield from threads.reasons(self._kernel)
        yield from loops.reasons(self._kernel, known)
        yield from _signals(known)
        yield from _watchers()
        yield from _children()
        yield from of_torch(torch)

    def _cells(self) -> Iterator[str]:
        kernel = self._kernel
        if self._running() or any(lock.locked() for lock in _locks(kernel)):
            yield "a cell, or a widget's callback, runs"
        if getattr(kernel, "eventloop", None) is not None:
            yield "an event loop of a window system runs (%gui)"


def _locks(kernel: Any) -> Iterator[Any]:
    """Yield what is locked while a message is handled (ipykernel 7; before, cells and tasks tell)."""
    lock = getattr(kernel, "_main_asyncio_lock", None)
    if lock is not None:
        yield lock
    for subshell in threads.subshells(kernel):
        yield subshell.asyncio_lock


def _signals(known: Known) -> Iterator[str]:
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and handler is not signal.default_int_handler and not known.is_ours(handler):  # fmt: skip
            yield f"a handler of signal {number} is set"
    if any(any(signal.getitimer(timer)) for timer in _TIMERS):
        yield "a timer of the system is set (signal.setitimer)"


def _watchers() -> Iterator[str]:
    """What is called by Python itself, whoever runs."""
    if sys.gettrace() or sys.getprofile() or threading.gettrace() or threading.getprofile():
        yield "a debugger or a profiler of Python is active"
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is not None and any(monitoring.get_tool(tool) for tool in _TOOLS):
        yield "a debugger or a profiler of Python is active"


def _children() -> Iterator[str]:
    processes: Any = sys.modules.get("multiprocessing.process")
    children = [] if processes is None else [*processes._children]
    if any(child.is_alive() for child in children):
        yield "processes of multiprocessing live (a DataLoader's workers, for example)"


def of_torch(torch: Any) -> Iterator[str]:
    """Yield why torch itself is not at rest."""
    c = torch._C
    if c._autograd._profiler_enabled():
        yield "torch's profiler is active"
    if c._len_torch_dispatch_stack() or c._len_torch_function_stack() > _default_modes(torch):
        yield "a mode of torch is active that sees every call"
    distributed = getattr(torch, "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        yield "torch.distributed is in use"
    if torch.cuda.is_initialized():
        yield from _of_cuda(torch.cuda)
    if graphs.any_alive(torch):
        yield "CUDA graphs were captured: they know the addresses of what they use"


def _default_modes(torch: Any) -> int:
    """Return how many modes `torch.set_default_device` has set: it sees calls that make tensors, and we make none by them."""
    device = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
    return 0 if device is None else 1


def _of_cuda(cuda: Any) -> Iterator[str]:
    if cuda.memory.get_allocator_backend() != "native":
        yield "torch's memory is not allocated by its own caching allocator"
    for device in range(cuda.device_count()):
        stream = cuda.current_stream(device)
        if stream != cuda.default_stream(device):
            yield "the current stream is not the default one"
        if not stream.query():
            yield "work that was launched still runs on the GPU"
