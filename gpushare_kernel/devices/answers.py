"""What the CUDA driver answers, and what that means for a pause: one table for the real and the model GPU.

Measured meanings; names as `CUresult` has them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Self

from gpushare_kernel.core.values import PauseStatus

SUCCESS = "CUDA_SUCCESS"
NOT_READY = "CUDA_ERROR_NOT_READY"
NOT_INITIALIZED = "CUDA_ERROR_NOT_INITIALIZED"
NOT_SUPPORTED = "CUDA_ERROR_NOT_SUPPORTED"
OPERATING_SYSTEM = "CUDA_ERROR_OPERATING_SYSTEM"
ILLEGAL_STATE = "CUDA_ERROR_ILLEGAL_STATE"
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
ASSERT = "CUDA_ERROR_ASSERT"
GONE = "GONE"
"""Not the driver's: the worker found that the process has ended, and did not ask."""


class ProcessState(StrEnum):
    """`CUprocessState` in words; NONE is a process without a context."""

    NONE = "none"
    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"


class Reply(NamedTuple):
    """A worker's line: what the driver answered, and how the target stands."""

    answer: str
    state: ProcessState

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line; ValueError where it is none."""
        answer, state = line.split()
        return cls(answer, ProcessState(state))


UNHELD = frozenset({PauseStatus.BUSY, PauseStatus.NOTHING, PauseStatus.GONE})
"""What comes of a lock where the driver has said that nothing holds the process."""
UNDONE = frozenset({PauseStatus.NOTHING, PauseStatus.BROKEN, PauseStatus.GONE})
"""What comes of an unlock where nothing is left to be undone."""

_STATUS_OF = {
    SUCCESS: PauseStatus.PAUSED,
    NOT_READY: PauseStatus.BUSY,
    NOT_INITIALIZED: PauseStatus.NOTHING,
    NOT_SUPPORTED: PauseStatus.UNSUPPORTED,
    OPERATING_SYSTEM: PauseStatus.FORBIDDEN,
    GONE: PauseStatus.GONE,
}

SICK_DRIVER = frozenset(
    {
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "CUDA_ERROR_NO_DEVICE",
    }
)
"""The driver fails us, not the target: we cannot pause, and the target runs on."""


def lock_status(answer: str, state: ProcessState) -> PauseStatus:
    """Return what the answer to a lock means; `state` is the process's afterwards.

    ILLEGAL_STATE says that it was not RUNNING: locked by a broker before us it stands still, as asked.
    Any other error is one of the target's context (an assert, an illegal address), which is lost.
    """
    if answer == ILLEGAL_STATE:
        still = state in (ProcessState.LOCKED, ProcessState.CHECKPOINTED)
        return PauseStatus.PAUSED if still else PauseStatus.BROKEN
    if answer in SICK_DRIVER:
        return PauseStatus.UNSUPPORTED
    return _STATUS_OF.get(answer, PauseStatus.BROKEN)


def unlock_status(answer: str, state: ProcessState) -> PauseStatus:
    """Return what the answer to an unlock means: NOTHING where nothing holds the process any more.

    ILLEGAL_STATE of a running process is a second unlock, and harmless.
    """
    if answer in (SUCCESS, NOT_INITIALIZED):
        return PauseStatus.NOTHING
    if answer == ILLEGAL_STATE:
        return {
            ProcessState.RUNNING: PauseStatus.NOTHING,
            ProcessState.NONE: PauseStatus.NOTHING,
            ProcessState.LOCKED: PauseStatus.BUSY,  # a lock came through just now
            ProcessState.CHECKPOINTED: PauseStatus.UNSUPPORTED,  # it must be restored first
        }.get(state, PauseStatus.BROKEN)
    status = lock_status(answer, state)
    if status is PauseStatus.BROKEN and state not in (ProcessState.RUNNING, ProcessState.NONE):
        return PauseStatus.BUSY  # nobody has said that it runs
    return status
