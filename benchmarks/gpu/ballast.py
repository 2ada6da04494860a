"""Holds GPU memory until a file is there: `ballast.py LEAVE STOP` leaves LEAVE bytes free. The driver alone, no framework.

Started with `jupyter gpushare run` it is a session: nobody parks it (there is no client of ours in it), and a restore can
hold it still like any other.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

LONGEST = 900.0
"""Seconds after which it ends by itself, should whoever measures be gone."""
STEP = 2 * 2**20
"""What the driver gives out at least."""


def main() -> None:
    """Take all but LEAVE bytes, say what is free and what was taken, and wait."""
    leave, stop = int(sys.argv[1]), Path(sys.argv[2])
    parent, until = os.getppid(), time.monotonic() + LONGEST
    cuda = ctypes.CDLL("libcuda.so.1")
    _connect(cuda)
    taken = _take(cuda, leave)
    print("ready", _free(cuda), taken, flush=True)
    while not stop.exists() and os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.1)


def excess(free: int, leave: int) -> int:
    """Return how many bytes to take so that `leave` are free, in steps of the driver's."""
    return max(0, free - leave) // STEP * STEP


def _connect(cuda: ctypes.CDLL) -> None:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(cuda.cuInit(0), "cuInit")
    _check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    _check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")


def _take(cuda: ctypes.CDLL, leave: int) -> int:
    """Take what is too much; the first piece may cost the driver some tables of its own, so look again."""
    taken = 0
    for _ in range(3):
        size = excess(_free(cuda), leave)
        if size:
            pointer = ctypes.c_uint64()
            _check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)), "cuMemAlloc")
            taken += size
    return taken


def _free(cuda: ctypes.CDLL) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
    return free.value


def _check(answer: int, what: str) -> None:
    if answer:
        msg = f"{what} answers {answer}"
        raise SystemExit(msg)


if __name__ == "__main__":
    main()
