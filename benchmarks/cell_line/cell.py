"""A loop of steps of about a millisecond, and what other threads use meanwhile. Run in kernels as a cell."""

from __future__ import annotations

import time

import gpushare_kernel as gpushare

ROUND = 25_000
"""Rounds of pure Python: about a millisecond."""


def steps(number: int) -> tuple[float, float, float]:
    """Do steps in the open lane; return seconds, CPU seconds of this thread, and those of all other threads of the kernel."""
    wall, whole, own = time.perf_counter(), time.process_time(), time.thread_time()
    for _ in gpushare.current_lane().steps(range(number)):
        left = ROUND
        while left:
            left -= 1
    own = time.thread_time() - own
    return time.perf_counter() - wall, own, time.process_time() - whole - own
