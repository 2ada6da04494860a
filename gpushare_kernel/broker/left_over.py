"""Who is the broker, and whom the one before left paused: the first thing that a broker does, before it loads the rest of itself (I4)."""

from __future__ import annotations

import fcntl
import os

from gpushare_kernel.broker.intents import IntentTable, resume_all
from gpushare_kernel.core.errors import BrokerUnavailable, GpushareError
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.transport.places import Places, places, prepare


def lock(where: Places) -> int:
    """Hold broker.lock for as long as this process lives: whoever holds it is the broker.

    Raises
    ------
    BrokerUnavailable
        Where another one lives, or the lock cannot be had: a disk that is full or read-only.
    """
    try:
        fd = os.open(where.broker_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)  # fmt: skip
    except OSError as problem:
        msg = f"no broker can start: {where.broker_lock} cannot be opened: {problem.strerror}. Make it writable for uid {os.getuid()}."
        raise BrokerUnavailable(msg) from problem
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        msg = f"a gpushare broker already runs in {where.runtime}: one per host. See: jupyter gpushare status."
        raise BrokerUnavailable(msg) from None
    return fd


def resume_left_over(where: Places) -> list[ProcessKey]:
    """Let those run whom a former broker left paused, where its guardian could not; the caller holds broker.lock."""
    table = IntentTable.open_existing(where.intents)
    if table is None:
        return []
    try:
        return resume_all(table)
    finally:
        table.close()


def resume_at_once() -> list[ProcessKey]:
    """Do so where nobody is the broker; what stands in the way of that is said by whoever starts next."""
    try:
        where = places()
        prepare(where)
        held = lock(where)
    except (GpushareError, OSError):
        return []
    try:
        return resume_left_over(where)
    finally:
        os.close(held)
