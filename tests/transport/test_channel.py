"""The blocking side: clear errors for everything that can answer, or not answer, at a broker's path."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpushare_kernel.core.errors import (
    BadFrame,
    BadToken,
    BrokerUnavailable,
    FrameTooLong,
    NoBroker,
    VersionMismatch,
)
from gpushare_kernel.transport import fds as descriptors
from gpushare_kernel.transport.channel import connect, handshake, read_frame, send_frame
from gpushare_kernel.transport.frames import HEADER, FrameBuffer, pack
from gpushare_kernel.wire.codec import decode_hello, encode
from gpushare_kernel.wire.messages import (
    FROM_BROKER_LIMIT,
    TO_BROKER_LIMIT,
    Failure,
    Hello,
    Observe,
    Ok,
    Welcome,
)

HELLO = Hello((1,), "test", Observe())


@contextmanager
def answering(tmp_path: Path, answer: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """Give a socket connected to a listener that reads one hello and then does `answer`."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def work() -> None:
            sock, _ = listener.accept()
            with sock:
                frame = read_frame(sock, FrameBuffer(TO_BROKER_LIMIT))
                assert decode_hello(frame) == HELLO
                answer(sock)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            with connect(path, 10) as sock:
                yield sock
        finally:
            thread.join()


def welcome(body: Ok | Failure, version: int = 1) -> bytes:
    return pack(encode(Welcome(version, 1, "0.1", body)), FROM_BROKER_LIMIT)


def test_handshake_brings_descriptors_and_leaves_what_follows(tmp_path: Path) -> None:
    """The answer and its descriptor arrive (closed on exec), and a frame right behind it is not lost."""
    read, write = os.pipe()

    def answer(sock: socket.socket) -> None:
        descriptors.send(sock, welcome(Ok()) + pack(b"next", 99), [write])

    with answering(tmp_path, answer) as sock:
        got, fds = handshake(sock, HELLO)
        assert got.body == Ok()
        assert read_frame(sock, FrameBuffer(99)) == b"next"
        assert not os.get_inheritable(fds[0])
        os.close(write)
        os.write(fds[0], b"through")
        assert os.read(read, 99) == b"through"
    descriptors.close_all([*fds, read])


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (welcome(Failure("BadToken", "unknown token")), BadToken, "unknown token"),
        (welcome(Failure("VersionMismatch", "we speak 7")), VersionMismatch, "we speak 7"),
        (welcome(Ok(), version=99), VersionMismatch, "speaks protocol 99"),
        (b"", BrokerUnavailable, "closed the connection"),
        (b"\x05\x00", BrokerUnavailable, "closed the connection"),
        (pack(b"nonsense", 99), BadFrame, "not a gpushare message"),
        (HEADER.pack(2**31), FrameTooLong, "over the limit"),
    ],
)
def test_answers_that_are_no_welcome(
    tmp_path: Path, reply: bytes, error: type[Exception], text: str
) -> None:
    """Each kind of bad answer is its own error, and a descriptor that came with it does not stay open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Path(os.devnull).open() as file:

        def answer(sock: socket.socket) -> None:
            if reply:
                descriptors.send(sock, reply, [file.fileno()])

        with answering(tmp_path, answer) as sock, pytest.raises(error, match=text):
            handshake(sock, HELLO)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_silent_broker(tmp_path: Path) -> None:
    """A broker that accepts and says nothing costs the timeout, not for ever."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            connect(path, 0.05) as sock,
            pytest.raises(BrokerUnavailable, match="did not answer in time"),
        ):
            handshake(sock, HELLO)


def test_a_full_queue(tmp_path: Path) -> None:
    """Where the broker accepts nobody, connecting waits its timeout and says so."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with (
            connect(path, 1),
            pytest.raises(BrokerUnavailable, match=r"no connection within 0\.05 s"),
        ):
            connect(path, 0.05)


def _accept_one(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_a_full_queue_is_waited_in(tmp_path: Path) -> None:
    """A place that becomes free in time is taken."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with connect(path, 1):
            late = threading.Timer(0.05, _accept_one, [listener])
            late.start()
            connect(path, 30).close()
            late.join()


def test_nobody_there(tmp_path: Path) -> None:
    """No socket, and a stale one, both mean that no broker runs; the text says how to start one."""
    with pytest.raises(NoBroker, match="jupyter gpushare start"):
        connect(tmp_path / "s", 1)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    with pytest.raises(NoBroker, match="jupyter gpushare start"):
        connect(tmp_path / "s", 1)
    with pytest.raises(BrokerUnavailable, match="may have 107 bytes"):
        connect(tmp_path / ("x" * 108), 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_anothers_socket(tmp_path: Path) -> None:
    """A socket we may not connect to is named as another user's."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setuid(4242)
            try:
                connect(path, 1)
            except BrokerUnavailable as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        assert "another user's" in os.read(read, 999).decode()
        os.close(read)


def test_frames_over_a_pair() -> None:
    """Frames arrive one by one, the broker's end is an error, and so is sending after it."""
    ours, theirs = socket.socketpair()
    buffer = FrameBuffer(FROM_BROKER_LIMIT)
    with ours, theirs:
        theirs.sendall(pack(b"a", 9) + pack(b"b", 9) + b"\x09")
        assert [read_frame(ours, buffer), read_frame(ours, buffer)] == [b"a", b"b"]
        send_frame(ours, b"hello")
        assert read_frame(theirs, FrameBuffer(99)) == b"hello"
        with pytest.raises(FrameTooLong):
            send_frame(ours, bytes(TO_BROKER_LIMIT + 1))
        theirs.close()
        with pytest.raises(BrokerUnavailable, match="closed the connection"):
            read_frame(ours, buffer)
        with pytest.raises(BrokerUnavailable, match="closed the connection: Broken pipe"):
            send_frame(ours, b"hello")
