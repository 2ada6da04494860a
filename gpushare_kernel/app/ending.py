"""Ask a broker to stop, and wait until it, and whoever watches over it, is gone."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable

from gpushare_kernel import procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.transport.locks import locked
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.messages import Stop


def stop_broker(places: Places, patience: float) -> int:
    """Stop the broker at `places` and return its former pid.

    Raises
    ------
    BrokerUnavailable
        Where none answers, or it is still there after `patience` seconds.
    """
    with contextlib.ExitStack() as watched:
        with Line(places) as line:
            pid = line.pid
            watches = [_watch(one, watched) for one in (pid, *procfs.children(pid))]
            line.ask(Stop())
        deadline = time.monotonic() + patience
        if not _ended((fd for fd in watches if fd is not None), deadline):
            msg = f"the broker (pid {pid}) said it would stop, but is there after {patience:g} s. Its log: {places.log}"
            raise BrokerUnavailable(msg)
    with locked(places.broker_lock, max(0.1, deadline - time.monotonic())):
        return pid


def _watch(pid: int, until: contextlib.ExitStack) -> int | None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # gone already, or in another pid namespace: then its lock tells
        return None
    until.callback(os.close, fd)
    return fd


def _ended(pidfds: Iterable[int], deadline: float) -> bool:
    for fd in pidfds:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return False
    return True
