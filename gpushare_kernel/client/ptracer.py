"""Letting the broker's lock workers at this process where the kernel asks for that.

The driver's lock needs the right to trace the target. With Yama's `ptrace_scope` at 1 that right goes to
ancestors only, unless the target names others. The workers are not our ancestors and their pids change, so
all processes that the ordinary rules permit (the same user, root) are named.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_RESTRICTED = "1"
_PR_SET_PTRACER = 0x59616D61
_ANYBODY = ctypes.c_ulong(-1)


def let_workers_in(scope: Path = SCOPE) -> bool:
    """Name everybody as a tracer of this process, where it matters. Returns whether that was done."""
    try:
        if scope.read_text(encoding="ascii").strip() != _RESTRICTED:
            return False
    except OSError:  # no Yama
        return False
    nothing = ctypes.c_ulong(0)
    done: int = _prctl(_PR_SET_PTRACER, _ANYBODY, nothing, nothing, nothing)
    return done == 0


_prctl = ctypes.CDLL(None).prctl
