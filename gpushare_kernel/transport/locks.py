"""The lock files of a broker: who holds start.lock starts one, who holds broker.lock is one. Loads next to nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from gpushare_kernel.core.errors import BrokerUnavailable

_LOCK_POLL = 0.01


@contextlib.contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock file at `path`.

    Raises
    ------
    BrokerUnavailable
        Where somebody else held it for all of `timeout` seconds, or the disk does not let it be opened.
    """
    fd = _opened(path, os.O_CREAT)
    try:
        _wait_for_lock(fd, path, timeout)
        yield
    finally:
        os.close(fd)


def free(path: Path) -> bool:
    """Say whether nobody holds the lock file at `path` now. `BrokerUnavailable` as in `locked`."""
    try:
        fd = _opened(path)
    except BrokerUnavailable as problem:
        if isinstance(problem.__cause__, FileNotFoundError):
            return True
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _opened(path: Path, flags: int = 0) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    except OSError as problem:
        msg = f"no gpushare broker can be started: the lock file {path} cannot be opened: {problem.strerror}."
        raise BrokerUnavailable(msg) from problem


def _wait_for_lock(fd: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    pace = threading.Event()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # flock has no timeout, and signals (which could end it) belong to the program we are a guest in.
            if time.monotonic() > deadline:
                msg = f"somebody else has been starting the gpushare broker for {timeout:g} s (lock {path}). Try again."
                raise BrokerUnavailable(msg) from None
            pace.wait(_LOCK_POLL)
        else:
            return
