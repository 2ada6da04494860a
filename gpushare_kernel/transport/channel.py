"""The blocking side of a connection, for the client in a kernel, the provisioner and the command line."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from gpushare_kernel.core.errors import BrokerUnavailable, NoBroker, VersionMismatch
from gpushare_kernel.transport import fds as descriptors
from gpushare_kernel.transport.frames import HEADER, FrameBuffer, check_length, pack
from gpushare_kernel.transport.places import check_socket_path
from gpushare_kernel.wire.codec import decode_welcome, encode, error_from
from gpushare_kernel.wire.messages import (
    FROM_BROKER_LIMIT,
    SPOKEN,
    TO_BROKER_LIMIT,
    Failure,
    Hello,
    Welcome,
)

_CHUNK = 64 * 2**10
_TIMEVAL = struct.Struct("@ll")


def connect(path: Path, timeout: float) -> socket.socket:
    """Return a socket connected to the broker at `path`.

    Parameters
    ----------
    path
        The broker's socket.
    timeout
        Seconds to wait for a place in its queue. It stays the socket's timeout:
        `settimeout(None)` after the handshake, where reads may take for ever.

    Raises
    ------
    NoBroker
        Where nobody listens.
    BrokerUnavailable
        Where the broker does not take the connection (in time), or may not be asked.
    """
    check_socket_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A socket with a Python timeout is non-blocking, and a full queue then fails at once (EAGAIN);
        # with the kernel's own send timeout it waits for its place.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout))
        sock.connect(str(path))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0))
        sock.settimeout(timeout)
    except OSError as problem:
        sock.close()
        raise _not_connected(path, timeout, problem) from problem
    return sock


def handshake(
    sock: socket.socket, hello: Hello, fds: Sequence[int] = ()
) -> tuple[Welcome, list[int]]:
    """Send the first frame (with `fds`) and return the broker's answer with the descriptors it passed.

    The caller closes the returned descriptors. Bytes behind the answer stay in the socket.

    Raises
    ------
    GpushareError
        The error the broker answered with, by its class.
    VersionMismatch
        Where the broker chose a protocol version this build does not speak.
    BrokerUnavailable
        Where the broker went away or did not answer in the socket's timeout.
    """
    got: list[int] = []
    try:
        frame = pack(encode(hello), TO_BROKER_LIMIT)
        _send_all(sock, frame, fds)
        (length,) = HEADER.unpack(_receive_exactly(sock, HEADER.size, got))
        check_length(length, FROM_BROKER_LIMIT)
        welcome = decode_welcome(_receive_exactly(sock, length, got))
        _check_welcome(welcome)
    except OSError as problem:
        descriptors.close_all(got)
        raise _gone(problem) from problem
    except BaseException:
        descriptors.close_all(got)
        raise
    return welcome, got


def read_frame(sock: socket.socket, buffer: FrameBuffer) -> bytes:
    """Return the next payload; blocks until it is complete. `BrokerUnavailable` where the broker is gone."""
    frame = next(buffer.feed(b""), None)
    while frame is None:
        try:
            data = sock.recv(_CHUNK)
        except OSError as problem:
            raise _gone(problem) from problem
        if not data:
            raise _gone(None)
        frame = next(buffer.feed(data), None)
    return frame


def send_frame(sock: socket.socket, payload: bytes) -> None:
    """Send a payload as one frame. Callers with several threads hold a lock around it."""
    try:
        sock.sendall(pack(payload, TO_BROKER_LIMIT), socket.MSG_NOSIGNAL)
    except OSError as problem:
        raise _gone(problem) from problem


def _send_all(sock: socket.socket, frame: bytes, fds: Sequence[int]) -> None:
    try:
        sent = descriptors.send(sock, frame, fds)
        sock.sendall(memoryview(frame)[sent:], socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        # The broker may refuse before it has read everything: its answer is still there to be read.
        return


def _receive_exactly(sock: socket.socket, size: int, got: list[int]) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        data = descriptors.receive(sock, min(size - len(parts), _CHUNK), got)
        if not data:
            raise _gone(None)
        parts += data
    return bytes(parts)


def _check_welcome(welcome: Welcome) -> None:
    if isinstance(welcome.body, Failure):
        raise error_from(welcome.body)
    if welcome.version not in SPOKEN:
        msg = (
            f"the broker (gpushare {welcome.broker_version}) speaks protocol {welcome.version}, this side "
            f"{', '.join(map(str, SPOKEN))}. Restart whichever is older."
        )
        raise VersionMismatch(msg)


def _not_connected(path: Path, timeout: float, problem: OSError) -> BrokerUnavailable:
    if isinstance(problem, (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)):
        return NoBroker(
            f"no gpushare broker runs at {path}. Start one with: jupyter gpushare start."
        )
    if isinstance(problem, PermissionError):
        return BrokerUnavailable(
            f"you may not connect to the gpushare broker at {path}: it is another user's."
        )
    if isinstance(problem, BlockingIOError):
        return BrokerUnavailable(
            f"the gpushare broker at {path} took no connection within {timeout:g} s. Try again."
        )
    return BrokerUnavailable(
        f"cannot connect to the gpushare broker at {path}: {problem.strerror or problem}."
    )


def _gone(problem: OSError | None) -> BrokerUnavailable:
    if isinstance(problem, TimeoutError):
        return BrokerUnavailable(
            "the gpushare broker did not answer in time. jupyter gpushare doctor says more."
        )
    why = f": {problem.strerror or problem}" if problem else ""
    return BrokerUnavailable(f"the gpushare broker closed the connection{why}.")


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
