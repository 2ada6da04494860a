"""A broker of a few lines on a real socket: it answers what a test tells it to, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from gpushare_kernel import kernel_session, procfs
from gpushare_kernel.transport.words import PAUSED, WordPage
from gpushare_kernel.wire.messages import Close, Failure, Hello, Ok, Open, Opened, Restart, Welcome
from tests.procs import eventually

Body = object
Answer = Callable[[Body], "Body | None"]


@dataclass
class Asked:
    """One exchange: what was asked, and the pid behind the pidfd that came with it."""

    body: Body
    pid: int | None


def usual(body: Body) -> Body | None:
    """Answer as a broker does that has no objections."""
    if isinstance(body, Open):
        return Opened("s-1", "token-1")
    if isinstance(body, Restart):
        return Opened(body.session, body.token + "-again")
    return Ok()


class ScriptedBroker:
    """Serves one-shot exchanges in a thread until it is closed. An answer of None hangs up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Answer = usual
        self.asked: list[Asked] = []
        self.news: queue.Queue[Asked] = queue.Queue()
        self.page = WordPage.create()
        self.silent = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def kinds(self) -> list[str]:
        return [type(asked.body).__name__ for asked in self.asked]

    def bodies(self, kind: type[Body]) -> list[Body]:
        return [asked.body for asked in self.asked if isinstance(asked.body, kind)]

    def pause(self, pid: int) -> None:
        """Stop a process as a broker would: the intent first."""
        self.page.set(0, PAUSED)
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(pid) == "T")  # a busy host takes its time

    def leave(self) -> None:
        """Stop answering, as a broker that is gone."""
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self.leave()
        self.page.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                peer.settimeout(5)
                self._exchange(peer)

    def _exchange(self, peer: socket.socket) -> None:
        head, fds, _, _ = socket.recv_fds(peer, 4, 4)
        if not head:
            return
        (length,) = struct.unpack("<I", head)
        hello = msgspec.msgpack.decode(peer.recv(length, socket.MSG_WAITALL), type=Hello)
        asked = Asked(hello.body, _pid_behind(fds))
        if self.silent.is_set():
            peer.recv(1)  # until the other side gives up
            return
        self.asked.append(asked)
        answer = self.answer(hello.body)
        if answer is None:
            return
        payload = msgspec.msgpack.encode(Welcome(1, os.getpid(), "scripted", answer))
        passed = [self.page.fd] if isinstance(answer, Opened) else []
        socket.send_fds(peer, [struct.pack("<I", len(payload)) + payload], passed)
        self.news.put(asked)


def _pid_behind(fds: list[int]) -> int | None:
    pid = None
    for fd in fds:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("Pid:"):
                pid = int(line.split()[1])
        os.close(fd)
    return pid


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of our own, and Jupyter's files in a folder of the test."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    for name in kernel_session.KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return folder


@pytest.fixture
def broker(runtime: Path) -> Iterator[ScriptedBroker]:
    """A broker that answers as usual."""
    scripted = ScriptedBroker(runtime / "broker.sock")
    yield scripted
    scripted.close()


@pytest.fixture
def refusing(broker: ScriptedBroker) -> ScriptedBroker:
    """A broker that closes sessions, and refuses everything else."""
    broker.answer = lambda body: (
        Ok()
        if isinstance(body, Close)
        else Failure("Refused", "no kernel fits here. Ask for less.")
    )
    return broker
