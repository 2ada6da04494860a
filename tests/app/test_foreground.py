"""The command's own process: its gate, its signals, its terminal.

These tests signal their own process, as a terminal does. Another thread that blocks nothing would take that and end all of it, so they
come before all others (`no_threads`).
"""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.app.foreground import TAKEN, Child, blocked
from gpushare_kernel.client.line import Line
from tests.procs import eventually

pytestmark = pytest.mark.no_threads


class Recorder:
    """A keeper that writes down what is asked of it, and lets a stopped command run."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.child: Child | None = None

    def before_signal(self, signum: int) -> None:
        self.asked.append(signum)
        assert self.child.ended() is None
        os.kill(self.child.pid, signal.SIGCONT)

    def look(self) -> None:
        """Nothing to do."""


def test_a_paused_command_is_resumed_before_a_signal_reaches_it():
    """Stopped by the broker it would not notice: the keeper is asked first, then the signal goes out."""
    keeper = Recorder()
    with blocked() as mask:
        child = keeper.child = Child(["sleep", "600"], os.environ, mask)
        child.go()
        os.kill(child.pid, signal.SIGSTOP)
        eventually(lambda: procfs.state(child.pid) == "T")
        os.kill(os.getpid(), signal.SIGTERM)
        assert child.wait(keeper) == 128 + signal.SIGTERM
    assert keeper.asked == [signal.SIGTERM]


def test_a_command_that_signals_its_starter_does_not_get_it_back(tmp_path):
    """What comes from inside the command is not passed on to it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    class Opener(Recorder):
        def before_signal(self, signum: int) -> None:
            super().before_signal(signum)
            if signum == signal.SIGUSR2:  # the one before has been dealt with
                fifo.write_text("go\n")

    keeper = Opener()
    with blocked() as mask:
        script = (
            f"trap 'exit 3' USR1; kill -USR1 $PPID; kill -USR2 $PPID; read word < {fifo}; exit 4"
        )
        child = keeper.child = Child(["sh", "-c", script], os.environ, mask)
        child.go()
        assert child.wait(keeper) == 4
    assert keeper.asked == [signal.SIGUSR1, signal.SIGUSR2]


def test_a_gate_that_is_given_up_ends(tmp_path):
    """The command has not run; its descriptor and its process are gone."""
    fds = len([*Path("/proc/self/fd").iterdir()])
    with blocked() as mask:
        child = Child(["touch", str(tmp_path / "ran")], os.environ, mask)
    child.give_up()
    child.give_up()
    assert procfs.process_key(child.pid) is None
    assert not (tmp_path / "ran").exists()
    assert len([*Path("/proc/self/fd").iterdir()]) == fds


def test_signals_are_as_before_afterwards():
    """Ours are taken only while a command runs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with blocked():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= TAKEN
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


# --- at a terminal -----------------------------------------------------------------------------------------------

SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ, setpgroup=0, setsigdef=[signal.SIGTTOU])
os.tcsetpgrp(0, pid)
while True:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    print('stopped', flush=True)
    os.tcsetpgrp(0, os.getpgrp())
    sys.stdin.readline()
    os.tcsetpgrp(0, pid)
    os.killpg(pid, signal.SIGCONT)
print('status', os.waitstatus_to_exitcode(status), flush=True)
"""
TRAINING = """
import signal, sys
print('ready', flush=True)
times = 0
def interrupted(*_):
    global times
    times += 1
    print('interrupted', times, flush=True)
signal.signal(signal.SIGINT, interrupted)
print('typed', input(), flush=True)
print('typed', input(), flush=True)
sys.exit(6)
"""


class Terminal:
    """A terminal with a shell of ten lines in it, which runs one job in the foreground."""

    def __init__(self, *command: str) -> None:
        self.pid, self._fd = pty.fork()
        if not self.pid:
            os.execv(sys.executable, [sys.executable, "-c", SHELL, *command])
        self._seen = b""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, text: str) -> None:
        """Read on until `text` has been shown."""
        while text.encode() not in self._seen:
            self._seen += os.read(self._fd, 4096)
        self._seen = self._seen.partition(text.encode())[2]

    def job(self) -> list[procfs.ProcessKey]:
        """The processes below the shell."""
        return procfs.tree(self.pid)[1:]

    def close(self) -> None:
        for key in procfs.tree(self.pid):
            procfs.send(key, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal(broker):
    shown = Terminal(
        "-m", "gpushare_kernel.app.main", "run", "100MiB", "--", sys.executable, "-c", TRAINING
    )
    yield shown
    shown.close()


def test_keys_of_the_terminal(terminal, broker):
    """Ctrl-C reaches the command once, Ctrl-Z stops both of us and `fg` continues both, and it reads what is typed."""
    terminal.until("ready")
    terminal.type("one\n")
    terminal.until("typed one")
    terminal.type("\x03")
    terminal.until("interrupted 1")
    terminal.type("\x1a")
    terminal.until("stopped")
    eventually(lambda: [procfs.state(key.pid) for key in terminal.job()] == ["T", "T"])
    with Line(broker) as line:
        assert len(line.snapshot().sessions) == 1
    terminal.type("fg\n")
    eventually(lambda: all(procfs.state(key.pid) != "T" for key in terminal.job()))
    terminal.type("two\n")
    terminal.until("typed two")
    terminal.until("status 6")


PAUSED_STARTER = """
import os, signal, sys
from gpushare_kernel.app.foreground import Child, blocked
class Keeper:
    def before_signal(self, signum):
        os.kill(child.pid, signal.SIGCONT)
    def look(self):
        pass
with blocked() as mask:
    child = Child(["sh", "-c", "kill -STOP $$; read word; exit 8"], os.environ, mask)
    child.go()
    sys.exit(child.wait(Keeper()))
"""


def test_ctrl_z_reaches_a_command_that_was_paused():
    """Resumed for the signal, it has lost the terminal's stop: it gets one again, and does not run on behind the prompt."""
    terminal = Terminal("-c", PAUSED_STARTER)
    try:
        eventually(lambda: [procfs.state(key.pid) for key in terminal.job()][1:] == ["T"])
        terminal.type("\x1a")
        terminal.until("stopped")
        eventually(lambda: [procfs.state(key.pid) for key in terminal.job()] == ["T", "T"])
        terminal.type("fg\n")
        terminal.type("word\n")
        terminal.until("status 8")
    finally:
        terminal.close()


def test_threads_of_ours_never_take_its_signals():
    """A thread that starts while signals are blocked inherits that: they come to who waits for them."""
    with blocked():
        masks: list[set[int]] = []
        thread = threading.Thread(
            target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        )
        thread.start()
        thread.join()
    assert masks[0] >= TAKEN
