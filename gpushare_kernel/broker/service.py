"""Under a service manager: what it is told, and what it runs when a broker has ended.

`python -P -m gpushare_kernel.broker.service` is systemd's ExecStopPost: it resumes whoever is still on record as paused (I4). The
guardian has done so already, unless it was killed, too.
"""

from __future__ import annotations

import os
import socket
import sys

from gpushare_kernel.broker.left_over import lock, resume_left_over
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.transport.places import places

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


def main() -> int:
    """Resume whom a broker that has ended left paused; one that lives is left alone."""
    where = places()
    try:
        held = lock(where)
    except (BrokerUnavailable, OSError) as problem:
        sys.stderr.write(f"nobody is resumed: {problem}\n")
        return 0
    try:
        resumed = resume_left_over(where)
    finally:
        os.close(held)
    if resumed:
        pids = ", ".join(str(key.pid) for key in resumed)
        sys.stderr.write(f"resumed {len(resumed)} processes that were left paused: {pids}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
