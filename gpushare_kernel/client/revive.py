"""A broker that is gone and does not come back: whoever asks for something next starts another (I4).

Its guardian is faster where it lives. Where both were killed, a new broker resumes what they left
standing, so a kernel that runs must not just wait for it.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from gpushare_kernel.client.start import start_again
from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.transport.locks import free
from gpushare_kernel.transport.places import Places, may_revive, places

_starting: threading.Thread | None = None


def revive(socket: Path) -> None:
    """Start a broker at `socket` in the background, where it is this user's to start and was not stopped on purpose."""
    global _starting  # noqa: PLW0603 - one at a time in a process
    where = places()
    if where.socket != socket or not may_revive(where):
        return
    try:
        if not free(where.start_lock):
            return  # somebody starts it
    except GpushareError:
        return  # on a read-only disk nobody can
    if _starting is None or not _starting.is_alive():
        _starting = threading.Thread(
            target=_start, args=(where,), name="gpushare-revive", daemon=True
        )
        _starting.start()


def _start(where: Places) -> None:
    with contextlib.suppress(GpushareError):  # whoever waits is told that no broker answers
        start_again(where)
