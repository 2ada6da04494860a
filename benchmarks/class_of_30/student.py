"""What a student's notebook does on the GPU of `gpu.py`: work in pieces, and a value that is kept there.

Imported by the kernels, beside `scripted` (`tests/faults/kernel_side`) and its small cupy.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from pathlib import Path
from typing import Any

import scripted  # the one of tests/faults/kernel_side

MiB = 2**20
PIECE = 0.01
"""Seconds of the device that one call takes."""
LOOK = 0.004
"""Seconds between two looks of who waits for the driver."""
CONTEXT, TOTAL = int(os.environ["CLASS_CONTEXT"]), int(os.environ["CLASS_TOTAL"])
NUMBER = int(os.environ["JPY_SESSION_NAME"].rpartition("-")[2].partition(".")[0])
scripted.CONTEXT = CONTEXT
_MINE = Path(scripted.PLACE, f"held.{os.getpid()}")
_STATE, _WANTED = (f"{scripted.PLACE}/{name}.{os.getpid()}" for name in ("state", "wanted"))
_calls = os.open(scripted.PLACE / f"calls.{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o644)
with Path(scripted.PLACE, "busy").open("r+b") as _file:
    _words = memoryview(mmap.mmap(_file.fileno(), 0)).cast("Q")
_worked, _at_work, _pids = (
    _words[n * len(_words) // 3 : (n + 1) * len(_words) // 3] for n in range(3)
)
_pids[NUMBER] = os.getpid()


def first(seconds: float) -> float:
    """Use the GPU for the first time: some of the work, something that is kept, the rest of the work. Return when it began."""
    began = time.monotonic()
    _take("context", 0)
    work(seconds / 2)
    _take("mine", 8)
    _on_gpu(lambda: scripted._data().write_text(f'{{"mine": {NUMBER}}}'))
    _take("activations", 32)
    work(seconds / 2)
    scripted.drop("activations")
    return began


def again(seconds: float) -> int:
    """Work once more, and return what is kept there, one more than it was."""
    work(seconds)
    return int(_on_gpu(lambda: scripted.add("mine", 1)))


def work(seconds: float) -> None:
    """Have so much of the device's time."""
    for _ in range(round(seconds / PIECE)):
        _on_gpu(_piece)


def work_until(end: float) -> None:
    """Want the device until then, by the monotonic clock."""
    while time.monotonic() < end:
        _on_gpu(_piece)


def _piece() -> None:
    """A kernel on the device, which divides its time among those who have one there."""
    _at_work[NUMBER], left = 1, PIECE
    try:
        while left > 0:
            together = sum(_at_work)
            began = time.monotonic_ns()
            time.sleep(PIECE)  # the device works
            _worked[NUMBER] += (time.monotonic_ns() - began) // together
            left -= PIECE / together
    finally:
        _at_work[NUMBER] = 0


def _on_gpu(call: Any) -> Any:
    """Do something there: whoever locks us waits for its end, and nothing new begins meanwhile."""
    while True:
        while _must_wait():
            time.sleep(LOOK)  # the driver's own wait: there is no event of it
        fcntl.flock(_calls, fcntl.LOCK_EX)
        try:
            if not _must_wait():
                return call()
        finally:
            fcntl.flock(_calls, fcntl.LOCK_UN)


def _must_wait() -> bool:
    """Whether we are locked or parked, or are about to be; 25 of us ask all the time, so it costs little."""
    try:
        fd = os.open(_STATE, os.O_RDONLY)
    except FileNotFoundError:
        return os.path.exists(_WANTED)  # noqa: PTH110 - ten times as quick
    try:
        state = os.read(fd, 16)
    finally:
        os.close(fd)
    if state == b"failed":
        scripted.call()  # which says so
    return state != b"running" or os.path.exists(_WANTED)  # noqa: PTH110


def _take(name: str, size: int) -> None:
    """Allocate, where there is room: of several who come at once the last one finds out."""
    block = scripted.cupy.empty(size * MiB)
    with Path(scripted.PLACE, "memory").open("a") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        others = sum(_size(file) for file in scripted.PLACE.glob("held.*[0-9]") if file != _MINE)
        mine = CONTEXT + block.data.mem.size
        mine += sum(one.data.mem.size for one in scripted._blocks.values())
        if others + mine > TOTAL:
            msg = f"others have {others} of {TOTAL} bytes, and {mine} are wanted"
            raise scripted.cupy.OutOfMemoryError(msg)
        scripted._blocks[name] = block
        scripted._hold()


def _size(file: Path) -> int:
    state = file.with_name(f"state{file.suffix}")
    away = state.exists() and state.read_text() == "checkpointed"
    return 0 if away else int(file.read_text() or 0)
