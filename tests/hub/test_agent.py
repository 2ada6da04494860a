"""The other end of a gateway's connection, as a real process at a real broker; and what a snapshot tells a placement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import __version__, procfs
from gpushare_kernel.core.values import GiB
from gpushare_kernel.hub import agent
from gpushare_kernel.hub.placement import DeviceState
from gpushare_kernel.hub.report import (
    FORMAT,
    Answer,
    Done,
    Failed,
    Greeting,
    Launch,
    Launched,
    Look,
    Question,
    Seen,
    Signal,
    encode,
    key_of,
    read_answer,
    read_greeting,
    states,
)
from gpushare_kernel.wire.snapshot import DeviceView, QueueView, SessionView, Snapshot
from tests.faults.conftest import host
from tests.procs import eventually

__all__ = ["host"]


class Talk:
    """An agent, asked as a gateway asks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpushare_kernel.hub.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def line(self) -> bytes:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def write(self, line: bytes) -> None:
        """Say something to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def ask(self, question: Question) -> Answer:
        """Ask it."""
        self.write(encode(question))
        return read_answer(self.line())

    def close(self) -> int:
        """End its input; how it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(20)
        self.process.stdout.close()
        return code


@pytest.fixture
def talk(host) -> Iterator[Talk]:
    """An agent beside a real broker."""
    host.start()
    one = Talk()
    yield one
    if one.process.poll() is None:
        one.close()


def test_it_greets_says_how_the_host_is_and_ends_with_its_input(talk):
    """One line each way."""
    assert read_greeting(talk.line()) == Greeting(FORMAT, __version__, agent.driver())
    seen = talk.ask(Look())
    assert isinstance(seen, Seen)
    assert (seen.trouble, seen.gone) == ("", ())
    assert [(one.wanting, one.sessions) for one in seen.devices] == [(0, 0)]
    assert talk.close() == 0


def test_what_it_starts_is_a_session_of_this_hosts_broker_and_outlives_it(talk, host, tmp_path):
    """Its process is the session's, its environment what was passed, its output in the log; a signal reaches it; its end is told."""
    talk.line()
    code = "import os, sys, time; print(os.environ['HELLO'], os.environ['GPUSHARE_SESSION'], flush=True); time.sleep(600)"
    log = tmp_path / "kernel.log"
    env = {"HELLO": "there", "JPY_SESSION_NAME": "hw2.ipynb", "KERNEL_ID": "k-1"}
    started = talk.ask(Launch((sys.executable, "-c", code), env, str(log)))
    assert isinstance(started, Launched)
    eventually(lambda: log.read_text().startswith("there "))
    [session] = host.snapshot().sessions
    assert (session.name, session.pid) == ("hw2.ipynb", started.process[0])
    assert session.id in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    seen = talk.ask(Look((started.process,)))
    assert isinstance(seen, Seen)
    assert seen.gone == ()
    assert seen.devices[0].sessions == 1
    talk.close()
    assert procfs.alive(key_of(started.process))  # it outlives the connection
    again = Talk()
    again.line()
    assert again.ask(Signal(started.process, signal.SIGTERM)) == Done(there=True)
    eventually(lambda: not procfs.alive(key_of(started.process)))
    assert again.ask(Look((started.process,))).gone == (started.process,)  # type: ignore[union-attr]
    assert again.ask(Signal(started.process, signal.SIGTERM)) == Done(there=False)
    again.close()
    eventually(lambda: not host.snapshot().sessions)


def test_one_that_ends_at_once_says_why(talk, tmp_path):
    """With the last line of its log."""
    talk.line()
    log = tmp_path / "kernel.log"
    started = talk.ask(Launch((sys.executable, "-c", "import nonesuch"), {}, str(log)))
    assert isinstance(started, Launched)
    eventually(lambda: talk.ask(Look((started.process,))).gone == (started.process,))
    done = talk.ask(Signal(started.process, 0))
    assert done == Done(there=False, said="ModuleNotFoundError: No module named 'nonesuch'")


def test_a_planted_log_is_not_written_to(talk, tmp_path):
    """Whoever else may write to the folder of logs can put a link there."""
    talk.line()
    victim, log = tmp_path / "victim", tmp_path / "kernel.log"
    victim.write_text("mine")
    log.symlink_to(victim)
    answer = talk.ask(Launch((sys.executable, "-c", "print('yours')"), {}, str(log)))
    assert isinstance(answer, Failed)
    assert str(log) in answer.why
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("line", [b"what?", b'{"type": "dance"}', b'{"type": "signal", "process": ["a", 1], "number": 9}'])  # fmt: skip
def test_what_it_cannot_read_it_says_and_goes_on(talk, line):
    """A gateway of another version is told so."""
    talk.line()
    talk.write(line)
    answer = read_answer(talk.line())
    assert isinstance(answer, Failed)
    assert answer.why.startswith("the question cannot be read: ")
    assert isinstance(talk.ask(Look()), Seen)


def test_it_ends_where_nobody_asks():
    """A connection that was cut says nothing."""
    source, gateway = os.pipe()
    answers, sink = os.pipe()
    try:
        agent.serve(source, sink, unasked=0.05)
        assert read_greeting(os.read(answers, 4096)).gpushare == FORMAT
    finally:
        for fd in (source, gateway, answers, sink):
            os.close(fd)


def test_no_broker_is_an_idle_host_where_one_may_be_started(tmp_path, monkeypatch):
    """And trouble where it may not."""
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(tmp_path / "run"))
    assert agent.Agent().answer(Look()) == Seen()
    monkeypatch.setattr(agent, "may_start", lambda _: False)
    seen = agent.Agent().answer(Look())
    assert isinstance(seen, Seen)
    assert "only root may start one there" in seen.trouble


def test_the_driver_is_read_from_the_kernel(tmp_path: Path):
    """Without a process, and without NVML."""
    file = tmp_path / "version"
    assert agent.driver(file) == ""
    file.write_text("580.65.06\n")
    assert agent.driver(file) == "580.65.06"


def test_what_a_snapshot_tells_a_placement():
    """Who works, who waits for memory and how long at most, who is there; a device that is lost is none."""

    def session(name: str, mode: str | None, device: str = "g0") -> SessionView:
        return SessionView(name, "ann", None, None, "idle", mode, None, 0.0, device)

    def device(name: str, lost: str | None = None) -> DeviceView:
        return DeviceView(name, "cuda", name, 16 * GiB, 0, 0, (), free=5 * GiB, lost=lost)

    def waits(name: str, eta: float | None) -> QueueView:
        return QueueView(f"{name}/1", name, "memory", 0, eta)

    sessions = (session("a", "exclusive"), session("b", None), session("c", None), session("d", "alone", "g1"))  # fmt: skip
    shot = Snapshot(
        1, None, (device("g0"), device("g1"), device("g2", "gone")), sessions, (waits("b", 40.0),)
    )
    assert states(shot) == (
        DeviceState("cuda", 16 * GiB, 5 * GiB, wanting=2, waiting=1, sessions=3, wait=40.0),
        DeviceState("cuda", 16 * GiB, 5 * GiB, wanting=1, waiting=0, sessions=1, wait=0.0),
    )
    unknown = Snapshot(1, None, (device("g0"),), sessions, (waits("b", 40.0), waits("c", None)))
    assert states(unknown)[0].wait is None
