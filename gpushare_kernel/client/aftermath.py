"""After a cell that failed on the GPU: give memory back, and say in one line what happened and what to do.

A notebook keeps the last error, the error its traceback, the traceback every frame, and the frames the
tensors that were too much: run again with a smaller batch, and it fails again. So the frames of the error
are cleared once it has been shown (unless the user wants them for %debug), and then the pools are trimmed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import GetSnapshot, SnapshotReply

if TYPE_CHECKING:
    from gpushare_kernel.client.adapters.base import Adapter
    from gpushare_kernel.client.gpu import Gpu
    from gpushare_kernel.client.session import Session

KEEP_FRAMES = "GPUSHARE_KEEP_FRAMES"
_SNAPSHOT = 1.0
_FRAMEWORKS = {"cupy_backends": "cupy", "jaxlib": "jax"}
_OWN_ERRORS = {"OutOfMemoryError", "XlaRuntimeError", "JaxRuntimeError"}
_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "RESOURCE_EXHAUSTED",
)
_BROKEN = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "invalid program counter",
    "hardware stack error",
    "uncorrectable ECC error",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_LAUNCH_FAILED",
)
"""What a context does not survive. Other CUDA errors (an invalid argument, a missing kernel image) it does."""
_SIZE = r"([\d.,]+)\s*(bytes|[KMGT]iB)"
_ASKED = re.compile(rf"allocat(?:e|ing) {_SIZE}")
_HELD = re.compile(rf"(?:Of the allocated memory|allocated so far:) {_SIZE}")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class OutOfMemory:
    """An allocation that failed: what was asked for, and what was in use, where the message says so (0: it does not)."""

    framework: str
    asked: int
    held: int


class Broken:
    """A context that is lost."""


def recognise(error: BaseException) -> OutOfMemory | Broken | None:
    """Return what an error means for the GPU; None where it is about something else."""
    at: BaseException | None = error
    seen: set[int] = set()  # `raise e from e` is its own cause
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        text, kind = _text(at), type(at)
        root = kind.__module__.partition(".")[0]
        framework = _FRAMEWORKS.get(root, root)
        cuda = "CUDA" in text or "cuda" in text or framework in ("torch", "cupy", "jax")
        if kind.__name__ == "OutOfMemoryError" and framework in ("torch", "cupy"):
            return _out_of_memory(framework, text)
        if isinstance(at, RuntimeError) or kind.__name__ in _OWN_ERRORS or framework == "cupy":
            if any(phrase in text for phrase in _OUT_OF_MEMORY):
                return _out_of_memory(framework if framework != "builtins" else "torch", text)
            if cuda and any(phrase in text for phrase in _BROKEN):
                return Broken()
        at = at.__cause__
    return None


def _text(error: BaseException) -> str:
    """Return what an error says; nothing where its class, the user's own, fails to say it."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it is code of anybody's
        return ""


def _out_of_memory(framework: str, text: str) -> OutOfMemory:
    return OutOfMemory(framework, _bytes(_ASKED, text), _bytes(_HELD, text))


def _bytes(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    if found is None:
        return 0
    with contextlib.suppress(ValueError):
        return int(float(found[1].replace(",", "")) * _UNITS[found[2]])
    return 0


def recover(session: Session, error: BaseException, *, keep_frames: bool = False) -> str | None:
    """Give back what a failed cell left behind; returns the line to show last, or None where it is not about the GPU.

    Called on the user's thread, after the error was shown.
    """
    gpu = session.gpu
    meaning = None if gpu is None else recognise(error)
    if gpu is None or meaning is None:
        return None
    if isinstance(meaning, Broken):
        gpu.broken = gpu.broken or _lost(gpu)
        return texts.BROKEN_SESSION if gpu.broken else None
    peak = gpu.memory.peak()
    if not (keep_frames or os.environ.get(KEEP_FRAMES) == "1"):
        clear_frames(error)
    returned = gpu.give_back()
    return _line(session, gpu, meaning, (meaning.held or peak) + meaning.asked, returned)


def _lost(gpu: Gpu) -> bool:
    """Say whether this process's own context is lost: then every call says so. A worker's error is raised again here, too, and is about the worker's.

    Where no framework can be asked (all are switched off, or JAX alone is used) the error is believed.
    """
    if not gpu.adapters.active:
        return True
    here = gpu.memory.in_use()
    able = [adapter for adapter in here if adapter.settles]
    return any(map(_says_so, able)) if able else bool(here)


def _says_so(adapter: Adapter) -> bool:
    try:
        adapter.settle()
    except Exception as problem:  # noqa: BLE001 - frameworks raise what they like
        return isinstance(recognise(problem), Broken)
    return False


def clear_frames(error: BaseException) -> None:
    """Let go of what the frames of an error keep alive, those of its causes included. What runs keeps its frame."""
    for one in errors_of(error):
        trace = one.__traceback__
        while trace is not None:
            with contextlib.suppress(RuntimeError):  # it runs
                trace.tb_frame.clear()
                # Until Python 3.12 whoever looked at the locals (to show the traceback) left a copy in the
                # frame, and looking again takes out of it what is gone.
                _ = trace.tb_frame.f_locals
            trace = trace.tb_next


def errors_of(error: BaseException) -> Iterator[BaseException]:
    """Return an error, its causes, what it came up beside, and what a group of them consists of; each once."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions


def _line(session: Session, gpu: Gpu, failed: OutOfMemory, needed: int, returned: int) -> str:
    room = max(0, gpu.capacity - gpu.reserve)
    size = texts.oom_size(needed, room) if needed < room else ""
    fixed = gpu.fixed(failed.framework)
    if fixed is not None and size:
        return texts.oom_restart_text(fixed.limit(), needed, f"%gpushare memory {size}")
    line = f"%%gpulane {size}" if size else ""
    if gpu.limit is not None and needed > gpu.limit:
        return texts.oom_text(gpu.limit, needed, returned, line)
    # No cap of ours was in the way: the device itself is full.
    others = _others_hold(session, gpu.reserve)
    return texts.oom_text(None, needed, returned, line, others=others)


def _others_hold(session: Session, context: int) -> int:
    """Return what others hold of the device, as far as the broker tells us; 0 where it does not."""
    attached = session.attached
    with contextlib.suppress(GpushareError):
        if attached is not None and session.up:
            snapshot = session.request(GetSnapshot(), SnapshotReply, _SNAPSHOT).snapshot
            own = next((one for one in snapshot.sessions if one.id == attached.session), None)
            device = next((one for one in snapshot.devices if one.id == attached.device), None)
            if own is not None and own.p is not None and device is not None:
                lanes = sum(lane.size for lane in device.lanes if lane.occupant in own.jobs)
                return max(0, device.capacity - device.free - own.p - lanes - context)
    return 0
