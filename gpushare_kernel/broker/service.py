"""Under a service manager: what it is told, and what it runs when a broker has ended.

`python -P -m gpushare_kernel.broker.service` is systemd's ExecStopPost: it resumes whoever is still on record as paused (I4). The
guardian has done so already, unless it was killed, too.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

from gpushare_kernel.broker.intents import IntentTable, resume_all
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.transport.places import Places, places

_SOCKET = "NOTIFY_SOCKET"


def tell(state: str) -> None:
    """Tell systemd (sd_notify) how we are; where nobody asked for that, or listens any more, nobody is told."""
    address = os.environ.get(_SOCKET, "")
    if address[:1] not in {"/", "@"}:
        return
    path = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.sendto(state.encode(), path)
        except OSError as problem:
            sys.stderr.write(f"systemd was not told {state}: {problem}\n")


def broker_lock(where: Places) -> int:
    """Hold broker.lock for as long as this process lives: whoever holds it is the broker.

    Raises
    ------
    BrokerUnavailable
        Where another one lives.
    """
    fd = os.open(where.broker_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        msg = f"a gpushare broker already runs in {where.runtime}: one per host. See: jupyter gpushare status."
        raise BrokerUnavailable(msg) from None
    return fd


def main() -> int:
    """Resume whom a broker that has ended left paused; one that lives is left alone."""
    where = places()
    try:
        lock = broker_lock(where)
    except (BrokerUnavailable, OSError) as problem:
        sys.stderr.write(f"nobody is resumed: {problem}\n")
        return 0
    try:
        table = IntentTable.open_existing(where.intents)
        if table is None:
            return 0
        resumed = resume_all(table)
        table.close()
    finally:
        os.close(lock)
    if resumed:
        pids = ", ".join(str(key.pid) for key in resumed)
        sys.stderr.write(f"resumed {len(resumed)} processes that were left paused: {pids}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
