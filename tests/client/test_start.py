"""Starting a broker: one however many ask, nobody's child, and a clear reason where it does not come up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.client import revive, start
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import BrokerUnavailable, NoBroker
from gpushare_kernel.transport.channel import connect
from gpushare_kernel.transport.launch import environment
from gpushare_kernel.transport.locks import free, locked
from gpushare_kernel.transport.peers import peer_of
from gpushare_kernel.transport.places import Places
from tests.procs import eventually

BROKER = '''
"""A listener with a broker's manners: it takes the lock, says that it is ready, and writes down what it is."""
import asyncio, fcntl, json, os, sys
from pathlib import Path
from gpushare_kernel.core.errors import NoBroker
from gpushare_kernel.transport.launch import report_failure, report_ready
from gpushare_kernel.transport.places import places
from gpushare_kernel.transport.server import Listener, serve

async def refuse(payload, fds, peer):
    raise NoBroker("only listening")

async def main():
    here, ready = places(), int(sys.argv[sys.argv.index("--ready-fd") + 1])
    lock = os.open(here.broker_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with (here.runtime / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\\n")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report_failure(ready, "another broker lives here")
        sys.exit(1)
    listener = Listener(here.socket, 0o600)
    report_ready(ready)
    (here.runtime / "facts").write_text(json.dumps({
        "args": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ), "sid": os.getsid(0), "pid": os.getpid(),
        "open": sorted(str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()),
    }))
    print("output after that goes nowhere, and does no harm", file=sys.stderr, flush=True)
    await serve(listener, refuse)

asyncio.run(main())
'''


class Starter:
    """A folder for a broker, and the command that is one."""

    def __init__(self, runtime: Path) -> None:
        self.places = Places(runtime, system=False, named=True)
        script = runtime.parent / "broker.py"
        script.write_text(BROKER)
        self.command = (sys.executable, "-P", str(script))

    def ensure(self, *args: str, timeout: float = 60) -> None:
        ensure_broker(self.places, timeout, args, command=self.command)

    def starts(self) -> list[int]:
        return [int(line) for line in (self.places.runtime / "starts").read_text().split()]

    def end(self) -> None:
        """End the brokers that were started; they are nobody's children, so their locks tell that they are gone."""
        with contextlib.suppress(FileNotFoundError):
            for pid in self.starts():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        eventually(lambda: free(self.places.broker_lock))


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    """Give a starter, and end what it started."""
    starter = Starter(tmp_path / "run")
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(tmp_path / "run"))
    yield starter
    starter.end()


def in_children(count: int, work: object) -> list[int]:
    """Run `work` in so many processes at the same moment; return their exit codes."""
    gate, opener = os.pipe()
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(opener)
                os.read(gate, 1)  # returns for all of them when the last writer is gone
                work()  # type: ignore[operator]
                code = 0
            except BaseException as error:  # noqa: BLE001
                os.write(2, f"{error!r}\n".encode())
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(opener)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.close(gate)
    return codes


def test_thirty_at_once_start_one(starter: Starter) -> None:
    """Thirty processes that need a broker at the same moment all get one, and it is the same."""
    assert in_children(30, starter.ensure) == [0] * 30
    assert len(starter.starts()) == 1


def test_thirty_at_once_start_one_real_broker(starter: Starter) -> None:
    """The same with the broker itself, guardian and all: everybody meets the same process, and it ends cleanly."""
    read, write = os.pipe()

    def meet() -> None:
        ensure_broker(starter.places, 60)
        with connect(starter.places.socket, 60) as sock:
            os.write(write, b"%10d" % peer_of(sock).pid)

    assert in_children(30, meet) == [0] * 30
    os.close(write)
    met = os.read(read, 1000)
    os.close(read)
    brokers = {int(met[at : at + 10]) for at in range(0, len(met), 10)}
    assert len(met) == 300
    assert len(brokers) == 1
    os.kill(brokers.pop(), signal.SIGTERM)
    eventually(lambda: free(starter.places.broker_lock))
    assert not starter.places.socket.exists()


def test_a_broker_that_is_just_going_is_waited_for(starter: Starter) -> None:
    """One without a socket that still has its lock is on its way out: the next starts when it is gone."""
    starter.places.runtime.mkdir(mode=0o700)
    gone, leave = os.pipe()
    with locked(starter.places.broker_lock, 1):
        pid = os.fork()
        if pid == 0:
            os.close(leave)
            os.read(gone, 1)
            os._exit(0)  # the forked child shares the lock, and is the last to hold it
    os.close(gone)
    late = threading.Timer(0.1, os.close, [leave])
    late.start()
    starter.ensure()
    late.join()
    os.waitpid(pid, 0)
    assert len(starter.starts()) == 1


def test_a_lock_whose_holder_does_not_answer(starter: Starter) -> None:
    """To the deadline nobody listens, but somebody holds the lock: it is named, and nothing is started."""
    starter.places.runtime.mkdir(mode=0o700)
    with (
        locked(starter.places.broker_lock, 1),
        pytest.raises(
            BrokerUnavailable, match=r"a broker holds the lock .*broker\.lock and does not answer"
        ),
    ):
        starter.ensure(timeout=0.05)
    assert not (starter.places.runtime / "starts").exists()


def test_a_living_broker_is_used(starter: Starter) -> None:
    """The second call starts nothing, also beside somebody who holds the start lock."""
    starter.ensure()
    with locked(starter.places.start_lock, 1):
        starter.ensure(timeout=1)
    assert len(starter.starts()) == 1


def test_a_killed_broker_is_replaced(starter: Starter) -> None:
    """Its socket is still there, but nobody listens: a new one is started."""
    starter.ensure()
    starter.end()
    assert starter.places.socket.exists()
    starter.ensure()
    assert len(starter.starts()) == 2


def test_it_is_a_daemon(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is in nobody's process tree or session, keeps no descriptor of ours, and knows no secret of ours."""
    for name in (
        "JUPYTERHUB_API_TOKEN",
        "JPY_PARENT_PID",
        "GPUSHARE_TOKEN",
        "GPUSHARE_SESSION",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with (
        socket.socket() as ours,
        locked(starter.places.runtime.parent / "a lock of ours", 1),
    ):
        os.set_inheritable(ours.fileno(), True)
        starter.ensure("--device", "model")
    facts_file = starter.places.runtime / "facts"
    eventually(lambda: facts_file.exists() and facts_file.read_text().endswith("}"))
    facts = json.loads(facts_file.read_text())
    assert facts["args"][:2] == ["--device", "model"]
    assert facts["cwd"] == "/"
    assert "secret" not in facts["environment"].values()
    assert facts["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert facts["environment"]["GPUSHARE_RUNTIME_DIR"] == str(starter.places.runtime)
    assert facts["sid"] not in (os.getsid(0), 0)
    assert not procfs.is_descendant(facts["pid"], os.getpid())
    sockets = [link for link in facts["open"] if link.startswith("socket:")]
    assert len(sockets) == 3, facts["open"]  # its listener, and the loop's own pair
    assert not [
        link
        for link in facts["open"]
        if "lock of ours" in link or "start.lock" in link or link.startswith("pipe:")
    ]


def test_the_environment_is_an_allow_list() -> None:
    """What is not known to be needed does not reach the broker."""
    ours = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "XDG_RUNTIME_DIR": "/run",
        "HUB_TOKEN": "x",
        "GPUSHARE_SOCKET": "/s",
        "PYTHONPATH": "/p",
    }
    assert set(environment(ours)) == {"PATH", "LC_ALL", "XDG_RUNTIME_DIR", "PYTHONPATH"}


def python(code: str) -> tuple[str, ...]:
    """Return a command that runs `code`, which finds the pipe's number in `fd`."""
    return (sys.executable, "-c", "import os, sys; fd = int(sys.argv[-1])\n" + code)


def test_a_broker_that_fails(starter: Starter) -> None:
    """Its own words are in the error, with the end of its log; the lock is free again for the next."""
    starter.places.runtime.mkdir(mode=0o700)
    starter.places.log.write_text(
        "".join(f'{{"time": "t{n}", "level": "error", "message": "line {n}"}}\n' for n in range(9))
        + "not json\n"
    )
    with pytest.raises(BrokerUnavailable) as caught:
        ensure_broker(starter.places, 60, command=python("raise ValueError('no device: none')"))
    text = str(caught.value)
    assert "did not start: Traceback" in text
    assert "ValueError: no device: none" in text
    assert "t8 error: line 8\n  not json" in text
    assert "line 4" not in text
    assert free(starter.places.start_lock)


def test_a_broker_that_says_why(starter: Starter) -> None:
    """A reason given through the pipe is the whole text: nobody has to look for it in a log."""
    code = "from gpushare_kernel.transport.launch import report_failure; report_failure(fd, 'capacity is zero')"
    with pytest.raises(BrokerUnavailable, match=r"did not start: capacity is zero$"):
        ensure_broker(starter.places, 60, command=python(code))


def test_a_broker_that_ends_without_a_word(starter: Starter) -> None:
    """Silence is named, too, and so is a program that is not there."""
    with pytest.raises(BrokerUnavailable, match="ended without a word"):
        ensure_broker(starter.places, 60, command=python("sys.exit(3)"))
    with pytest.raises(BrokerUnavailable, match="No such file or directory"):
        ensure_broker(starter.places, 60, command=("/nowhere/python",))


def test_a_broker_that_is_late(starter: Starter) -> None:
    """The wait has an end, with its number; the broker is left alone (it may still come up)."""
    pid_file = starter.places.runtime / "pid"
    code = f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\nimport signal; signal.pause()"
    with pytest.raises(BrokerUnavailable, match="was started, but was not ready within"):
        ensure_broker(starter.places, 0.5, command=python(code))
    eventually(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    assert procfs.state(pid) in ("S", "R")
    os.kill(pid, signal.SIGKILL)


def test_somebody_else_is_starting_for_ever(starter: Starter) -> None:
    """Waiting for the start lock has an end, too."""
    starter.places.runtime.mkdir(mode=0o700)
    with (
        locked(starter.places.start_lock, 1),
        pytest.raises(BrokerUnavailable, match=r"somebody else has been starting .* for 0\.05 s"),
    ):
        starter.ensure(timeout=0.05)


def test_a_lock_that_cannot_be_opened(starter: Starter) -> None:
    """On a read-only disk, say: callers that go on without a broker see what they know, not an OSError."""
    starter.places.start_lock.mkdir(mode=0o700, parents=True)
    starter.places.runtime.chmod(0o700)
    with pytest.raises(BrokerUnavailable, match=r"start\.lock cannot be opened: Is a directory"):
        starter.ensure()


def test_a_lock_that_cannot_be_opened_ends_no_reader(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that has lost its broker looks for the next one; where none can be started it goes on without."""
    starter.places.start_lock.mkdir(mode=0o700, parents=True)
    starter.places.runtime.chmod(0o700)
    monkeypatch.setattr(revive, "places", lambda: starter.places)
    monkeypatch.setattr(revive, "may_revive", lambda _: True)
    monkeypatch.setattr(revive, "_starting", None)
    revive.revive(starter.places.socket)
    assert revive._starting is None


def test_a_broker_lock_that_cannot_be_opened(starter: Starter) -> None:
    """Nor is it taken for free, or for a broker's."""
    starter.places.broker_lock.mkdir(mode=0o700, parents=True)
    starter.places.runtime.chmod(0o700)
    with pytest.raises(BrokerUnavailable, match=r"broker\.lock cannot be opened: Is a directory"):
        starter.ensure()
    starter.places.broker_lock.rmdir()


def test_none_may_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a system installation a user is told whom to ask, and nothing is made."""
    monkeypatch.setattr(start, "may_start", lambda _: False)
    with pytest.raises(NoBroker, match="only its administrator may start one"):
        ensure_broker(Places(tmp_path / "system", system=True), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_planted_folder_starts_nothing(starter: Starter) -> None:
    """The refusal of the folder comes before anything is run or locked in it."""
    starter.places.runtime.mkdir()
    starter.places.runtime.chmod(0o777)
    with pytest.raises(BrokerUnavailable, match="others may write to it"):
        starter.ensure()
    assert list(starter.places.runtime.iterdir()) == []
