"""Descriptors that somebody else passed to us. Closing one may wait for whoever passed it, so it is not done on the loop.

A file on a FUSE mount of theirs is flushed at each close, and that ends when they say so. What the kernel drops itself,
because there is no room for it beside a message, is not flushed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
from collections.abc import Iterable
from pathlib import Path

MOST = 1
"""Descriptors that a hello may bring."""
MOST_CLOSING = 4
"""Closes of one user's that wait at once; while there are so many, nothing of theirs is taken."""


class Strange:
    """Those of one user."""

    def __init__(self) -> None:
        self._closing = 0

    @property
    def most(self) -> int:
        """How many are taken beside a hello now."""
        return 0 if self._closing >= MOST_CLOSING else MOST

    def close(self, fds: Iterable[int]) -> None:
        """Close them, and wait for nobody."""
        for fd in fds:
            if _closes_at_once(fd):
                os.close(fd)
                continue
            self._closing += 1
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._wait, args=(fd, loop), daemon=True).start()

    def _wait(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(OSError):
            os.close(fd)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._closed)

    def _closed(self) -> None:
        self._closing -= 1


def _closes_at_once(fd: int) -> bool:
    """Tell whether it is of a kind that we are passed: a memfd or a pidfd. Nobody is asked but the kernel."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        with contextlib.suppress(OSError):
            return "\nPid:" in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
        return False
    return True
