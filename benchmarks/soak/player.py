"""What runs in every notebook of the soak: it keeps a secret and a count, on its device and in Python, and works.

Imported by real kernels and by the light ones of `kernel.py`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpushare_kernel import procfs
from gpushare_kernel.client import api

ON_GPU = os.environ["GPUSHARE_DEVICE"] != "host"
if ON_GPU:
    import scripted  # the one of tests/faults/kernel_side
else:
    from gpushare_kernel.client.start import ensure_broker

    ensure_broker.__kwdefaults__["command"] = tuple(os.environ["SCRIPTED_BROKER"].split())
faulthandler.register(signal.SIGUSR1, file=sys.__stderr__)
SPIN = 0.005
"""Seconds that a round takes: of the CPU where that is the device, else of waiting for the GPU."""
_secret, _count = "", 0


def begin(secret: str) -> dict[str, Any]:
    """Keep a secret from now on."""
    global _secret, _count
    _secret, _count = secret, 0
    if ON_GPU:
        for name in ("state", "data", "stowed", "held", "calls"):  # of one who had our pid before
            (scripted.PLACE / f"{name}.{os.getpid()}").unlink(missing_ok=True)
        with api.lane("64MiB", "16MiB"):
            _put("secret", secret)
            _put("count", 0)
    return look()


def look() -> dict[str, Any]:
    """Return what is kept, here and there."""
    there = _on_gpu(scripted._values) if ON_GPU else {"secret": _secret, "count": _count}
    return {
        "secret": _secret,
        "count": _count,
        "there": [there.get("secret"), there.get("count")],
        "fds": len([*Path("/proc/self/fd").iterdir()]) - 1,
        "threads": threading.active_count(),
        "refused": str(_refusal() or ""),
    }


def _refusal() -> object:
    session = api.get_session()
    return None if session is None else session.refusal


def cell(rounds: int, *, steps: bool) -> dict[str, Any]:
    """Work in a lane, with boundaries or without."""
    with api.lane("64MiB", "32MiB") as lane:
        for _ in range(rounds):
            once()
            if steps:
                lane.step()
    return look()


def plain(rounds: int) -> dict[str, Any]:
    """Work and declare nothing."""
    for _ in range(rounds):
        once()
    return look()


def forks(number: int) -> dict[str, Any]:
    """Have many children at once, of both kinds, while working."""
    with api.lane("64MiB", "32MiB"):
        children = [subprocess.Popen(["/bin/sleep", "0.2"]) for _ in range(number)]
        forked = []
        for _ in range(number):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            forked.append(pid)
        once()
        for pid in forked:
            os.waitpid(pid, 0)
        for child in children:
            child.wait()
    return look()


def once() -> None:
    """Count one further, here and there: both or neither, whoever interrupts."""
    if ON_GPU:
        time.sleep(SPIN)  # work on a GPU costs no core
    else:
        end = time.thread_time() + SPIN
        while time.thread_time() < end:
            pass
    _undisturbed(_add)


def _add() -> None:
    global _count  # noqa: PLW0603
    if ON_GPU:
        _under_way(lambda: scripted.add("count", 1))
    _count += 1


def _put(name: str, value: object) -> None:
    """Allocate, which may wait for memory, then write, which whoever locks us waits for."""
    block = scripted.cupy.empty(32 * scripted.MiB)

    def write() -> None:
        with Path(scripted.PLACE, "allocates").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # a restore holds it, too
            size = block.data.mem.size + (0 if scripted._blocks else scripted.CONTEXT)
            if size > _free():
                msg = "out of memory: the GPU in files has no room, and nobody was asked for it"
                raise scripted.cupy.OutOfMemoryError(msg)
            scripted._blocks[name] = block
            scripted._data().write_text(json.dumps(scripted._values() | {name: value}))
            scripted._hold()

    _on_gpu(write)


def _free() -> int:
    """Return what the GPU has left, by what everybody who lives says they hold."""
    free = int((scripted.PLACE / "total").read_text())
    for held in scripted.PLACE.glob("held.*[0-9]"):
        pid = int(held.suffix[1:])
        with contextlib.suppress(FileNotFoundError):
            state = scripted.PLACE / f"state.{pid}"
            away = state.exists() and state.read_text() in {"checkpointed", "failed"}
            if procfs.state(pid) not in {None, *procfs.ENDED} and not away:
                free -= int(held.read_text() or 0)
    return free


def _on_gpu(work: Callable[[], Any]) -> Any:
    return _undisturbed(lambda: _under_way(work))


def _under_way(work: Callable[[], Any]) -> Any:
    """Do something on the GPU: whoever locks us waits for its end."""
    with Path(scripted.PLACE, f"calls.{os.getpid()}").open("a") as calls:
        while True:
            scripted.call()
            fcntl.flock(calls, fcntl.LOCK_EX)
            if scripted._state() == "running":
                return work()
            fcntl.flock(calls, fcntl.LOCK_UN)


def _undisturbed(work: Callable[[], Any]) -> Any:
    """Do something whole; an interrupt is heard after it."""
    heard: list[Any] = []
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *seen: heard.append(seen)) if main else None
    try:
        done = work()
    finally:
        if main:
            with contextlib.suppress(TypeError):
                signal.signal(signal.SIGINT, before)
    if heard and callable(before):
        before(*heard[0])
    return done
