"""Processes by descriptor. A pidfd names one process for ever; a pid in a message is never believed."""

from __future__ import annotations

import os
from pathlib import Path

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import BadFrame, NotYours
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.transport.peers import Peer


def open_pidfd(pid: int) -> int:
    """Return a new descriptor of the process `pid`; the caller closes it. `ProcessLookupError` where it is gone."""
    return os.pidfd_open(pid)


def open_key(key: ProcessKey) -> int | None:
    """Return a new descriptor of this very process, which the caller closes; None where it has ended."""
    try:
        pidfd = open_pidfd(key.pid)
    except OSError:
        return None
    if not procfs.alive(key):
        os.close(pidfd)
        return None
    return pidfd


def pid_of(pidfd: int) -> int:
    """Return the pid behind a descriptor that somebody passed to us.

    Raises
    ------
    BadFrame
        Where it is no pidfd, its process is gone, or it lives in a pid namespace we cannot see into.
    """
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii").splitlines()
    except OSError as problem:
        msg = f"a kernel's process comes as an open pidfd, but descriptor {pidfd} cannot be read: {problem.strerror}."
        raise BadFrame(msg) from problem
    pid = next((int(line.removeprefix("Pid:")) for line in lines if line.startswith("Pid:")), None)
    if pid is None:
        msg = "a kernel's process comes as a pidfd (os.pidfd_open), but another kind of descriptor was passed."
        raise BadFrame(msg)
    if pid <= 0:
        where = "has ended" if pid < 0 else "is in a pid namespace the broker cannot see"
        msg = f"a kernel's process must be alive where the broker runs, but the passed one {where}."
        raise BadFrame(msg)
    return pid


def check_owner(pidfd: int, peer: Peer) -> None:
    """Refuse a process that is not the peer's own: else one could have a neighbour's process paused (I9).

    Raises
    ------
    NotYours
        Where the process runs as another user than the peer, and the peer is not root.
    """
    pid = pid_of(pidfd)
    owner = procfs.owner(pid)
    pid_of(
        pidfd
    )  # still the same process: what was read in between is about this one, not about a reused pid
    if peer.uid not in (0, owner):
        msg = f"a session's process must run as the user who opened the session (uid {peer.uid}), but it runs as uid {owner}."
        raise NotYours(msg)
