"""The broker's socket: everybody is answered, and nobody who connects can hold up or starve the others."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpushare_kernel.core.errors import (
    BadToken,
    FrameTooLong,
    GpushareError,
    InternalError,
    NoBroker,
    NotYours,
    UserError,
)
from gpushare_kernel.transport import fds as descriptors
from gpushare_kernel.transport import handshake as greeting
from gpushare_kernel.transport import server
from gpushare_kernel.transport.allowance import HANDSHAKES
from gpushare_kernel.transport.channel import connect, handshake, read_frame, send_frame
from gpushare_kernel.transport.connection import MOST_BUFFERED
from gpushare_kernel.transport.frames import HEADER, FrameBuffer, pack
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.transport.server import (
    RESERVED,
    Connection,
    HandlerFactory,
    Listener,
    serve,
)
from gpushare_kernel.wire.codec import (
    decode_from_broker,
    decode_hello,
    decode_welcome,
    encode,
    error_from,
)
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
WELCOME = encode(Welcome(1, os.getpid(), "0.1", Ok()))
Answer = tuple[bytes, Sequence[int], HandlerFactory | None]


class Room:
    """A broker's side that answers every hello, and records what comes."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.frames: list[tuple[int, bytes]] = []
        self.closed: list[int] = []
        self.peers: list[Peer] = []
        self.pages: Sequence[int] = ()
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.problem: Exception | None = None
        self.frame_problem: Exception | None = None

    async def on_hello(self, payload: bytes, fds: list[int], peer: Peer) -> Answer:
        assert decode_hello(payload) == HELLO
        self.peers.append(peer)
        if self.problem is not None:
            raise self.problem
        return WELCOME, self.pages, self.take

    def take(self, connection: Connection) -> RoomHandler:
        self.connections.append(connection)
        return RoomHandler(self, len(self.connections) - 1)

    async def until(self, event: str) -> None:
        """Wait for an event; fail where another comes first, or none."""
        async with asyncio.timeout(30):
            assert await self.events.get() == event


class RoomHandler:
    def __init__(self, room: Room, number: int) -> None:
        self.room, self.number = room, number

    def on_frame(self, payload: bytes) -> None:
        if self.room.frame_problem is not None:
            raise self.room.frame_problem
        self.room.frames.append((self.number, payload))
        self.room.events.put_nowait("frame")

    def on_closed(self) -> None:
        self.room.closed.append(self.number)
        self.room.events.put_nowait("closed")


@asynccontextmanager
async def serving(
    path: Path, room: Room, listener: Listener | None = None
) -> AsyncIterator[Listener]:
    """Run a listener, and see that it leaves neither a task nor a socket nor a descriptor behind."""
    before = open_descriptors()
    listener = listener or Listener(path, 0o600, release="0.1")
    task = asyncio.create_task(serve(listener, room.on_hello))
    try:
        await asyncio.sleep(0)
        yield listener
    finally:
        listener.close()
        await task
        for connection in room.connections:
            connection.close()
        while len(room.closed) < len(room.connections):
            await asyncio.wait_for(room.events.get(), 30)
    assert path not in path.parent.iterdir()
    assert len(asyncio.all_tasks()) == 1
    assert open_descriptors() <= before


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def greet(path: Path, fds: Sequence[int] = ()) -> tuple[socket.socket, list[int]]:
    """Connect and shake hands, as a client does (blocking)."""
    sock = connect(path, 30)
    try:
        _, got = handshake(sock, HELLO, fds)
    except BaseException:
        sock.close()
        raise
    return sock, got


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds of which nobody is told."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def end_of(sock: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    data = b""
    while chunk := await asyncio.to_thread(sock.recv, 99):
        data += chunk
    return data


