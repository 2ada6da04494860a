"""A lease of the host's memory, into which this process copies what it sets aside. Rules A1 to A10 in docs/arena.md."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import socket
import weakref
from pathlib import Path
from typing import Protocol

from gpushare_kernel.client.link import agent
from gpushare_kernel.core.errors import BadFrame, UserError
from gpushare_kernel.transport.channel import connect, handshake
from gpushare_kernel.transport.fds import close_all
from gpushare_kernel.transport.peers import check_broker
from gpushare_kernel.transport.places import Places
from gpushare_kernel.transport.words import sealed_size
from gpushare_kernel.wire import messages as msg

_LEAST = 10.0
_SLOWEST = 0.25e9
"""Seconds that a lease may take whatever its size; and bytes a second at which memory is taken at the least (measured: 1.6e9 to 2.5e9)."""
_VERSION = 2


class Asker(Protocol):
    """What is needed of a `Session`: who it is, and where its broker listens."""

    token: str
    path: Path


class Lease:
    """One extent of this user's arena, for as long as it is not closed.

    In a forked child it is closed from the start: the lease is its parent's.

    Attributes
    ----------
    offset, size
        Where it lies in the arena; `size` is what was asked for, in whole 2 MiB.
    """

    def __init__(self, sock: socket.socket, fd: int, offset: int, size: int) -> None:
        self._sock, self._fd = sock, fd
        self.offset, self.size = offset, size
        self._map: mmap.mmap | None = None
        self._buffer: memoryview | None = None
        self._address = 0
        _leases.add(self)

    @property
    def address(self) -> int:
        """Where it is mapped; it is at the first use."""
        if self._map is None:
            self._begin()
        return self._address

    @property
    def buffer(self) -> memoryview:
        """Its bytes, to be read and written. Whoever keeps a part of it keeps `close` from its work."""
        if self._buffer is None:
            self._begin()
        return self._buffer  # type: ignore[return-value]  # set by now

    @property
    def mapped(self) -> bool:
        """Whether it is mapped."""
        return self._map is not None

    @property
    def stands(self) -> bool:
        """Whether the broker still counts it. Where its broker has gone the bytes are here all the same, and nobody else gets them."""
        if self._fd < 0:
            return False
        looked = select.poll()
        looked.register(self._sock, select.POLLIN)
        return not looked.poll(0)  # the broker says nothing here: what is to be read is the end

    def unmap(self) -> None:
        """Let go of the mapping and keep the bytes; they are mapped again at the next use.

        Raises
        ------
        UserError
            Where somebody still has a part of `buffer`. All stays as it is.
        """
        if self._map is None:
            return
        try:
            self._buffer.release()  # type: ignore[union-attr]  # it is there with the map
            self._map.close()
        except BufferError:
            self._buffer = memoryview(self._map)
            problem = "a part of a lease's buffer is in use: it stays mapped, and leased. Let go of the part (del), then close it again."
            raise UserError(problem) from None
        self._map, self._buffer, self._address = None, None, 0

    def close(self) -> None:
        """Unmap it and give it back; its bytes are gone from here on. `UserError` as for `unmap`."""
        self.unmap()
        self._let_go()

    def _begin(self) -> None:
        if self._fd < 0:
            problem = "this lease is closed: its bytes are gone. Take another one."
            raise UserError(problem)
        self._map = mmap.mmap(self._fd, self.size, offset=self.offset)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._buffer = memoryview(self._map)

    def _let_go(self) -> None:
        self._sock.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def forget(self) -> None:
        """In a forked child: the lease is the parent's, who must be able to end it."""
        self._let_go()
        with contextlib.suppress(UserError):
            self.unmap()

    def __del__(self) -> None:
        with contextlib.suppress(UserError):
            self.unmap()
        self._let_go()


def take(session: Asker, size: int, *, limit: float | None = None) -> Lease:
    """Lease `size` bytes; returns when there is memory behind all of them.

    Parameters
    ----------
    session
        This process's `Session`.
    size
        Bytes; a lease has whole 2 MiB.
    limit
        Seconds to wait; by default enough for a slow machine to take that much memory.

    Raises
    ------
    Refused
        Where the budgets or the host's memory do not allow it now, with the numbers.
    BadSize, BadToken, NotYours
        Where it can never be given.
    BrokerUnavailable
        Where no broker answers, or not within `limit`.
    """
    sock = connect(session.path, _LEAST + size / _SLOWEST if limit is None else limit)
    try:
        check_broker(sock, Places(session.path.parent, system=False, named=True))
        body = msg.LeaseArena(session.token, size)
        welcome, got = handshake(sock, msg.Hello((_VERSION,), agent(), body))
    except BaseException:
        sock.close()
        raise
    try:
        offset, given = _checked(welcome.body, got, size)
    except BaseException:
        sock.close()
        close_all(got)
        raise
    return Lease(sock, got[0], offset, given)


def _checked(body: object, got: list[int], size: int) -> tuple[int, int]:
    """Return where the lease lies, once it is sure that it lies inside the file: behind its end would be SIGBUS."""
    if not isinstance(body, msg.ArenaLeased) or len(got) != 1:
        problem = f"a lease is answered with its arena, and {type(body).__name__} with {len(got)} descriptors came."
        raise BadFrame(problem)
    there = sealed_size(got[0], "an arena")
    if body.offset < 0 or body.size < size or body.offset + body.size > there:
        problem = f"a lease of {size} bytes lies inside its arena, and this is {body.size} from {body.offset} in {there}."
        raise BadFrame(problem)
    return body.offset, body.size


_leases: weakref.WeakSet[Lease] = weakref.WeakSet()


def _after_fork() -> None:
    for lease in [*_leases]:
        lease.forget()


os.register_at_fork(after_in_child=_after_fork)
