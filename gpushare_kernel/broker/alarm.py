"""A timer of the loop that rings within 0.1 ms. The loop's own are up to 1 ms late: epoll waits whole milliseconds.

Windows of real-time jobs open by it: what it is late the others stand still for nothing, or a job waits.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_SECOND = 1_000_000_000
_COUNT = 8


class _Spec(ctypes.Structure):
    """`struct itimerspec`: every so often (never, here), and when first."""

    _fields_ = (("every", ctypes.c_long * 2), ("first", ctypes.c_long * 2))


_libc = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """Calls `rings(due)` when it is `due`, by a timerfd (Python has them from 3.13 on)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rings: Callable[[float], None]) -> None:
        self._loop, self._rings = loop, rings
        self._due: float | None = None
        self._fd = int(_libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS))
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        loop.add_reader(self._fd, self._ready)

    def set(self, due: float | None) -> None:
        """Ring at `due` (seconds, the loop's clock) and at no other time; None: not at all."""
        self._due = due
        if self._fd < 0:
            return
        at = 0 if due is None else max(1, round(due * _SECOND))  # 0 would disarm it
        spec = _Spec(first=(ctypes.c_long * 2)(*divmod(at, _SECOND)))
        _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(spec), None)

    def close(self) -> None:
        """Never ring again; a second time does nothing."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ready(self) -> None:
        try:
            os.read(self._fd, _COUNT)
        except BlockingIOError:
            return  # it was set anew since
        due, self._due = self._due, None
        if due is not None:
            self._rings(due)
