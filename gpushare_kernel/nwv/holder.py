"""The process that has a bundle's pages: `python -P -m gpushare_kernel.nwv.holder`, started by the broker.

Its standard input is a socket. One line in: `keep SIZE`, with a sealed memfd beside it, or `take SIZE`: memory of the
(one visible) GPU, made so that its descriptor can be given away (cuMemCreate, POSIX file descriptor). One line out: `ok`, with
that descriptor, or what was amiss. It has no context and maps nothing. When the socket ends, by the broker's will or its death, it ends,
and what nobody maps any more is free.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import Any

from gpushare_kernel.nwv import vmm
from gpushare_kernel.transport import fds as descriptors

_LINE = 200


def main() -> None:
    """Serve the socket that is our standard input."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(
            signum, signal.SIG_IGN
        )  # who ends a service's whole group ends us by the line
    with socket.socket(fileno=os.dup(0)) as line:
        serve(line)


def serve(line: socket.socket) -> None:
    """Answer one request, then wait for the end."""
    got: list[int] = []
    kept: list[Any] = []
    beside: list[int] = []
    words = descriptors.receive(line, _LINE, got).decode(errors="replace").split()
    match words:
        case ["keep", _] if len(got) == 1:
            kept += got
            answer = "ok"
        case ["take", size]:
            answer, beside = _taken(int(size), kept)
        case _:
            answer = f"not understood: {words}"
    with contextlib.suppress(ConnectionError):  # the broker went meanwhile
        descriptors.send(line, f"{answer[: _LINE - 1]}\n".encode(), beside)
    descriptors.close_all(beside)  # on its way: what is in a message stays open
    with contextlib.suppress(ConnectionError):
        while line.recv(_LINE):
            pass


def _taken(size: int, kept: list[Any]) -> tuple[str, list[int]]:
    try:
        handle, fd = vmm.created(size)
    except vmm.DriverError as problem:
        return str(problem), []
    kept.append(handle)
    return "ok", [fd]


if __name__ == "__main__":
    main()
    sys.exit(0)
