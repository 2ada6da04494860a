"""The broker under a service manager: what systemd is told, and who is resumed when it was killed. Real processes; systemd is played."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.broker import service
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.broker.ledger import Ledger
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller
from tests.procs import eventually

PATIENCE = 60.0
START = [sys.executable, "-P", "-m", "gpushare_kernel.broker", "--service", "--device", "host", "--capacity", "1GiB"]  # fmt: skip
UNDO = [sys.executable, "-P", "-m", "gpushare_kernel.broker.service"]


class Manager:
    """As much of systemd as there is to it: starts the broker, hears it, and runs ExecStopPost."""

    def __init__(self, folder: Path) -> None:
        self.places = Places(folder / "run", system=False, named=True)
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.bind(str(folder / "notify"))
        self.heard.settimeout(PATIENCE)
        self.env = {**os.environ, "GPUSHARE_RUNTIME_DIR": str(self.places.runtime)}
        self.stopped: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        """Start the broker, in the same words each time."""
        self.broker = subprocess.Popen(START, env={**self.env, "NOTIFY_SOCKET": self.heard.getsockname()})  # fmt: skip
        assert self.hear() == "READY=1"
        # A process has no words for a moment, while it becomes another program.
        eventually(self._guardians)
        (self.guardian,) = self._guardians()
        self.guardian_fd = os.pidfd_open(self.guardian)

    def _guardians(self) -> list[int]:
        return [pid for pid in procfs.children(self.broker.pid) if b"broker.guardian" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip

    def hear(self) -> str:
        return self.heard.recv(100).decode()

    def undo(self) -> str:
        """Run what the unit runs after the broker."""
        done = subprocess.run(UNDO, env=self.env, capture_output=True, text=True, check=True, timeout=PATIENCE)  # fmt: skip
        assert done.stdout == ""
        return done.stderr

    def paused(self) -> ProcessKey:
        """A process that stands still, on this broker's record."""
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.stopped.append(process)
        key = procfs.process_key(process.pid)
        assert key is not None
        table = IntentTable.open_existing(self.places.intents)
        assert table is not None
        table.add(key)
        table.close()
        procfs.send(key, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        return key

    def guardian_is_gone(self) -> None:
        poll = select.poll()
        poll.register(self.guardian_fd, select.POLLIN)
        assert poll.poll(PATIENCE * 1000), "the guardian is still there"

    def close(self) -> None:
        self.broker.kill()
        self.broker.wait()
        self.guardian_is_gone()
        os.close(self.guardian_fd)
        for process in self.stopped:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self.heard.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A broker that systemd has started."""
    made = Manager(tmp_path)
    yield made
    made.close()


def kept_policies(places: Places) -> list[str]:
    """What is on disk: that lags a few milliseconds behind what is answered."""
    with closing(Ledger(places.ledger)) as ledger:
        return [policy for _, policy in ledger.load().policies]


def runs(key: ProcessKey) -> bool:
    return procfs.state(key.pid) not in {"T", None}


def test_it_says_when_it_is_ready_and_when_it_goes(manager: Manager) -> None:
    """SIGTERM is an orderly end: status 0, so that on-failure starts no other, and no guardian stays."""
    manager.broker.terminate()
    assert manager.hear() == "STOPPING=1"
    assert manager.broker.wait(PATIENCE) == 0
    manager.guardian_is_gone()
    assert manager.undo() == ""


def test_a_killed_broker_leaves_nobody_paused_and_its_start_to_systemd(manager: Manager) -> None:
    """The guardian resumes, and goes; there is no other broker, whose place the service's would find taken."""
    key = manager.paused()
    manager.broker.kill()
    manager.broker.wait()
    manager.guardian_is_gone()
    assert runs(key)
    lock = os.open(manager.places.broker_lock, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    assert manager.undo() == ""


@pytest.mark.parametrize(("ends", "policy"), [("kill", "fifo"), ("terminate", "fair")])
def test_what_was_chosen_meanwhile_holds_after_a_crash_only(
    manager: Manager, ends: str, policy: str
) -> None:
    """systemd starts it in the same words after either: what the one before noted at its start tells them apart."""
    asks = Caller(manager.places.socket, msg.Observe())
    assert asks.ask(msg.SetPolicy("fifo")) == msg.Ok()
    eventually(lambda: kept_policies(manager.places) == ["fifo"])
    getattr(manager.broker, ends)()
    manager.broker.wait(PATIENCE)
    asks.close()
    manager.guardian_is_gone()
    os.close(manager.guardian_fd)
    if ends == "terminate":
        assert manager.hear() == "STOPPING=1"
    manager.start()
    asks = Caller(manager.places.socket, msg.Observe())
    reply = asks.ask(msg.GetSnapshot())
    asks.close()
    assert isinstance(reply, msg.SnapshotReply)
    assert [one.policy for one in reply.snapshot.devices] == [policy]


def test_after_broker_and_guardian_were_killed_the_unit_resumes(manager: Manager) -> None:
    """ExecStopPost finds who is on record, says how many, and a second time nobody."""
    keys = [manager.paused(), manager.paused()]
    os.kill(manager.guardian, signal.SIGSTOP)  # or it would be faster
    manager.broker.kill()
    manager.broker.wait()
    os.kill(manager.guardian, signal.SIGKILL)
    manager.guardian_is_gone()
    assert not any(map(runs, keys))
    assert "resumed 2 processes that were left paused: " in manager.undo()
    eventually(lambda: all(map(runs, keys)))
    assert manager.undo() == ""


def test_beside_a_living_broker_nobody_is_resumed(manager: Manager) -> None:
    """A start that failed because one lives has an ExecStopPost, too."""
    key = manager.paused()
    assert "nobody is resumed" in manager.undo()
    assert not runs(key)


def test_a_second_broker_is_refused_and_says_why(manager: Manager) -> None:
    """Its service fails, and the first goes on."""
    second = subprocess.run(START, env=manager.env, capture_output=True, text=True, timeout=PATIENCE, check=False)  # fmt: skip
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert manager.broker.poll() is None


@pytest.mark.parametrize("address", ["", "nonsense", "/nowhere/at/all"])
def test_nobody_to_tell_is_no_failure(monkeypatch: pytest.MonkeyPatch, address: str, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Started by hand, or by a manager that has gone."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    service.tell("READY=1")
    assert ("systemd was not told" in capsys.readouterr().err) is address.startswith("/")


def test_an_abstract_address_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0gpushare-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@gpushare-test-{os.getpid()}")
        service.tell("READY=1")
        assert sock.recv(100) == b"READY=1"
