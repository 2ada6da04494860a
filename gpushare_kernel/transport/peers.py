"""Who is at the other end of a socket. The kernel says, no message does (I9)."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.transport.places import Places

_UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """A process and the user it ran as when it connected (or listened)."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return who is at the other end of a Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(credentials))


def check_broker(sock: socket.socket, places: Places) -> None:
    """Refuse a listener that is neither root nor ourselves: a planted socket would see what we send.

    Raises
    ------
    BrokerUnavailable
        Where somebody else listens at our broker's path.
    """
    uid, own = peer_of(sock).uid, os.geteuid()
    if uid not in (0, own):
        msg = (
            f"the broker at {places.socket} must run as root or as you (uid {own}), but runs as uid {uid}. "
            "Nothing was sent to it. Ask who started it, or set GPUSHARE_RUNTIME_DIR to a folder of yours."
        )
        raise BrokerUnavailable(msg)
