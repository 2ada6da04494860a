"""The broker's socket, on asyncio. Nobody who connects can hold up the loop or take all descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from functools import partial
from pathlib import Path

from gpushare_kernel.transport.allowance import HELLO, TURNED_AWAY, Allowances
from gpushare_kernel.transport.connection import Connection, Handler
from gpushare_kernel.transport.handshake import HandlerFactory, OnHello, greet, turn_away
from gpushare_kernel.transport.peers import Peer, peer_of
from gpushare_kernel.transport.places import check_socket_path

__all__ = ["Connection", "Handler", "HandlerFactory", "Listener", "OnHello", "serve"]

RESERVED = 64
"""Descriptors that no connection gets, or a quarter of all where that is less: ours for processes, files and workers."""
_BACKLOG = 512
_ACCEPTS_PER_TURN = 16
_REST = 0.01
"""Seconds without looking at who comes in, after somebody was turned away: who is may come back at once, without end."""
_TOO_FEW = "out of file descriptors: turned a connection away"
_logger = logging.getLogger(__name__)


class Listener:
    """A bound, listening Unix socket. Make one only while holding broker.lock: it replaces what is at `path`.

    Parameters
    ----------
    path
        Where to listen.
    mode
        The socket's permissions: 0o666 lets every user connect, 0o600 only the owner and root.
    release
        Our own version, told to peers whose hello is refused.
    """

    def __init__(self, path: Path, mode: int, *, release: str = "") -> None:
        check_socket_path(path)
        self.path = path
        self._mode = mode
        self._release = release
        self._on_hello: OnHello | None = None
        self._closed = asyncio.Event()
        self._handshakes: set[asyncio.Task[bool]] = set()
        self._allowances = Allowances()
        self._resting: asyncio.TimerHandle | None = None
        #: How many connections were turned away: over their user's limit, or the host's.
        self.turned_away = 0
        self.sock = self._bind()
        self._spare = os.open(os.devnull, os.O_RDONLY)

    @property
    def handshakes(self) -> int:
        """How many peers have connected and have no answer yet."""
        return len(self._handshakes)

    @property
    def in_place(self) -> bool:
        """Whether `path` still leads to us: somebody may have removed the folder, and another broker made it anew."""
        try:
            return os.path.samestat(self.path.lstat(), self._bound)
        except OSError:
            return False

    def start(self, on_hello: OnHello) -> None:
        """Take connections from now on, on the running loop."""
        self._on_hello = on_hello
        self._watch()

    async def wait_closed(self) -> None:
        """Wait until `close` was called, or `try_retire` succeeded."""
        await self._closed.wait()

    def close(self) -> None:
        """Stop listening and end the handshakes; connections that are up stay."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._stop_watching()
        if self.in_place:  # another broker's socket is not ours to remove
            with contextlib.suppress(OSError):
                self.path.unlink()  # before the close: nobody finds a path that nobody listens at
        self.sock.close()
        os.close(self._spare)
        for task in self._handshakes:
            task.cancel()

    def try_retire(self) -> bool:
        """Stop listening, unless somebody is just connecting. The caller holds start.lock.

        True: closed, the path is free and nobody is left waiting. False: it listens on, and whoever was pending
        is being greeted. A connect during the call is refused by the kernel: its client then waits for
        start.lock, and finds either us again or nobody.
        """
        if self._accept(_BACKLOG) or self._handshakes:
            return False
        # A shut down listener queues nobody, not even one who has looked up the path before it vanished.
        self.sock.shutdown(socket.SHUT_RD)
        if not self._accept(_BACKLOG):
            self.close()
            return True
        self._stop_watching()
        self.sock.close()
        self.sock = self._bind()
        self._watch()
        return False

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(0)
            self.path.unlink(missing_ok=True)
            sock.bind(str(self.path))
            self.path.chmod(
                self._mode
            )  # before listen: until then nobody can connect, whatever the umask
            self._bound = self.path.lstat()  # its inode is not reused while the socket lives
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock

    def _watch(self) -> None:
        if self._on_hello is not None:
            asyncio.get_running_loop().add_reader(self.sock, self._accept, _ACCEPTS_PER_TURN)

    def _rest(self) -> None:
        if self._resting is None and self._on_hello is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self.sock)
            self._resting = loop.call_later(_REST, self._rested)

    def _rested(self) -> None:
        self._resting = None
        self._watch()

    def _stop_watching(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._on_hello is not None:
            asyncio.get_running_loop().remove_reader(self.sock)

    def _accept(self, most: int) -> int:
        """Take at most `most` pending connections; return how many there were."""
        for taken in range(most):
            try:
                sock, _ = self.sock.accept()
            except OSError as problem:
                if problem.errno in (errno.EMFILE, errno.ENFILE):
                    self._turn_away()
                    return taken + 1
                # EAGAIN: nobody. EINVAL: shut down and nobody. ECONNABORTED: somebody who has gone again.
                return taken
            self._take(sock)
        return most

    def _turn_away(self) -> None:
        """Out of descriptors: take one connection with the spare one and drop it, else the loop would spin."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self.sock.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self.turned_away += 1
        _logger.error(_TOO_FEW)

    def _take(self, sock: socket.socket) -> None:
        peer = peer_of(sock)
        allowance = self._allowances.of(peer.uid)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # The kernel gives the lowest number that is free. Without any left we could not even read how our processes stand.
        if sock.fileno() >= limit - min(RESERVED, limit // 4):
            self.turned_away += 1
            if allowance.worth_saying("descriptors"):
                _logger.error(_TOO_FEW)
            sock.close()
            return
        refusal = allowance.refusal()
        if self._on_hello is None or refusal is not None:
            self.turned_away += 1
            allowance.spend(TURNED_AWAY)
            if refusal is not None and allowance.worth_saying("connections"):
                _logger.warning("turned a connection away: %s", refusal, extra={"uid": peer.uid})
            turn_away(sock, refusal, self._release)
            self._rest()
            return
        sock.settimeout(0)
        allowance.greeting += 1
        task = asyncio.get_running_loop().create_task(self._welcome(sock, peer, self._on_hello))
        self._handshakes.add(task)
        task.add_done_callback(partial(self._welcomed, sock, peer))

    async def _welcome(self, sock: socket.socket, peer: Peer, on_hello: OnHello) -> bool:
        """Greet a peer; return whether its socket has become a connection."""
        allowance = self._allowances.of(peer.uid)
        await allowance.turn()
        allowance.spend(HELLO)
        factory = await greet(sock, peer, on_hello, self._release, allowance.strange)
        if factory is None:
            return False
        connection = Connection(
            peer, factory, lambda: allowance.connections.discard(connection), allowance
        )
        allowance.connections.add(connection)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        return True

    def _welcomed(self, sock: socket.socket, peer: Peer, task: asyncio.Task[bool]) -> None:
        # Not in a `finally` of the task: one that is cancelled before its first step runs none.
        self._handshakes.discard(task)
        self._allowances.of(peer.uid).greeting -= 1
        if task.cancelled():
            sock.close()
        elif task.exception() is not None:
            _logger.error("a handshake failed", exc_info=task.exception())
            sock.close()
        elif not task.result():
            sock.close()


async def serve(listener: Listener, on_hello: OnHello) -> None:
    """Take connections until the listener is closed or retired.

    Parameters
    ----------
    listener
        What to accept from; closed at the end, also by cancelling.
    on_hello
        Called with the first payload, the descriptors beside it (those it keeps it takes out of the list,
        the rest is closed) and the peer. Returns the answer, the descriptors to send with it (they stay its own)
        and a function that makes the connection's handler; None ends the connection. A GpushareError it
        raises becomes the answer. What must be undone when the peer goes belongs into that function:
        a peer may leave before it has its answer, and then no `on_closed` follows.
    """
    listener.start(on_hello)
    try:
        await listener.wait_closed()
    finally:
        listener.close()
        await asyncio.gather(*listener._handshakes, return_exceptions=True)
