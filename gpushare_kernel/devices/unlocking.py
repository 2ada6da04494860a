"""Unlock many processes at once, without a loop, by workers of our own: for when the broker that locked them is gone.

The guardian keeps a few workers ready, initialised in advance; a starting broker, and a notebook server whose broker
and guardian are both gone, start some. It is also a command that does it once:
`python -P -m gpushare_kernel.devices.unlocking PID START [PID START ...]`. Imports no loop and no CUDA.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState, Reply

WORKER = (sys.executable, "-P", "-m", "gpushare_kernel.devices.cuda_worker")
"""The command of a lock worker."""
WITHIN = 0.6
"""Seconds in which workers that are ready have everybody run again (I4 gives one second in all)."""
_MOST = 16
"""Workers at once: each takes a tenth of a second of a core to start."""
_TRIES = 3
_AGAIN = 0.01
LONGEST_LINE = 200
"""Bytes of an answer of a worker, at most."""
_FAREWELL = 1.0
_left: list[subprocess.Popen[bytes]] = []  # hang still; reaped when we come by again


def start_worker(
    command: Sequence[str], line: socket.socket, *, extra: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Exec a worker whose standard input and output is `line`, in a session of its own.

    Ctrl-C at a broker in the foreground must not kill who holds locks; and which GPUs its starter sees is
    no matter of ours: a worker has no context anywhere.
    """
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [*command, *extra],
        stdin=line.fileno(),
        stdout=line.fileno(),
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
        start_new_session=True,
    )


