"""A command in the foreground: same terminal, signals passed on, its exit status; nothing of ours in its process.

The command is a child in our own process group, so that the terminal's keys reach it as they would without us.
It begins as a *gate*: a bare interpreter that waits for one byte, then becomes the command (exec keeps the pid).
Until then the broker can learn which process it is, and hold it up for as long as it takes.

We take signals one at a time, from `sigtimedwait`. What the terminal sent has reached the command already; what
somebody sent to us alone is passed on. Either way the command is resumed first: a paused one would not notice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from gpushare_kernel import procfs
from gpushare_kernel.kernel_session import LOOK_EVERY

NOT_FOUND, NOT_RUNNABLE = 127, 126
"""Exit statuses as shells have them."""

_GATE = """
import os, signal, sys
fd, mask, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
if not os.read(fd, 1):
    os._exit(0)
os.close(fd)
for python in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(python, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [int(one) for one in mask.split(",") if one])
try:
    os.execvp(command[0], command)
except OSError as problem:
    sys.stderr.write(f"gpushare: {command[0]}: {problem.strerror}\\n")
    os._exit(127 if isinstance(problem, FileNotFoundError) else 126)
"""
_PASSED_ON = frozenset(
    (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
    )
)
TAKEN = _PASSED_ON | {signal.SIGTSTP, signal.SIGCHLD}
"""The signals that we take while the command runs."""


class Keeper(Protocol):
    """Who looks after the command's session."""

    def before_signal(self, signum: int) -> None:
        """A signal is about to reach the command: have it run."""

    def look(self) -> None:
        """Called every other second: is all well?"""


class Child:
    """The command, as a process that waits at its gate. Made with `TAKEN` blocked: the gate takes no signal.

    Parameters
    ----------
    command
        The program and its arguments.
    env
        Its environment.
    mask
        The signals it is to block: those we blocked before we took ours.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], mask: Collection[int] = ()
    ) -> None:
        read, self._gate = os.pipe()
        masked = ",".join(str(int(signum)) for signum in mask)
        words = [sys.executable, "-I", "-S", "-c", _GATE, str(read), masked, *command]
        try:
            self._process = subprocess.Popen(words, env=env, pass_fds=[read])  # noqa: S603  what was asked for
        except BaseException:
            os.close(self._gate)
            raise
        finally:
            os.close(read)
        self.pid = self._process.pid

    def go(self) -> None:
        """Let the command begin."""
        with contextlib.suppress(BrokenPipeError):  # killed at the gate: its status will say so
            os.write(self._gate, b"\0")
        os.close(self._gate)
        self._gate = -1

    def give_up(self) -> None:
        """End it where it still waits at its gate; a command that has begun is left alone."""
        if self._gate < 0:
            return
        os.close(self._gate)
        self._gate = -1
        self._process.kill()
        self._process.wait()

    def ended(self) -> int | None:
        """Return its exit status (128 + n where signal n ended it), None while it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def wait(self, keeper: Keeper) -> int:
        """Return its exit status, once it has one. `TAKEN` must be blocked in every thread."""
        while (status := self.ended()) is None:
            came = signal.sigtimedwait(TAKEN, LOOK_EVERY)
            if came is None:
                keeper.look()
            elif came.si_signo == signal.SIGTSTP:
                keeper.before_signal(came.si_signo)
                self._stop_together()
            elif came.si_signo != signal.SIGCHLD:
                keeper.before_signal(came.si_signo)
                if came.si_code <= 0 and not procfs.is_descendant(came.si_pid, self.pid):
                    os.kill(self.pid, came.si_signo)  # not from the terminal, and not its own
        return status

    def _stop_together(self) -> None:
        """Stop (Ctrl-Z) the command and ourselves; whoever continues the group continues both.

        A process that the broker had paused has lost the terminal's signal by being continued.
        """
        ours = os.getpgrp()
        for key in procfs.tree(self.pid):
            with contextlib.suppress(OSError):
                if os.getpgid(key.pid) == ours:
                    procfs.send(key, signal.SIGTSTP)
        with unblocked({signal.SIGTSTP}):
            os.kill(os.getpid(), signal.SIGTSTP)


@contextlib.contextmanager
def blocked() -> Iterator[frozenset[int]]:
    """Block `TAKEN`; the block gets the mask that was. Threads that start in it never see them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)
    try:
        yield frozenset(int(signum) for signum in before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def unblocked(signals: Collection[int] = TAKEN) -> Iterator[None]:
    """Inside `blocked`: let signals do here what they usually do."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
