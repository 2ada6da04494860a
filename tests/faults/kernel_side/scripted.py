"""A notebook's side of the scripted GPU (`tests/faults/scripted_gpu.py`): arrays that lie in files, and calls that wait as a real driver's do.

While the process is locked or checkpointed a call waits, without the GIL and deaf to an interrupt, which it sees afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import cupy  # the one of tests/client/frameworks

from gpushare_kernel.client.start import ensure_broker

PLACE = Path(os.environ["SCRIPTED_GPU"])
MiB = 2**20
CONTEXT = 520 * MiB
_blocks: dict[str, Any] = {}
# Where broker and guardian are gone this kernel starts the tests' broker, too.
ensure_broker.__kwdefaults__["command"] = tuple(os.environ["SCRIPTED_BROKER"].split())


def put(name: str, size: int, value: Any) -> None:
    """Allocate `size` MiB and put a value there."""
    _blocks[name] = cupy.empty(size * MiB)
    call()
    _data().write_text(json.dumps(_values() | {name: value}))
    _hold()


def get(name: str) -> Any:
    """Read what is there, as `.get()` of an array does."""
    call()
    return _values()[name]


def drop(name: str) -> None:
    """Free it, and give it back to the driver."""
    call()
    del _blocks[name]
    cupy.get_default_memory_pool().free_all_blocks()
    _data().write_text(json.dumps({k: v for k, v in _values().items() if k != name}))
    _hold()


def add(name: str, value: int) -> int:
    """Compute on the device: add to what is there."""
    call()
    values = _values()
    values[name] += value
    _data().write_text(json.dumps(values))
    return int(values[name])


def call() -> None:
    """Wait until the driver lets us in."""
    heard: list[tuple[int, Any]] = []
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *seen: heard.append(seen)) if main else None
    try:
        pause = 0.005
        while (state := _state()) not in {"running", "failed"}:
            time.sleep(pause)  # the driver's own wait: there is no event of it
            pause = min(0.1, 1.2 * pause)  # who waits long costs others little
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    if heard and callable(before):
        before(*heard[0])
    if state == "failed":
        msg = "CUDA_ERROR_ILLEGAL_ADDRESS: the context is lost"
        raise RuntimeError(msg)


def _state() -> str:
    file = PLACE / f"state.{os.getpid()}"
    return file.read_text() or "locked" if file.exists() else "running"


def _data() -> Path:
    return PLACE / f"data.{os.getpid()}"


def _values() -> dict[str, Any]:
    return dict(json.loads(_data().read_text())) if _data().exists() else {}


def _hold() -> None:
    """Say what NVML sees of us."""
    size = CONTEXT + sum(block.data.mem.size for block in _blocks.values())
    file = PLACE / f"held.{os.getpid()}"
    new = file.with_name(f"{file.name}.new")
    new.write_text(str(size))
    new.rename(file)


def clear() -> None:
    """Free all."""
    for name in [*_blocks]:
        drop(name)


def wait_for(name: str) -> None:
    """Be at work until the test says so in a file."""
    while not (PLACE / name).exists():
        call()
        time.sleep(0.005)
    (PLACE / name).unlink()
