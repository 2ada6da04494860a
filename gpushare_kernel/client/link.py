"""The connection to the broker: one socket, one reader thread, and coming back when it breaks.

The reader blocks in `recv`: an idle kernel costs no wake-up. Senders write on their own thread under
a lock. While the broker is away the reader tries again with growing pauses.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gpushare_kernel.core.errors import (
    BadToken,
    GpushareError,
    NotYours,
    PeerError,
    VersionMismatch,
)
from gpushare_kernel.transport.channel import connect, handshake
from gpushare_kernel.transport.frames import FrameBuffer, pack
from gpushare_kernel.transport.locks import free
from gpushare_kernel.transport.peers import check_broker
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.codec import decode_from_broker, encode
from gpushare_kernel.wire.messages import (
    FROM_BROKER_LIMIT,
    SPOKEN,
    TO_BROKER_LIMIT,
    Attach,
    FromBroker,
    Hello,
    ToBroker,
    Welcome,
)

FIRST_PAUSE, LONG_PAUSE, LONGEST_PAUSE = 0.1, 0.2, 2.0
"""Seconds between two looks for a broker: at first, while one is about to come (who is missing holds up the others), and later."""
SOON = 15.0
"""Seconds for which one may be about to come."""
AWAY, STILL_AWAY = 1.0, 3.0
"""Seconds without a broker after which nobody else seems to start one, and then again: a guardian that does has the start lock by then."""
_HANDSHAKE_TIMEOUT = 5.0
_SEND_TIMEOUT = 5
_CHUNK = 4096
_FINAL = (BadToken, NotYours, VersionMismatch)
"""Refusals that asking again does not change."""


class Events(Protocol):
    """What the link tells its session, on the reader thread."""

    def attach(self) -> Attach:
        """Return the first message of a new connection."""

    def came_up(self, welcome: Welcome, fds: list[int]) -> None:
        """Take over a new connection, before anybody may send on it. Owns `fds`."""

    def went_up(self) -> None:
        """The connection may be used."""

    def frame(self, frame: FromBroker) -> None:
        """Take in one message."""

    def went_down(self) -> None:
        """The connection is gone; the link comes back by itself."""

    def stays_away(self) -> None:
        """Nobody has answered for a while: longer than a guardian takes to start a broker again."""

    def refused(self, error: GpushareError) -> None:
        """The broker will not have us; the link has given up."""


_NONE = "there is no connection to the broker at the moment"


class LinkDown(GpushareError):
    """There is no connection at the moment."""


class Link:
    """A connection that comes back."""

    def __init__(self, path: Path, events: Events) -> None:
        self._path = path
        self._events = events
        self._sending = threading.Lock()
        self._sock: socket.socket | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpushare-reader", daemon=True)

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._thread.start()

    def send(self, message: ToBroker, sent: list[int] | None = None) -> None:
        """Send one message. Raises LinkDown where there is no connection, or it just broke.

        `sent` is not empty once the message is out, even where an interrupt is raised in that moment.
        """
        frame = pack(encode(message), TO_BROKER_LIMIT)
        with self._sending:
            sock = self._sock
            if sock is None:
                raise LinkDown(_NONE)
            out = [] if sent is None else sent
            try:
                # One call from C to C: no interrupt can come between the sending and the noting of it.
                out.extend(map(sock.send, (frame,), (socket.MSG_NOSIGNAL,)))
                if out[0] < len(frame):  # the broker does not read
                    sock.sendall(frame[out[0] :], socket.MSG_NOSIGNAL)
                    out[0] = len(frame)
            except OSError as problem:
                self._drop(sock)
                raise LinkDown(str(problem)) from problem
            finally:
                # Half a frame may be out: nothing that follows could be understood. The reader sees
                # the end of this connection and makes a new one.
                if out and out[0] != len(frame):
                    self._drop(sock)
                    out.clear()

    def close(self) -> None:
        """End the connection and the reader thread."""
        self._closed.set()
        with self._sending:
            sock, self._sock = self._sock, None
        if sock is not None:
            _shut(sock)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=2)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection without a word to the broker."""
        self._closed.set()
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def _run(self) -> None:
        pause, since = FIRST_PAUSE, time.monotonic()
        due = since + AWAY
        while not self._closed.is_set():
            try:
                sock = self._connect()
            except _FINAL as problem:
                self._events.refused(problem)
                return
            except Exception as problem:  # noqa: BLE001 - of a listener, too: it is tried again
                if not isinstance(problem, GpushareError | OSError):
                    _note(problem)
                if isinstance(problem, PeerError):
                    pause = LONGEST_PAUSE
                self._closed.wait(pause)
                now = time.monotonic()
                if now >= due and not self._closed.is_set():
                    starts = self._may_start()
                    due = now + (STILL_AWAY if starts else AWAY)
                    if starts:
                        self._told(self._events.stays_away)
                pause = min(2 * pause, LONG_PAUSE if now - since < SOON else LONGEST_PAUSE)
                continue
            with sock:
                self._read(sock)
                with self._sending:
                    self._sock = None
            pause, since = FIRST_PAUSE, time.monotonic()
            due = since + AWAY
            if not self._closed.is_set() and not self._told(self._events.went_down):
                self._closed.wait(pause)

    def _may_start(self) -> bool:
        """Whether nobody starts a broker now, and we could: hundreds that load what that takes would only slow down who does."""
        try:
            return free(Places(self._path.parent, system=False, named=True).start_lock)
        except GpushareError:
            return False

    def _connect(self) -> socket.socket:
        sock = connect(self._path, _HANDSHAKE_TIMEOUT)
        try:
            check_broker(sock, Places(self._path.parent, system=False, named=True))
            body = self._events.attach()
            welcome, fds = handshake(sock, Hello(versions=SPOKEN, agent=agent(), body=body))
            self._events.came_up(welcome, fds)
            sock.settimeout(None)
            limit = struct.pack("@ll", _SEND_TIMEOUT, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._use(sock)
        except BaseException:
            sock.close()
            raise
        self._events.went_up()
        return sock

    def _use(self, sock: socket.socket) -> None:
        with self._sending:
            if self._closed.is_set():
                raise LinkDown(_NONE)
            self._sock = sock

    def _read(self, sock: socket.socket) -> None:
        buffer = FrameBuffer(FROM_BROKER_LIMIT)
        try:
            while data := sock.recv(_CHUNK):
                for payload in buffer.feed(data):
                    frame = decode_from_broker(payload)
                    self._told(lambda frame=frame: self._events.frame(frame))  # type: ignore[misc]
        except (OSError, PeerError, MemoryError):
            # Unreadable bytes are treated as the end of a connection: a new one starts clean.
            _shut(sock)

    def _told(self, event: Callable[[], None]) -> bool:
        """Tell of `event`; False where that failed. The reader goes on whatever a listener does: who waits for an answer waits for it."""
        try:
            event()
        except Exception as problem:  # noqa: BLE001 - of whoever listens
            _note(problem)
            return False
        return True

    def _drop(self, sock: socket.socket) -> None:
        if self._sock is sock:
            self._sock = None
        _shut(sock)


def agent() -> str:
    """Return how this client names itself to the broker."""
    from gpushare_kernel import __version__  # noqa: PLC0415 - the package imports us

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"gpushare-client {__version__} (Python {version}, pid {os.getpid()})"


def _note(problem: Exception) -> None:
    """A fault of ours: for whoever looks for it, and no traceback in a notebook."""
    import logging  # noqa: PLC0415 - a program need not load it

    logging.getLogger(__name__).debug("an event of the connection was not taken in", exc_info=problem)  # fmt: skip


def _shut(sock: socket.socket) -> None:
    """Wake the reader: it owns the socket and closes it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
