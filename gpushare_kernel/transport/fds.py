"""Bytes with descriptors beside them (SCM_RIGHTS), on a raw Unix socket."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterable, Sequence

_MOST = 4


def receive(sock: socket.socket, size: int, fds: list[int], most: int = _MOST) -> bytes:
    """Receive at most `size` bytes; descriptors that came beside them are added to `fds`, closed on exec.

    The kernel drops those beyond `most`. Whoever owns `fds` closes what it does not want.
    """
    space = socket.CMSG_LEN(most * array("i").itemsize) if most else 0
    data, beside, _, _ = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            got = array("i")
            got.frombytes(content[: len(content) - len(content) % got.itemsize])
            fds.extend(got)
    return data


def send(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """Send what the socket takes of `data`, with `fds` beside the first byte; return how much it took."""
    if not fds:
        return sock.send(data, socket.MSG_NOSIGNAL)
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
    return sock.sendmsg([data], beside, socket.MSG_NOSIGNAL)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors nobody wants."""
    for fd in fds:
        os.close(fd)
