"""The first frame and its answer, on a raw non-blocking socket: descriptors travel beside them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

from gpushare_kernel.core.errors import GpushareError, InternalError
from gpushare_kernel.transport import fds as descriptors
from gpushare_kernel.transport.connection import Connection, Handler
from gpushare_kernel.transport.frames import HEADER, check_length, pack
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.transport.strange import MOST, Strange
from gpushare_kernel.wire.codec import encode, failure_from
from gpushare_kernel.wire.messages import FROM_BROKER_LIMIT, SPOKEN, TO_BROKER_LIMIT, Welcome

HandlerFactory = Callable[[Connection], Handler]
OnHello = Callable[
    [bytes, list[int], Peer], Awaitable[tuple[bytes, Sequence[int], HandlerFactory | None]]
]

SECONDS = 5.0
"""How long a peer may take to say hello, and then to take its answer."""
_logger = logging.getLogger(__name__)


async def greet(
    sock: socket.socket, peer: Peer, on_hello: OnHello, release: str, strange: Strange
) -> HandlerFactory | None:
    """Read a hello and answer it; return what goes on with the connection, None where nothing does.

    Reads exactly one frame: what the peer sends right behind it stays in the socket.
    Descriptors that `on_hello` leaves in its list are closed (`strange` are those of its user); those it sends stay the caller's.
    """
    fds: list[int] = []
    try:
        async with asyncio.timeout(SECONDS):
            payload = await _read_hello(sock, fds, strange)
        reply, beside, factory = await on_hello(payload, fds, peer)
        async with asyncio.timeout(SECONDS):
            await _send(sock, reply, beside)
    except GpushareError as error:
        await _refuse(sock, error, release)
    except EOFError:
        _logger.debug("a peer only knocked", extra={"pid": peer.pid, "uid": peer.uid})
    except OSError as problem:  # TimeoutError is one
        _logger.info(
            "a peer left in the handshake: %r", problem, extra={"pid": peer.pid, "uid": peer.uid}
        )
    except Exception:  # it costs this peer its answer, and the broker nothing
        _logger.exception("a hello failed")
        message = "the broker failed on this hello; its log has the traceback. Please report it."
        await _refuse(sock, InternalError(message), release)
    else:
        return factory
    finally:
        strange.close(fds)
    return None


def turn_away(sock: socket.socket, error: GpushareError | None, release: str) -> None:
    """End a connection that is not answered, with why where it takes a word at once."""
    with contextlib.closing(sock), contextlib.suppress(OSError):
        if error is not None:
            sock.settimeout(0)
            welcome = Welcome(SPOKEN[0], os.getpid(), release, failure_from(error))
            descriptors.send(sock, pack(encode(welcome), FROM_BROKER_LIMIT), ())


async def _read_hello(sock: socket.socket, fds: list[int], strange: Strange) -> bytes:
    (length,) = HEADER.unpack(await _read_exactly(sock, HEADER.size, fds, strange))
    check_length(length, TO_BROKER_LIMIT)
    return await _read_exactly(sock, length, fds, strange)


async def _read_exactly(sock: socket.socket, size: int, fds: list[int], strange: Strange) -> bytes:
    loop, parts = asyncio.get_running_loop(), bytearray()
    while len(parts) < size:
        try:
            data = descriptors.receive(sock, size - len(parts), fds, strange.most)
        except BlockingIOError:
            await _ready(sock, loop.add_reader, loop.remove_reader)
            continue
        if not data:
            raise EOFError
        parts += data
        # At once: a hello in single bytes, each with its descriptors, would hold thousands.
        strange.close(fds[MOST:])
        del fds[MOST:]
        if len(parts) < size:
            await asyncio.sleep(
                0
            )  # and whoever sends single bytes as fast as we read would have the loop
    return bytes(parts)


async def _send(sock: socket.socket, payload: bytes, beside: Sequence[int]) -> None:
    loop, frame = asyncio.get_running_loop(), memoryview(pack(payload, FROM_BROKER_LIMIT))
    while frame:
        try:
            sent = descriptors.send(sock, frame, beside)
        except BlockingIOError:
            await _ready(sock, loop.add_writer, loop.remove_writer)
            continue
        frame, beside = frame[sent:], ()


async def _refuse(sock: socket.socket, error: GpushareError, release: str) -> None:
    welcome = Welcome(SPOKEN[0], os.getpid(), release, failure_from(error))
    try:
        async with asyncio.timeout(SECONDS):
            await _send(sock, encode(welcome), ())
    except (TimeoutError, OSError) as problem:
        _logger.info("a refused peer did not take its answer: %r", problem)


async def _ready(
    sock: socket.socket, add: Callable[..., object], remove: Callable[[socket.socket], object]
) -> None:
    """Wait until the loop finds `sock` readable (or writable)."""
    ready = asyncio.get_running_loop().create_future()
    add(sock, _wake, ready)
    try:
        await ready
    finally:
        remove(sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
