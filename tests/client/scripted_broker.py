"""A broker that does what the test says: a real socket, real frames, a real sealed page, no scheduling.

The test is the broker: it accepts, expects messages and answers them. Everything has a time limit,
so that a client that says nothing fails the test instead of hanging it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.core.values import GiB, MiB, SessionId
from gpushare_kernel.transport import fds as descriptors
from gpushare_kernel.transport.frames import FrameBuffer, pack
from gpushare_kernel.transport.tally import Tally
from gpushare_kernel.transport.words import WordPage
from gpushare_kernel.wire.codec import decode_hello, decode_to_broker, encode, failure_from
from gpushare_kernel.wire.messages import (
    FROM_BROKER_LIMIT,
    TO_BROKER_LIMIT,
    VERSION,
    Attach,
    Attached,
    Failure,
    FromBroker,
    Granted,
    Hello,
    Kind,
    ReleasedNow,
    Report,
    Submit,
    ToBroker,
    Welcome,
)

LIMIT = 20.0
_Body = TypeVar("_Body")


def attached(
    kind: str = "host", capacity: int = 8 * GiB, *, reserve: int = 0, limit: int | None = None
) -> Attached:
    """Return what this broker says to one who attaches."""
    return Attached(
        session=SessionId("s1"),
        device=f"{kind}0",
        kind=kind,
        device_name="the test's device",
        capacity=capacity,
        plain_grace=0.05,
        reserve=reserve,
        limit=limit,
    )


class Peer:
    """One client's connection, from the broker's side."""

    def __init__(self, sock: socket.socket, hello: Hello) -> None:
        self.hello = hello
        self.page = WordPage.create()
        self.tally = Tally.create()
        self._sock = sock
        self._buffer = FrameBuffer(TO_BROKER_LIMIT)
        self.seen: list[object] = []

    @property
    def attach(self) -> Attach:
        """The client's first message."""
        assert isinstance(self.hello.body, Attach)
        return self.hello.body

    def welcome(self, body: Attached | Failure | None = None, *, with_tally: bool = True, version: int = VERSION) -> None:  # fmt: skip
        """Answer the handshake, with the page and the tally where it went well."""
        answer = attached() if body is None else body
        payload = encode(Welcome(version=version, broker_pid=1, broker_version="0", body=answer))
        fds = [self.page.fd] if isinstance(answer, Attached) else []
        if fds and with_tally:
            fds.append(self.tally.fd)
        descriptors.send(self._sock, pack(payload, FROM_BROKER_LIMIT), fds)

    def next(self) -> ToBroker | None:
        """Return the next frame; None at the end of the connection."""
        frame = next(self._buffer.feed(b""), None)
        while frame is None:
            data = self._sock.recv(65536)
            if not data:
                return None
            frame = next(self._buffer.feed(data), None)
        decoded = decode_to_broker(frame)
        self.seen.append(decoded.body)
        return decoded

    def expect(self, body: type[_Body]) -> tuple[int, _Body]:
        """Return the next message and its id; it must be of this class."""
        frame = self.next()
        assert frame is not None, f"expected {body.__name__}, but the client hung up"
        assert isinstance(frame.body, body), f"expected {body.__name__}, got {frame.body}"
        return frame.id, frame.body

    def reply(self, number: int, body: Any) -> None:
        """Answer a request."""
        self._send(FromBroker(Kind.REPLY, number, body))

    def notice(self, body: Any) -> None:
        """Say something unasked."""
        self._send(FromBroker(Kind.NOTICE, 0, body))

    def grant(self, number: int, submit: Submit, *, slot: int = 1, waited: float = 0.0) -> None:
        """Admit a job as it declared itself."""
        self.reply(number, granted(submit, slot=slot, waited=waited))

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self.page.close()
        self.tally.close()

    def _send(self, frame: FromBroker) -> None:
        self._sock.sendall(pack(encode(frame), FROM_BROKER_LIMIT))


class ScriptedBroker:
    """A listening socket in `folder` at which the test plays the broker."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "broker.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        self._listener.settimeout(LIMIT)
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._done = False

    def accept(self, body: Attached | Failure | None = None, *, welcome: bool = True) -> Peer:
        """Take the next client and answer its handshake."""
        sock, _ = self._listener.accept()
        sock.settimeout(LIMIT)
        payload = FrameBuffer(TO_BROKER_LIMIT)
        frame = None
        while frame is None:
            data = sock.recv(65536)
            assert data, "the client hung up in its handshake"
            frame = next(payload.feed(data), None)
        peer = Peer(sock, decode_hello(frame))
        self._peers.append(peer)
        if welcome:
            peer.welcome(body)
        return peer

    def serve(self, answer: Callable[[Peer, ToBroker], None] | None = None, **welcome: Any) -> None:
        """Play by itself, in threads: every client is attached and every frame given to `answer`."""
        self._listener.settimeout(None)
        thread = threading.Thread(
            target=self._serve, args=(answer or obliging, attached(**welcome)), daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def _serve(self, answer: Callable[[Peer, ToBroker], None], body: Attached) -> None:
        while True:
            try:
                peer = self.accept(body)
            except (OSError, AssertionError):
                if self._done:
                    return
                continue
            peer._sock.settimeout(None)
            thread = threading.Thread(target=self._talk, args=(peer, answer), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _talk(self, peer: Peer, answer: Callable[[Peer, ToBroker], None]) -> None:
        with contextlib.suppress(OSError):
            while (frame := peer.next()) is not None:
                answer(peer, frame)

    @property
    def seen(self) -> list[object]:
        """Everything clients said, by connection."""
        return [body for peer in self._peers for body in peer.seen]

    def close(self) -> None:
        """Hang up on everybody and remove the socket."""
        self._done = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._peers:
            peer.close()
        for thread in self._threads:
            thread.join(LIMIT)
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def granted(submit: Submit, *, slot: int = 1, waited: float = 0.0) -> Granted:
    """Return the admission of a job as it declared itself."""
    return Granted(
        job=submit.job,
        lane=1,
        slot=slot,
        waited=waited,
        persistent=submit.persistent
        if submit.persistent is not None
        else (submit.size or 64 * MiB) // 2,
        ephemeral=submit.ephemeral
        if submit.ephemeral is not None
        else (submit.size or 64 * MiB) // 2,
    )


def report(job: Any, persistent: int = 5 * GiB, ephemeral: int = 200 * MiB) -> Report:
    """Return a plausible report."""
    return Report(
        job=job,
        waited=0.0,
        ran=1.0,
        device_time=1.0,
        share=1.0,
        persistent_declared=persistent,
        persistent_measured=persistent,
        ephemeral_declared=ephemeral,
        ephemeral_measured=ephemeral,
        boundaries=0,
        turns=1,
    )


def obliging(peer: Peer, frame: ToBroker) -> None:
    """Admit everything, report the same, and have nothing to release."""
    name, body = type(frame.body).__name__, frame.body
    if frame.kind is Kind.NOTICE:
        return
    answers: dict[str, Callable[[], object]] = {
        "Submit": lambda: granted(body),  # type: ignore[arg-type]
        "End": lambda: report(body.job),  # type: ignore[union-attr]
        "Release": lambda: ReleasedNow(freed=0, names=()),
        "Yield": lambda: Granted(body.job, 1, 1, 0.0, 0, 0),  # type: ignore[union-attr]
    }
    if name in answers:
        peer.reply(frame.id, answers[name]())
    else:
        peer.reply(frame.id, failure_from(GpushareError(f"{name} is not played here")))
