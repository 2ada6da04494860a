"""A kernel's use of a bundle that its user shares: a connection to the broker, for as long as it lasts."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

from gpushare_kernel.client.calls import expect
from gpushare_kernel.client.link import agent
from gpushare_kernel.core.errors import BadFrame, UserError
from gpushare_kernel.transport.channel import connect, handshake, read_frame, send_frame
from gpushare_kernel.transport.fds import close_all
from gpushare_kernel.transport.frames import FrameBuffer
from gpushare_kernel.transport.peers import check_broker
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.codec import decode_from_broker, encode, error_from

_TIMEOUT = 90.0
"""Seconds: a holder may start meanwhile, and another kernel fill the pages."""
_VERSION = 2


class Lease:
    """One connection; closing it gives the use back."""

    def __init__(self, sock: socket.socket, name: str, size: int, fd: int) -> None:
        self._sock, self.name, self.size, self._fd = sock, name, size, fd

    @property
    def stands(self) -> bool:
        """Whether the broker still counts it."""
        looked = select.poll()
        looked.register(self._sock, select.POLLIN)
        return not looked.poll(0)  # the broker says nothing unasked: what is to be read is the end

    def take_fd(self) -> int:
        """Return the descriptor of the pages, which is the caller's from now on."""
        fd, self._fd = self._fd, -1
        return fd

    def filled(self) -> None:
        """Say that the pages are in their memory: others may map them."""
        send_frame(self._sock, encode(msg.ToBroker(msg.Kind.REQUEST, 1, msg.BundleFilled())))
        frame = decode_from_broker(read_frame(self._sock, FrameBuffer(msg.FROM_BROKER_LIMIT)))
        if isinstance(frame.body, msg.Failure):
            raise error_from(frame.body)
        expect(frame.body, msg.Ok)  # type: ignore[arg-type]

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give it back."""
        self._sock.close()
        fd = self.take_fd()
        if fd >= 0:
            os.close(fd)


def offered(name: str, size: int, *, fd: int = -1, pages: int = 0, shared: int = 0) -> Lease:
    """Have the broker keep pages: those in a sealed memfd `fd`, or of a GPU, where there is none.

    Raises
    ------
    UserError, Refused, DeviceError, BrokerUnavailable
        What the broker answers: a name that is taken, no room, no memory; or nobody is there.
    """
    body = msg.OfferBundle(_token(), name, size, pages, shared)
    return _lease(body, [] if fd < 0 else [fd])


def mapped(name: str) -> Lease:
    """Ask for pages that a kernel of this user shares; waits where they are being filled.

    Raises
    ------
    UserError, BrokerUnavailable
        Where there are none of that name on this device; or no broker.
    """
    return _lease(msg.MapBundle(_token(), name), [])


def _lease(body: msg.OfferBundle | msg.MapBundle, fds: list[int]) -> Lease:
    path = Path(os.environ["GPUSHARE_SOCKET"])
    sock = connect(path, _TIMEOUT)
    try:
        check_broker(sock, Places(path.parent, system=False, named=True))
        welcome, got = handshake(sock, msg.Hello((_VERSION,), agent(), body), fds)
    except BaseException:
        sock.close()
        raise
    if not isinstance(welcome.body, msg.BundleHeld) or len(got) != 1:
        sock.close()
        close_all(got)
        problem = f"a bundle is answered with its pages, and {type(welcome.body).__name__} with {len(got)} descriptors came."
        raise BadFrame(problem)
    return Lease(sock, welcome.body.name, welcome.body.size, got[0])


def _token() -> str:
    token = os.environ.get("GPUSHARE_TOKEN")
    if not token or "GPUSHARE_SOCKET" not in os.environ:
        problem = "a bundle is shared between notebooks of one broker, and this process is in none. Run it in a notebook, or start it with: jupyter gpushare run."
        raise UserError(problem)
    return token
