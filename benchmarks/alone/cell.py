"""The cell that runs alone: hashing (without the GIL) and plain Python (with it), in turns. Run in kernels as a cell."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

BLOCK = bytes(2**20)


def alone(seconds: float) -> float:
    """Return the rounds a second of one thread that has the machine for itself."""
    done, start = 0, time.monotonic()
    end = start + seconds
    while time.monotonic() < end:
        hashlib.sha256(BLOCK)
        sum(n * n for n in range(5_000))
        done += 1
    return done / (time.monotonic() - start)


def ours() -> dict[str, float]:
    """Return the CPU seconds of each gpushare thread in this process, as the kernel's scheduler counts them (ns)."""
    return {
        thread.name: int(
            Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]
        )
        / 1e9
        for thread in threading.enumerate()
        if thread.name.startswith("gpushare")
    }