def run(path: Path, test: Callable[[Room, Listener], object], room: Room | None = None) -> None:
    room = room or Room()

    async def main() -> None:
        async with serving(path, room) as listener:
            await test(room, listener)  # type: ignore[misc]

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the listener listens."""
    return tmp_path / "broker.sock"


def test_a_connection_from_hello_to_end(path: Path) -> None:
    """Hello, welcome, frames both ways, end; the peer is who the kernel says."""

    async def test(room: Room, listener: Listener) -> None:
        assert os.lstat(path).st_mode & 0o777 == 0o600
        sock, fds = await asyncio.to_thread(greet, path)
        with sock:
            assert fds == []
            assert room.peers == [Peer(os.getpid(), os.geteuid(), os.getegid())]
            await asyncio.to_thread(send_frame, sock, b"one")
            await room.until("frame")
            assert room.frames == [(0, b"one")]
            room.connections[0].send(b"two")
            assert await asyncio.to_thread(read_frame, sock, FrameBuffer(99)) == b"two"
        await room.until("closed")
        room.connections[0].send(b"nobody")
        assert room.connections[0].buffered == 0

    run(path, test)


def test_closing_leaves_the_socket_of_another_alone(path: Path) -> None:
    """Where somebody removed ours and listens there now, the path is theirs."""

    async def main() -> None:
        listener = Listener(path, 0o600)
        assert listener.in_place
        os.unlink(path)  # noqa: PTH108
        assert not listener.in_place
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            assert not listener.in_place
            listener.close()
            assert other.getsockname() == str(path)
            assert path in path.parent.iterdir()

    asyncio.run(main())


def test_what_follows_the_hello_is_not_lost(path: Path) -> None:
    """Frames in the same packet as the hello reach the handler."""

    async def test(room: Room, listener: Listener) -> None:
        with connect(path, 30) as sock:
            sock.sendall(pack(encode(HELLO), 999) + pack(b"one", 9) + pack(b"two", 9))
            await room.until("frame")
            await room.until("frame")
            assert room.frames == [(0, b"one"), (0, b"two")]

    run(path, test)


def test_a_hello_in_single_bytes(path: Path) -> None:
    """A hello may come in any pieces."""

    async def test(room: Room, listener: Listener) -> None:
        with connect(path, 30) as sock:
            for byte in pack(encode(HELLO), 999):
                sock.sendall(bytes([byte]))
                await asyncio.sleep(0)
            await end_of_welcome(sock)
            assert len(room.connections) == 1

    run(path, test)


async def end_of_welcome(sock: socket.socket) -> None:
    assert await asyncio.to_thread(read_frame, sock, FrameBuffer(FROM_BROKER_LIMIT)) == WELCOME


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Leave this process 40 descriptors more than it has open, and those that no connection gets."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir()) + 40 + RESERVED
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_last_descriptors_are_no_connections(
    path: Path, few_descriptors: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever connects is turned away while there are some left, so that the broker can go on reading and starting."""

    async def main() -> None:
        room = Room()
        async with serving(path, room):
            sock, _ = await asyncio.to_thread(greet, path)
            sock.close()
            taken = [os.open(os.devnull, os.O_RDONLY)]
            while taken[-1] < few_descriptors - min(RESERVED, few_descriptors // 4):
                taken.append(os.open(os.devnull, os.O_RDONLY))
            with connect(path, 30) as sock:
                assert await end_of(sock) == b""
            taken.append(os.open(os.devnull, os.O_RDONLY))  # there are some left
            assert "turned a connection away" in caplog.text
            descriptors.close_all(taken)

    asyncio.run(main())


def test_descriptors_travel_and_none_stays(path: Path) -> None:
    """One descriptor comes in, the answer's goes out; more than one, and one nobody takes, are closed."""
    read, write = os.pipe()
    room = Room()
    kept: list[int] = []

    async def keep(payload: bytes, fds: list[int], peer: Peer) -> Answer:
        assert len(fds) == 1
        assert not os.get_inheritable(fds[0])
        if not kept:
            kept.append(fds.pop())
        return WELCOME, [write], None

    room.on_hello = keep  # type: ignore[method-assign]

    async def main() -> None:
        async with serving(path, room):
            for sent in ([read], [read, read, read], [read] * 9):
                sock, got = await asyncio.to_thread(greet, path, sent)
                with sock:
                    os.write(got[0], b"x")
                    assert os.read(kept[0], 1) == b"x"
                    assert await end_of(sock) == b""
                descriptors.close_all(got)
            os.close(kept[0])

    asyncio.run(main())
    descriptors.close_all([read, write])


@pytest.mark.parametrize(
    ("problem", "expected", "text"),
    [
        (BadToken("no such session"), BadToken, "no such session"),
        (NotYours("it is bob's"), NotYours, "it is bob's"),
        (ZeroDivisionError("a bug"), InternalError, "failed on this hello"),
    ],
)
def test_refusals_reach_the_peer(
    path: Path,
    caplog: pytest.LogCaptureFixture,
    problem: Exception,
    expected: type[GpushareError],
    text: str,
) -> None:
    """An error of ours arrives as itself, a bug as an internal error that is logged; the next peer is served."""
    room = Room()
    room.problem = problem

    async def test(room: Room, listener: Listener) -> None:
        with pytest.raises(expected, match=text):
            await asyncio.to_thread(greet, path)
        room.problem = None
        sock, _fds = await asyncio.to_thread(greet, path)
        sock.close()

    run(path, test, room)
    assert ("a bug" in caplog.text) is isinstance(problem, ZeroDivisionError)


def test_a_hello_over_the_limit(path: Path) -> None:
    """The header is enough: nothing of such a hello is read, and the peer is told the limit."""

    async def test(room: Room, listener: Listener) -> None:
        with connect(path, 30) as sock:
            sock.sendall(HEADER.pack(TO_BROKER_LIMIT + 1))
            buffer = FrameBuffer(FROM_BROKER_LIMIT)
            answer = decode_welcome(await asyncio.to_thread(read_frame, sock, buffer)).body
            assert isinstance(answer, Failure)
            assert isinstance(error_from(answer), FrameTooLong)
            assert str(TO_BROKER_LIMIT) in answer.message

    run(path, test)


def test_a_silent_peer_is_dropped_and_holds_up_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one says half a hello, another is served; the first loses its place after the limit."""

    async def test(room: Room, listener: Listener) -> None:
        with connect(path, 30) as silent:
            silent.sendall(b"\x10\x00")
            sock, _fds = await asyncio.to_thread(greet, path)
            sock.close()
            monkeypatch.setattr(greeting, "SECONDS", 0.01)
            with connect(path, 30) as other:
                assert await end_of(other) == b""
            assert listener.handshakes == 1

    run(path, test)


def test_one_user_has_so_many_handshakes(path: Path) -> None:
    """With all its places taken by silent peers, a user's next one is turned away; a free place is given again."""

    async def test(room: Room, listener: Listener) -> None:
        silent = [connect(path, 30) for _ in range(HANDSHAKES)]
        await eventually(lambda: listener.handshakes == HANDSHAKES)
        with pytest.raises(UserError, match="answers 64 new connections of a user at once"):
            await asyncio.to_thread(greet, path)
        silent.pop().close()
        await eventually(lambda: listener.handshakes < HANDSHAKES)
        sock, _fds = await asyncio.to_thread(greet, path)
        for each in [*silent, sock]:
            each.close()

    run(path, test)


def test_one_user_has_so_many_connections(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user's connections get a quarter of the descriptors, and gets a place back when a connection ends."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8, 8))
    monkeypatch.setattr(server, "RESERVED", -1000)  # we have more open than these eight

    async def test(room: Room, listener: Listener) -> None:
        first, second = [(await asyncio.to_thread(greet, path))[0] for _ in range(2)]
        with second:
            with pytest.raises(UserError, match="may have 2 connections to the broker, and yours"):
                await asyncio.to_thread(greet, path)
            first.close()
            await room.until("closed")
            (await asyncio.to_thread(greet, path))[0].close()

    run(path, test)


def test_out_of_descriptors(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a free descriptor a peer is turned away, not left to spin the loop; later ones are served."""

    async def test(room: Room, listener: Listener) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            fill = [os.open(os.devnull, os.O_RDONLY)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(fill) + 1, hard))
            try:
                while True:
                    try:
                        fill.append(os.dup(fill[0]))
                    except OSError:
                        break
                sock.connect(str(path))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert "out of file descriptors" in caplog.text
                assert sock.recv(9) == b""
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                descriptors.close_all(fill)
        (await asyncio.to_thread(greet, path))[0].close()

    run(path, test)


def test_a_peer_that_does_not_read_is_cut_off(path: Path) -> None:
    """Over the limit of unread bytes the connection ends at once; the broker keeps none of them."""

    async def test(room: Room, listener: Listener) -> None:
        sock, _fds = await asyncio.to_thread(greet, path)
        with sock:
            connection, kept = room.connections[0], []
            for _ in range(2 * MOST_BUFFERED // 2**20):
                connection.send(bytes(2**20))
                kept.append(connection.buffered)
            assert max(kept) <= MOST_BUFFERED
            assert kept[-1] == 0
            await room.until("closed")

    run(path, test)


def test_close_lets_the_last_words_out(path: Path) -> None:
    """What was sent before a close arrives, also where it is more than the kernel holds."""

    async def test(room: Room, listener: Listener) -> None:
        sock, _fds = await asyncio.to_thread(greet, path)
        with sock:
            room.connections[0].send(bytes(2**20))
            assert room.connections[0].buffered > 0
            room.connections[0].close()
            frame = await asyncio.to_thread(read_frame, sock, FrameBuffer(FROM_BROKER_LIMIT))
            assert len(frame) == 2**20
            await room.until("closed")
            assert await end_of(sock) == b""

    run(path, test)


def failure_in(data: bytes) -> Failure:
    (payload,) = FrameBuffer(FROM_BROKER_LIMIT).feed(data)
    frame = decode_from_broker(payload)
    assert isinstance(frame.body, Failure)
    assert frame.id == 0
    return frame.body


def test_a_frame_over_the_limit(path: Path) -> None:
    """A peer that announces too long a frame is told so and cut off; what it said before counts."""

    async def test(room: Room, listener: Listener) -> None:
        sock, _fds = await asyncio.to_thread(greet, path)
        with sock:
            sock.sendall(pack(b"fine", 9) + HEADER.pack(TO_BROKER_LIMIT + 1))
            failure = failure_in(await end_of(sock))
            assert failure.code == "FrameTooLong"
        assert room.frames == [(0, b"fine")]

    run(path, test)


@pytest.mark.parametrize("problem", [BadToken("not this one"), ZeroDivisionError("a bug")])
def test_a_handler_that_raises(
    path: Path, caplog: pytest.LogCaptureFixture, problem: Exception
) -> None:
    """An error of ours is sent to the peer, a bug is logged; either ends that connection and no other."""

    async def test(room: Room, listener: Listener) -> None:
        good, bad = [(await asyncio.to_thread(greet, path))[0] for _ in range(2)]
        with good, bad:
            room.frame_problem = problem
            await asyncio.to_thread(send_frame, bad, b"x")
            said = await end_of(bad)
            if isinstance(problem, GpushareError):
                assert failure_in(said) == Failure("BadToken", "not this one")
            else:
                assert said == b""
            await room.until("closed")
            room.frame_problem = None
            await asyncio.to_thread(send_frame, good, b"y")
            await room.until("frame")
            assert room.frames == [(0, b"y")]

    with caplog.at_level(logging.WARNING):
        run(path, test)
    assert ("a bug" in caplog.text) is isinstance(problem, ZeroDivisionError)


def test_a_flood_waits_its_turn(path: Path) -> None:
    """A peer that sends thousands of frames at once does not keep another's single one waiting; none is lost."""
    many = 4000

    async def test(room: Room, listener: Listener) -> None:
        loud, quiet = [(await asyncio.to_thread(greet, path))[0] for _ in range(2)]
        with loud, quiet:
            # Both are in the kernel before the loop looks again.
            loud.sendall(b"".join(pack(b"%d" % n, 9) for n in range(many)))
            quiet.sendall(pack(b"me", 9))
            for _ in range(many + 1):
                await room.until("frame")
            assert [payload for number, payload in room.frames if number == 0] == [
                b"%d" % n for n in range(many)
            ]
            assert room.frames.index((1, b"me")) < many // 2
            await asyncio.to_thread(send_frame, loud, b"again")
            await room.until("frame")

    run(path, test)


def test_a_peer_that_leaves_in_the_middle_of_a_flood(path: Path) -> None:
    """The end of a connection ends its frames: nothing reaches the handler after `on_closed`."""

    async def test(room: Room, listener: Listener) -> None:
        sock, _fds = await asyncio.to_thread(greet, path)
        with sock:
            sock.sendall(b"".join(pack(b"x", 9) for _ in range(1000)))
            await room.until("frame")
            room.connections[0].close()
            await eventually(lambda: bool(room.closed))
            seen = len(room.frames)
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(room.frames) == seen < 1000

    run(path, test)


def test_retire_with_nobody_there(path: Path) -> None:
    """The last one out: the path is free, `serve` returns, and a later connect finds nobody."""

    async def test(room: Room, listener: Listener) -> None:
        assert listener.try_retire()
        assert path not in path.parent.iterdir()
        with pytest.raises(NoBroker):
            connect(path, 1)
        await asyncio.wait_for(listener.wait_closed(), 30)

    run(path, test)


def test_retire_with_somebody_pending(path: Path) -> None:
    """Whoever has connected, or is in the middle of a hello, keeps the broker; all are served."""

    async def test(room: Room, listener: Listener) -> None:
        with connect(path, 30) as pending:
            assert not listener.try_retire()
            assert not listener.try_retire()
            await asyncio.to_thread(handshake, pending, HELLO)
        (await asyncio.to_thread(greet, path))[0].close()

    run(path, test)


def test_retire_against_a_racing_connect(path: Path) -> None:
    """One who connects between the two looks is served, one who comes after the door is shut is told that nobody is there."""

    class Raced(Listener):
        looks = 0

        def _accept(self, most: int) -> int:
            found = super()._accept(most)
            self.looks += 1
            if self.looks == 1:
                self.racer = connect(path, 1)
            elif self.looks == 2:
                with pytest.raises(NoBroker):
                    connect(path, 1)
            return found

    async def main() -> None:
        room = Room()
        before = Raced(path, 0o600)
        async with serving(path, room, before) as listener:
            assert isinstance(listener, Raced)
            assert not listener.try_retire()
            with listener.racer:
                await asyncio.to_thread(handshake, listener.racer, HELLO)
            (await asyncio.to_thread(greet, path))[0].close()

    asyncio.run(main())


def test_close_ends_handshakes(path: Path) -> None:
    """A listener that closes leaves no half greeted peer behind; a connection that is up goes on."""

    async def test(room: Room, listener: Listener) -> None:
        sock, _fds = await asyncio.to_thread(greet, path)
        await eventually(lambda: listener.handshakes == 0)
        with sock, connect(path, 30) as half:
            await eventually(lambda: listener.handshakes == 1)
            listener.close()
            assert await end_of(half) == b""
            await asyncio.to_thread(send_frame, sock, b"still here")
            await room.until("frame")

    run(path, test)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    """What a killed broker left at the path does not stop the next one (which holds the lock)."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def test(room: Room, listener: Listener) -> None:
        (await asyncio.to_thread(greet, path))[0].close()

    run(path, test)
