"""A broker in a thread of the test, at a real socket, with a device that does as the test says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from gpushare_kernel.broker.audit import Audit
from gpushare_kernel.broker.broker import Broker
from gpushare_kernel.broker.doorway import Doorway
from gpushare_kernel.broker.kernels import Kernel
from gpushare_kernel.broker.ledger import Ledger
from gpushare_kernel.broker.persons import Persons
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.validate import validate
from gpushare_kernel.core.values import (
    DeviceId,
    GiB,
    MoveStatus,
    PauseStatus,
    ProcessKey,
    SessionId,
    Usage,
)
from gpushare_kernel.devices.base import (
    Capabilities,
    Inventory,
    MoveOutcome,
    PauseOutcome,
    Stranger,
    Target,
)
from gpushare_kernel.transport import fds as descriptors
from gpushare_kernel.transport.channel import connect, handshake, read_frame, send_frame
from gpushare_kernel.transport.frames import HEADER, FrameBuffer, pack
from gpushare_kernel.transport.server import Listener, serve
from gpushare_kernel.transport.words import WordView
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.codec import decode_from_broker, decode_welcome, encode

LIMIT = 20.0
_T = TypeVar("_T")


class PlayedDevice:
    """A device that only writes down what it is asked, and answers what the test gave it."""

    def __init__(self, capacity: int, compute: float) -> None:
        self.inventory = Inventory(
            DeviceId("played0"), "model", "a played device", capacity, compute, 0
        )
        self.capabilities = Capabilities(can_pause=True, can_park=False)
        self.calls: list[tuple[str, int]] = []
        self.answers: dict[str, list[PauseOutcome | Exception]] = {"pause": [], "resume": []}
        self.moves: dict[str, list[MoveOutcome | Exception]] = {"park": [], "restore": []}
        #: Moves of which it was told that they are under way, and how many were when it was asked for one.
        self.under_way = 0
        self.told: list[int] = []
        #: Bytes that a park gives back.
        self.frees = 0
        #: What is parked of a process, and what its restore was to leave free.
        self.away: dict[int, int] = {}
        self.margins: list[int] = []
        #: Processes of parked ones that run, by the root's pid.
        self.later: dict[int, int] = {}
        #: While it is not set, moves do not come back.
        self.move_gate = asyncio.Event()
        self.move_gate.set()
        self.used = Usage(0.0, 0.0, 0)
        self.lost: str | None = None
        #: Whether every session seems to use the whole device all the time.
        self.busy = False
        self.taken_by_others = 0
        self.others: list[Stranger] = []
        #: Why nobody could be paused.
        self.refuses = ""
        #: While it is not set, calls do not come back.
        self.gate = asyncio.Event()
        self.gate.set()

    def usage(self, target: Target, *, memory: bool = False, active: bool = False) -> Usage | None:
        if self.busy:
            return Usage(time.monotonic(), time.monotonic(), 0)
        return self.used

    async def look(self) -> None:
        self.calls.append(("look", 0))

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def foreign(self, managed: int) -> int:
        self.managed = managed
        return self.taken_by_others

    async def pause(self, target: Target, *, limit: float) -> PauseOutcome:
        return await self._call("pause", target, PauseStatus.PAUSED)

    async def resume(self, target: Target) -> PauseOutcome:
        return await self._call("resume", target, PauseStatus.NOTHING)

    def runs_on(self, target: Target) -> str:
        return self.refuses

    async def park(self, target: Target, *, limit: float) -> MoveOutcome:
        outcome = await self._move("park", target)
        if outcome.status is MoveStatus.DONE and outcome.freed:
            self.away[target.root.pid] = outcome.freed
        return outcome

    async def bring_back(self, targets: Collection[Target], *, margin: int) -> Sequence[ProcessKey]:
        return ()

    async def restore(self, target: Target, *, margin: int) -> MoveOutcome:
        self.margins.append(margin)
        outcome = await self._move("restore", target)
        if outcome.status is MoveStatus.DONE:
            self.away.pop(target.root.pid, None)
        return outcome

    async def _move(self, what: str, target: Target) -> MoveOutcome:
        self.calls.append((what, target.root.pid))
        self.told.append(self.under_way)
        await self.gate.wait()
        await self.move_gate.wait()
        usual = MoveOutcome(MoveStatus.DONE, self.frees)
        outcome = self.moves[what].pop(0) if self.moves[what] else usual
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def parked(self, target: Target) -> int:
        return self.away.get(target.root.pid, 0)

    def loose(self, target: Target) -> int:
        return self.later.get(target.root.pid, 0)

    async def _call(self, what: str, target: Target, usual: PauseStatus) -> PauseOutcome:
        self.calls.append((what, target.root.pid))
        await self.gate.wait()
        answer = self.answers[what].pop(0) if self.answers[what] else PauseOutcome(usual)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def still(self, target: Target) -> bool:
        return True

    def utilization(self) -> None:
        return None

    @property
    def window(self) -> float:
        return 0.0

    def environment(self, needs: int = 0) -> dict[str, str]:
        return {"LAUNCHED_WITH": str(needs)} if needs else {}

    def strangers(self, targets: Collection[Target]) -> Sequence[Stranger]:
        roots = {target.root for target in targets}
        return [one for one in self.others if one.key not in roots]

    def paused(self, target: Target) -> Collection[ProcessKey]:
        return ()

    def survivors(self, target: Target) -> Sequence[ProcessKey]:
        return ()

    def close(self) -> None:
        self.calls.append(("close", 0))


class Caller:
    """One connection to the broker, from this process."""

    def __init__(
        self,
        path: Path,
        body: Any,
        fds: Sequence[int] = (),
        *,
        versions: tuple[int, ...] = msg.SPOKEN,
    ) -> None:
        self.sock = connect(path, LIMIT)
        self.view: WordView | None = None
        self._buffer = FrameBuffer(msg.FROM_BROKER_LIMIT)
        self._numbers = iter(range(1, 10**6))
        self.notices: list[msg.BrokerNotice] = []
        self.replies: dict[int, msg.Reply] = {}
        try:
            welcome, got = handshake(self.sock, msg.Hello(versions, "test", body), fds)
        except BaseException:
            self.sock.close()
            raise
        self.welcome, self.body = welcome, welcome.body
        for number, fd in enumerate(got):
            if number == 0:
                self.view = WordView(fd)
            else:
                os.close(fd)  # the tally

    def send(self, body: msg.Request) -> int:
        """Send a request, and do not wait for its reply."""
        number = next(self._numbers)
        send_frame(self.sock, encode(msg.ToBroker(msg.Kind.REQUEST, number, body)))
        return number

    def tell(self, body: msg.ClientNotice) -> None:
        """Send a notice."""
        send_frame(self.sock, encode(msg.ToBroker(msg.Kind.NOTICE, 0, body)))

    def reply(self, number: int) -> msg.Reply:
        """Wait for the reply to a request; notices and other replies that come first are kept."""
        while number not in self.replies:
            frame = decode_from_broker(read_frame(self.sock, self._buffer))
            if frame.kind is msg.Kind.NOTICE:
                self.notices.append(frame.body)  # type: ignore[arg-type]
            else:
                self.replies[frame.id] = frame.body  # type: ignore[assignment]
        return self.replies.pop(number)

    def ask(self, body: msg.Request) -> msg.Reply:
        """Send a request and return its reply."""
        return self.reply(self.send(body))

    def close(self) -> None:
        self.sock.close()
        if self.view is not None:
            self.view.close()
            self.view = None


class House:
    """A broker, its doorway and its socket, on a loop of their own."""

    def __init__(
        self,
        folder: Path,
        *,
        capacity: int = 8 * GiB,
        compute: float = 1.0,
        mode: int = 0o666,
        persons: Persons | None = None,
        **settings: Any,
    ) -> None:
        self.path = folder / "broker.sock"
        self.ledger = Ledger(folder / "ledger.sqlite")
        self._config = Config(capacity=capacity, compute=compute, **settings)
        self._mode, self._persons = mode, persons
        self._callers: list[Caller] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.broker: Broker
        self.device: PlayedDevice
        self.listener: Listener

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(self._open())
        return self

    async def _open(self) -> None:
        self.device = PlayedDevice(self._config.capacity, self._config.compute)
        self.broker = Broker(
            [(self._config, self.device)],
            self.ledger,
            system=False,
            audit=Audit(self.path.with_name("audit.jsonl")),
            persons=self._persons,
        )
        self.listener = Listener(self.path, self._mode)
        self._serving = asyncio.create_task(serve(self.listener, Doorway(self.broker).on_hello))
        await asyncio.sleep(0)

    def __exit__(self, *_: object) -> None:
        for caller in self._callers:
            caller.close()
        self.device.gate.set()
        self.device.move_gate.set()
        self.wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()
        self.ledger.close()

    async def _close(self) -> None:
        validate(self.broker.scheduler)
        await self.broker.finish()
        self.listener.close()
        await self._serving
        self.broker.hang_up()
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the broker's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT)

    def do(self, action: Callable[[], _T]) -> _T:
        """Call something on the broker's loop."""

        async def acting() -> _T:
            return action()

        return self.wait(acting())

    # --- those who call -----------------------------------------------------------------------------------

    def call(self, body: Any, fds: Sequence[int] = (), **more: Any) -> Caller:
        """Connect and say hello; the broker's error is raised."""
        caller = Caller(self.path, body, fds, **more)
        self._callers.append(caller)
        return caller

    def open(self, name: str = "hw.ipynb", **more: Any) -> msg.Opened:
        """Open a session as a provisioner does."""
        caller = self.call(msg.Open(name, **more))
        caller.close()
        assert isinstance(caller.body, msg.Opened)
        return caller.body

    def bind(self, opened: msg.Opened, pid: int = 0) -> None:
        """Bind a session to a process: this one, unless another is given."""
        fd = os.pidfd_open(pid or os.getpid())
        try:
            self.call(msg.Bind(opened.session, opened.token), [fd]).close()
        finally:
            os.close(fd)

    def attach(self, opened: msg.Opened, **more: Any) -> Caller:
        """Attach as the client in the kernel does."""
        return self.call(msg.Attach(opened.token, **more))

    def notebook(self, name: str = "hw.ipynb", **more: Any) -> Caller:
        """Open, bind to this process and attach."""
        opened = self.open(name, **more)
        self.bind(opened)
        caller = self.attach(opened)
        caller.opened = opened  # type: ignore[attr-defined]
        return caller

    def kernel(self, opened: msg.Opened) -> Kernel:
        """Return the broker's side of a session."""
        kernel = self.do(lambda: self.broker.registry.get(SessionId(opened.session)))
        assert kernel is not None
        return kernel

    def saw(self, condition: Callable[[], object]) -> None:
        """Wait until something holds on the broker's side."""
        pace = threading.Event()
        for _ in range(int(LIMIT / 0.005)):
            if self.do(condition):
                return
            pace.wait(0.005)
        message = "the broker did not come to it"
        raise AssertionError(message)

    def as_user(self, uid: int, body: Any, *requests: msg.Request) -> list[Any]:
        """Say hello (and ask) as another user: welcome and replies. Needs root."""
        frames = [pack(encode(msg.Hello(msg.SPOKEN, "test", body)), msg.TO_BROKER_LIMIT)]
        for number, request in enumerate(requests, 1):
            frames.append(
                pack(encode(msg.ToBroker(msg.Kind.REQUEST, number, request)), msg.TO_BROKER_LIMIT)
            )
        script = (
            "import socket,sys\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);s.settimeout(20)\n"
            "def frame():\n d=b''\n while len(d)<4 or len(d)<4+int.from_bytes(d[:4],'little'):\n"
            "  b=s.recv(1<<16 if len(d)>=4 else 4-len(d))\n  if not b: return\n  d+=b\n print(d[4:].hex())\n"
            "for f in sys.argv[2:]:\n s.sendall(bytes.fromhex(f)); frame()\n"
        )  # fmt: skip
        done = subprocess.run(
            ["/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable, "-I", "-S", "-c", script, str(self.path), *(f.hex() for f in frames)],
            user=uid, group=uid, extra_groups=[], cwd="/", capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        lines = [bytes.fromhex(line) for line in done.stdout.decode().split()]
        return [
            decode_welcome(lines[0]).body,
            *(decode_from_broker(line).body for line in lines[1:]),
        ]


def raw(path: Path, data: bytes, fds: Sequence[int] = ()) -> bytes:
    """Send bytes as they are; return everything that comes back."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(LIMIT)
        sock.connect(str(path))
        descriptors.send(sock, memoryview(data), fds)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while data := sock.recv(65536):
            got += data
        return got[HEADER.size :]