class Caller:
    """One worker, asked in turn by somebody who polls."""

    def __init__(self, command: Sequence[str] = WORKER, *, extra: Sequence[str] = ()) -> None:
        self.line, theirs = socket.socketpair()
        try:
            self.process = start_worker(command, theirs, extra=extra)
        except OSError:
            self.line.close()
            raise
        finally:
            theirs.close()
        self._received = b""

    def ask(self, request: str, key: ProcessKey, *words: int) -> None:
        """Send a request. A worker that is gone shows at the next `take`."""
        line = " ".join(map(str, (request, key.pid, key.start_time, *words)))
        try:
            self.line.sendall(f"{line}\n".encode())
        except OSError:
            return

    def take(self) -> Reply | None:
        """Return a reply that has come; None where it is not whole yet.

        Raises
        ------
        EOFError
            Where the worker is gone, or speaks nonsense.
        """
        try:
            chunk = self.line.recv(LONGEST_LINE)
        except OSError:
            chunk = b""
        self._received += chunk
        if self._received.endswith(b"\n"):
            text, self._received = self._received.decode(errors="replace"), b""
            try:
                return Reply.parse(text)
            except ValueError:
                raise EOFError(text) from None
        if not chunk:
            raise EOFError
        return None

    def wait(self, seconds: float) -> Reply | None:
        """Wait for the next reply; None where none comes in time or the worker is gone."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.line, select.POLLIN)
        try:
            while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                if (reply := self.take()) is not None:
                    return reply
        except EOFError:
            return None
        return None

    def close(self, *, waits: float = 0.0) -> None:
        """Hang up. A worker that hangs is left behind: it unlocks what it holds when the driver answers, and ends."""
        self.line.close()
        _left.append(self.process)
        if waits:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(waits)
        _left[:] = [process for process in _left if process.poll() is None]


class Unlockers:
    """Some workers, ready in advance.

    Parameters
    ----------
    command
        How a worker is started.
    spare
        How many are started at once, before anybody is to be unlocked.
    """

    def __init__(self, command: Sequence[str] = WORKER, *, spare: int = 2) -> None:
        self._command = command
        self._callers: list[Caller] = []
        self._starting: set[Caller] = set()  # have not said yet that the driver came up
        for _ in range(spare):
            self._hire()

    def unlock(self, keys: Iterable[ProcessKey], *, within: float = WITHIN) -> list[ProcessKey]:
        """Unlock `keys` side by side, until the driver says that each runs; return those that do, or are gone.

        Not waited for: a process stopped by its user (the driver answers after SIGCONT), and whatever takes longer
        than `within` seconds.
        """
        deadline = time.monotonic() + within
        round_ = _Round(keys)
        while (round_.waiting or round_.asked) and time.monotonic() < deadline:
            self._assign(round_)
            if not self._callers:
                break
            self._listen(round_, deadline)
        for caller in round_.asked:  # the driver does not answer: it ends when it does
            self._dismiss(caller)
        return round_.done

    def close(self) -> None:
        """Hang up on all, and wait a moment for them."""
        for caller in self._callers:
            caller.line.close()
        for caller in self._callers:
            caller.close(waits=_FAREWELL)
        self._callers.clear()
        self._starting.clear()

    def _hire(self) -> None:
        caller = Caller(self._command)
        self._callers.append(caller)
        self._starting.add(caller)

    def _dismiss(self, caller: Caller) -> None:
        caller.close()
        self._starting.discard(caller)
        self._callers.remove(caller)

    def _assign(self, round_: _Round) -> None:
        idle = [c for c in self._callers if c not in round_.asked and c not in self._starting]
        for caller in idle:
            if (key := round_.next()) is None:
                return
            caller.ask("unlock", key)
            round_.asked[caller] = key
        wanted = min(len(round_.waiting), _MOST - len(self._callers)) - len(self._starting)
        for _ in range(wanted):
            if round_.starts <= 0:
                return
            round_.starts -= 1
            self._hire()

    def _listen(self, round_: _Round, deadline: float) -> None:
        busy = {c.line.fileno(): c for c in [*round_.asked, *self._starting]}
        poll = select.poll()
        for fd in busy:
            poll.register(fd, select.POLLIN)
        pause = min(deadline - time.monotonic(), _AGAIN if round_.waiting or not busy else 1.0)
        for fd, _ in poll.poll(max(0.0, pause) * 1000):
            caller = busy[fd]
            try:
                reply = caller.take()
            except EOFError:
                self._dismiss(caller)
                round_.lost(caller)
                continue
            if reply is not None:
                self._heard(round_, caller, reply)

    def _heard(self, round_: _Round, caller: Caller, reply: Reply) -> None:
        if caller in self._starting:
            self._starting.discard(caller)
            if (
                reply.answer != answers.SUCCESS
            ):  # the driver does not come up: one more try, no more
                self._dismiss(caller)
                round_.starts = min(round_.starts, 1)
            return
        key = round_.asked[caller]
        if reply.answer == answers.SUCCESS and caller not in round_.confirming:
            round_.confirming.add(caller)
            caller.ask("state", key)
            return
        round_.confirming.discard(caller)
        if reply.answer == answers.GONE or reply.state in (ProcessState.RUNNING, ProcessState.NONE):
            round_.done.append(key)
        elif reply.state is ProcessState.LOCKED:
            round_.again(key)
        # Checkpointed or failed: an unlock does not bring it back; it stays on record.
        del round_.asked[caller]


class _Round:
    """Who is still to be unlocked, and who has been."""

    def __init__(self, keys: Iterable[ProcessKey]) -> None:
        self.asked: dict[Caller, ProcessKey] = {}
        self.confirming: set[Caller] = set()  # unlocked it, and have been asked how it stands
        self.done: list[ProcessKey] = []
        self.starts = _MOST
        self._tries: dict[ProcessKey, int] = {}
        self.waiting = deque(key for key in keys if self._answers(key))

    def next(self) -> ProcessKey | None:
        """Return the next to be unlocked of whom the driver would answer."""
        while self.waiting:
            key = self.waiting.popleft()
            if self._answers(key):
                return key
        return None

    def _answers(self, key: ProcessKey) -> bool:
        """Tell whether the driver would answer: not for one that is stopped, nor for one that has ended (which is done)."""
        state = procfs.state_of(key)
        if state is None or state in procfs.ENDED:
            self.done.append(key)
            return False
        return state not in procfs.STOPPED

    def again(self, key: ProcessKey) -> None:
        """Try once more, a few times."""
        self._tries[key] = self._tries.get(key, 0) + 1
        if self._tries[key] < _TRIES:
            self.waiting.append(key)

    def lost(self, caller: Caller) -> None:
        """The worker that was asked died of it, or of something else."""
        self.confirming.discard(caller)
        key = self.asked.pop(caller, None)
        if key is not None:
            self.again(key)


def main(arguments: Sequence[str]) -> int:
    """Unlock the processes named by pid and start time; exit status 1 where one is not."""
    numbers = list(map(int, arguments))
    keys = [ProcessKey(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    workers = Unlockers(spare=min(len(keys), 2))
    done = workers.unlock(keys, within=30.0)
    workers.close()
    return 0 if len(done) == len(keys) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
