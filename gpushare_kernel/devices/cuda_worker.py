"""The process that locks, parks, restores and unlocks CUDA processes: `python -P -m gpushare_kernel.devices.cuda_worker`.

It is exec'ed, not forked (cuInit does not survive a fork), has no context and no GPU memory. One line
in (`lock PID START MILLISECONDS`; `unlock`, `state`, `checkpoint` and `restore` with PID START), one line out
(`ANSWER STATE`), the first unasked: cuInit's answer. START is the process's start time: a pid that has been reused is not
asked about. The driver may hang far beyond its limit (a target in SIGSTOP): one worker at a time serves one target.

When the line ends, by the broker's will or its death, the worker unlocks what it locked and exits: a
lock never outlives the broker. That holds for a lock that comes through only after the line ended, and for a process
that was just being restored. Who is CHECKPOINTED is left so: a restore needs room that nobody has looked for, and one
that fails loses the process (K6). Its exit status is 0 only where it knows of nobody that stands still, in either way.

With `--lockable` it lets anybody of its user lock it, whatever Yama says: the counterpart of a self-test.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Protocol

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState, Reply

LOCKABLE = "--lockable"
_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)


class Driver(Protocol):
    """The calls of the driver that a worker makes; answers are names of `CUresult`."""

    def init(self) -> str:
        """Initialise the driver in this process."""

    def lock(self, pid: int, milliseconds: int) -> str:
        """Let a process drain and keep it out of the driver from then on."""

    def unlock(self, pid: int) -> str:
        """Let it in again."""

    def checkpoint(self, pid: int) -> str:
        """Move the device memory of a locked process into its host memory; takes seconds."""

    def restore(self, pid: int) -> str:
        """Move it back; the process stays locked. Where there is no room for it, it is lost."""

    def state(self, pid: int) -> ProcessState:
        """Tell how the process stands."""


class CudaDriver:
    """The driver on this machine, through `cuda.bindings` (which is optional)."""

    def __init__(self) -> None:
        from cuda.bindings import driver  # noqa: PLC0415 - the only place that needs it

        self._cu: Any = driver
        states = driver.CUprocessState
        self._states = {
            states.CU_PROCESS_STATE_RUNNING: ProcessState.RUNNING,
            states.CU_PROCESS_STATE_LOCKED: ProcessState.LOCKED,
            states.CU_PROCESS_STATE_CHECKPOINTED: ProcessState.CHECKPOINTED,
            states.CU_PROCESS_STATE_FAILED: ProcessState.FAILED,
        }

    def init(self) -> str:
        """Call cuInit; a machine without a driver answers as one without a device."""
        try:
            return self._name(self._cu.cuInit(0))
        except RuntimeError:  # the bindings' loader does not find libcuda
            return "CUDA_ERROR_NO_DEVICE"

    def lock(self, pid: int, milliseconds: int) -> str:
        """Call cuCheckpointProcessLock. Its limit 0 would mean for ever."""
        args = self._cu.CUcheckpointLockArgs()
        args.timeoutMs = max(1, milliseconds)
        try:
            return self._name(self._cu.cuCheckpointProcessLock(pid, args))
        except RuntimeError:  # a driver before 12.8 has no such function
            return answers.NOT_SUPPORTED

    def unlock(self, pid: int) -> str:
        """Call cuCheckpointProcessUnlock."""
        return self._call("Unlock", pid)

    def checkpoint(self, pid: int) -> str:
        """Call cuCheckpointProcessCheckpoint."""
        return self._call("Checkpoint", pid)

    def restore(self, pid: int) -> str:
        """Call cuCheckpointProcessRestore."""
        return self._call("Restore", pid)

    def _call(self, name: str, pid: int) -> str:
        try:
            return self._name(getattr(self._cu, f"cuCheckpointProcess{name}")(pid, None))
        except RuntimeError:
            return answers.NOT_SUPPORTED

    def state(self, pid: int) -> ProcessState:
        """Call cuCheckpointProcessGetState."""
        try:
            error, *state = self._cu.cuCheckpointProcessGetState(pid)
        except RuntimeError:
            return ProcessState.RUNNING  # such a driver has no locks
        if error.name == answers.NOT_INITIALIZED:
            return ProcessState.NONE
        return self._states.get(state[0], ProcessState.FAILED) if state else ProcessState.FAILED

    @staticmethod
    def _name(result: tuple[Any, ...]) -> str:
        return str(result[0].name)


class Worker:
    """Answers requests, and knows what it has locked, and whether the one it was asked about last is parked."""

    def __init__(self, driver: Driver, alive: Callable[[ProcessKey], bool] = procfs.alive) -> None:
        self._driver = driver
        self._alive = alive
        self._holds: set[ProcessKey] = set()
        self._parked: ProcessKey | None = None
        self._requests: dict[str, Callable[[ProcessKey], Reply]] = {
            "unlock": self._undo,
            "checkpoint": self._checkpoint,
            "restore": self._restore,
            "state": self._state,
        }

    def serve(self, requests: IO[str], replies: IO[str]) -> bool:
        """Answer requests until they end, then unlock what is still locked; tell whether that is all undone."""
        answer = self._driver.init()
        _say(Reply(answer, ProcessState.NONE), replies)
        if answer != answers.SUCCESS:
            return False
        with suppress(ConnectionResetError):  # it ended with a reply of ours unread
            for line in requests:
                _say(self.answer(line), replies)
        for key in [*self._holds]:
            self._undo(key)
        return not self._holds and self._parked is None

    def answer(self, line: str) -> Reply:
        """Carry one request out."""
        command, pid, start, *words = line.split()
        key = ProcessKey(int(pid), int(start))
        self._parked = None
        if not self._alive(key):
            self._holds.discard(key)
            return Reply(answers.GONE, ProcessState.NONE)
        if command == "lock":
            reply = self._lock(key.pid, int(words[0]))
            self._note(key, held=reply.state is ProcessState.LOCKED)
        else:
            reply = self._requests[command](key)
        if reply.state is ProcessState.CHECKPOINTED:
            self._holds.discard(key)
            self._parked = key
        return reply

    def _state(self, key: ProcessKey) -> Reply:
        reply = Reply(answers.SUCCESS, self._driver.state(key.pid))
        if (
            reply.state is ProcessState.LOCKED
        ):  # by a worker that is gone, say: now it is ours to undo
            self._note(key, held=True)
        return reply

    def _checkpoint(self, key: ProcessKey) -> Reply:
        return self._moved(key, self._driver.checkpoint(key.pid), ProcessState.CHECKPOINTED)

    def _restore(self, key: ProcessKey) -> Reply:
        return self._moved(key, self._driver.restore(key.pid), ProcessState.LOCKED)

    def _moved(self, key: ProcessKey, answer: str, then: ProcessState) -> Reply:
        """A move was answered; `then` is how the process stands where it went well."""
        done = answer == answers.SUCCESS
        reply = Reply(answer, then if done else self._driver.state(key.pid))
        self._note(key, held=reply.state is ProcessState.LOCKED)
        return reply

    def _lock(self, pid: int, milliseconds: int) -> Reply:
        answer = self._driver.lock(pid, milliseconds)
        if answer == answers.SUCCESS:
            return Reply(answer, ProcessState.LOCKED)
        # Only ILLEGAL_STATE leaves a question; asking more would cost 0.1 ms each time.
        open_question = answer == answers.ILLEGAL_STATE
        return Reply(answer, self._driver.state(pid) if open_question else ProcessState.RUNNING)

    def _undo(self, key: ProcessKey) -> Reply:
        """Unlock it; where that does not come about, it is tried once more in the end."""
        if not self._alive(key):
            self._holds.discard(key)
            return Reply(answers.GONE, ProcessState.NONE)
        answer = self._driver.unlock(key.pid)
        done = answer == answers.SUCCESS
        reply = Reply(answer, ProcessState.RUNNING if done else self._driver.state(key.pid))
        self._note(key, held=answers.unlock_status(*reply) not in answers.UNDONE)
        return reply

    def _note(self, key: ProcessKey, *, held: bool) -> None:
        if held:
            self._holds.add(key)
        else:
            self._holds.discard(key)


def _say(reply: Reply, replies: IO[str]) -> None:
    """Nobody need listen any more: what was asked for is done all the same."""
    with suppress(BrokenPipeError, ConnectionResetError):
        print(*reply, file=replies, flush=True)


def main() -> bool:
    """Serve the line that is our standard input and output."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(
            signum, signal.SIG_IGN
        )  # who ends a service's whole group ends us by the line
    if LOCKABLE in sys.argv[1:]:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
    return Worker(CudaDriver()).serve(sys.stdin, sys.stdout)


if __name__ == "__main__":
    os._exit(
        0 if main() else 1
    )  # what could not be written to a line that ended must not be flushed once more
