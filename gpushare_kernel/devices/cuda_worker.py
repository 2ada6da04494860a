"""The process that locks and unlocks one CUDA process: `python -P -m gpushare_kernel.devices.cuda_worker PID`.

It is exec'ed, not forked (cuInit does not survive a fork), has no context and no GPU memory. One line
in (`lock MILLISECONDS`, `unlock`), one line out (`ANSWER STATE`), the first unasked: cuInit's answer.
The driver may hang far beyond its limit (a target in SIGSTOP), which is why each target has its own.

When the line ends, by the broker's will or its death, the worker unlocks what it locked and exits: a
lock never outlives the broker. That holds for a lock that comes through only after the line ended.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO, Any, Protocol

from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState


class Driver(Protocol):
    """The four calls of the driver that a worker makes; answers are names of `CUresult`."""

    def init(self) -> str:
        """Initialise the driver in this process."""

    def lock(self, pid: int, milliseconds: int) -> str:
        """Let a process drain and keep it out of the driver from then on."""

    def unlock(self, pid: int) -> str:
        """Let it in again."""

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
        return self._name(self._cu.cuCheckpointProcessUnlock(pid, None))

    def state(self, pid: int) -> ProcessState:
        """Call cuCheckpointProcessGetState."""
        error, *state = self._cu.cuCheckpointProcessGetState(pid)
        if error.name == answers.NOT_INITIALIZED:
            return ProcessState.NONE
        return self._states.get(state[0], ProcessState.FAILED) if state else ProcessState.FAILED

    @staticmethod
    def _name(result: tuple[Any, ...]) -> str:
        return str(result[0].name)


def serve(driver: Driver, pid: int, requests: IO[str], replies: IO[str]) -> None:
    """Answer requests about `pid` until they end, then leave it unlocked."""
    answer = driver.init()
    holds = False
    with suppress(BrokenPipeError, ConnectionResetError):
        print(answer, ProcessState.NONE, file=replies, flush=True)
        if answer != answers.SUCCESS:
            return
        for line in requests:
            command, *words = line.split()
            if command == "lock":
                answer = driver.lock(pid, int(words[0]))
                state = _after_lock(driver, pid, answer)
                holds = state is ProcessState.LOCKED
            else:
                answer = driver.unlock(pid)
                done = answer == answers.SUCCESS
                state = ProcessState.RUNNING if done else driver.state(pid)
                holds = state is ProcessState.LOCKED
            print(answer, state, file=replies, flush=True)
    if holds:
        driver.unlock(pid)


def _after_lock(driver: Driver, pid: int, answer: str) -> ProcessState:
    if answer == answers.SUCCESS:
        return ProcessState.LOCKED
    # Only ILLEGAL_STATE leaves a question; asking more would cost 0.1 ms each time.
    return driver.state(pid) if answer == answers.ILLEGAL_STATE else ProcessState.RUNNING


if __name__ == "__main__":
    serve(CudaDriver(), int(sys.argv[1]), sys.stdin, sys.stdout)
    os._exit(0)  # what could not be written to a line that ended must not be flushed once more
