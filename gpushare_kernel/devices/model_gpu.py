"""A GPU and its driver in miniature, as measured on an H200 with driver 580, without threads or a clock.

Time passes only in `advance`. Scripting methods play the target process: its CUDA calls answer with
a `Call`. Driver calls (`lock`, `unlock`, `checkpoint`, `restore_of`) answer with a name of `CUresult`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState
from gpushare_kernel.devices.base import NVML_WINDOW, Target


class Call(StrEnum):
    """What a CUDA call of a target comes to."""

    DONE = "done"
    OUT_OF_MEMORY = "out-of-memory"
    WAITS = "waits"  # locked or checkpointed: the call blocks inside the driver, without the GIL
    FAILED = "failed"  # the context is broken, or the process lost, or the device


@dataclass(slots=True)
class ModelProcess:
    """One process as the driver knows it."""

    key: ProcessKey
    uid: int
    state: ProcessState = ProcessState.NONE
    reserve: int = 0
    persistent: int = 0
    ephemeral: int = 0
    demand: float = 0.0  # of the device, while it may run
    depth: float = 0.0  # seconds of submitted work whenever it is busy: what a lock has to drain
    still_at: float = 0.0  # when a lock's drain ends; it runs on until then
    broken: bool = False
    profiled: bool = False
    mps: bool = False
    stopped: bool = False
    imported: bool = False
    device_time: float = 0.0
    wanted: float = 0.0
    rate: float = 0.0  # boundaries a second alone; 0 where it meets none that can be seen
    progress: float = 0.0  # boundaries met
    looked_at: float = 0.0  # its device time when it was last asked for

    @property
    def held(self) -> int:
        """Bytes of its context and allocations, wherever they are."""
        return self.reserve + self.persistent + self.ephemeral

    @property
    def resident(self) -> int:
        """Bytes of it that are on the device: a lock moves none, a checkpoint all."""
        parked = self.state in (ProcessState.CHECKPOINTED, ProcessState.FAILED)
        return 0 if parked else self.held


class ModelGpu:
    """The device, its driver, and a script for the processes that use it."""

    def __init__(self, *, size: int, reserve: int, compute: float, uid: int) -> None:
        self.now = 0.0
        self.size = size
        #: How busy the device was in its last closed window, and since this one began.
        self.busy_before: float | None = None
        self._busy = 0.0
        self._window_ends = NVML_WINDOW
        self.fallen = False
        self.mismatched = False
        self.nvml_gone = False
        self._reserve = reserve
        self._compute = compute
        self._uid = uid
        self._others = 0
        self._processes: dict[ProcessKey, ModelProcess] = {}
        self._ended: set[ProcessKey] = set()

    # ------------------------------------------------------------ what targets do

    def launch(self, target: Target, *, uid: int = 1000) -> ModelProcess:
        """Start a process; it has no context until its first CUDA call."""
        self._ended.discard(target.root)
        process = self._processes[target.root] = ModelProcess(target.root, uid)
        return process

    def kill(self, target: Target) -> None:
        """SIGKILL: a locked or checkpointed process dies at once too, and its memory is freed."""
        self._processes.pop(target.root, None)
        self._ended.add(target.root)

    def allocate(self, target: Target, *, persistent: int = 0, ephemeral: int = 0) -> Call:
        """Take device memory; the first call creates the context. All of it or none."""
        process, call = self._enter(target)
        if process is None:
            return call
        if persistent + ephemeral > self.free_memory:
            return Call.OUT_OF_MEMORY
        process.persistent += persistent
        process.ephemeral += ephemeral
        return Call.DONE

    def release(self, target: Target, *, persistent: int = 0, ephemeral: int = 0) -> Call:
        """Give device memory back; a call like any other: a locked process cannot."""
        process, call = self._enter(target)
        if process is None:
            return call
        process.persistent = max(0, process.persistent - persistent)
        process.ephemeral = max(0, process.ephemeral - ephemeral)
        return Call.DONE

    def work(self, target: Target, *, demand: float, depth: float = 0.0) -> Call:
        """Want `demand` of the device from now on, `depth` seconds of work submitted ahead; 0 ends it."""
        process, call = self._enter(target)
        if process is not None:
            process.demand, process.depth = demand, depth
        return call

    def self_unlock(self, target: Target) -> str:
        """Cheat: a process may unlock itself, from any of its threads."""
        return self._unlock(self.process(target))

    def break_context(self, target: Target) -> None:
        """Meet a device-side assert: the context is lost, neighbours are untouched."""
        self.process(target).broken = True

    # ------------------------------------------------------------ what happens around them

    def advance(self, seconds: float) -> None:
        """Let time pass: who may run shares the device, nobody above its demand, the rest max-min."""
        while seconds > 0:
            ends = [p.still_at - self.now for p in self._processes.values()]
            ends.append(self._window_ends - self.now)
            step = min([seconds, *(end for end in ends if end > 0)])
            self._run(step)
            self.now += step
            seconds -= step
            if self.now >= self._window_ends:
                self.busy_before, self._busy = self._busy / NVML_WINDOW, 0.0
                self._window_ends = self.now + NVML_WINDOW

    def set_foreign(self, size: int) -> int:
        """Let processes that are nobody's session hold `size`; they get at most what is free."""
        self._others = min(size, self._others + self.free_memory)
        return self._others

    def lose_device(self) -> None:
        """The GPU falls off the bus: all contexts and what they hold are gone."""
        self.fallen = True
        for process in self._processes.values():
            if process.state is not ProcessState.NONE:
                process.broken = True
                process.reserve = process.persistent = process.ephemeral = 0

    @property
    def used_memory(self) -> int:
        """Bytes in use on the device, by anybody."""
        return self._others + sum(process.resident for process in self._processes.values())

    @property
    def free_memory(self) -> int:
        """Bytes anybody could still take."""
        return max(0, self.size - self.used_memory)

    def process(self, target: Target) -> ModelProcess:
        """Return the process of a target; one never launched is there, without a context.

        Raises
        ------
        KeyError
            Where it was killed.
        """
        if target.root in self._ended:
            raise KeyError(target.root)
        return self._processes.get(target.root) or self.launch(target)

    # ------------------------------------------------------------ what the driver does

    def lock(self, target: Target, *, limit: float) -> tuple[str, float]:
        """Lock a process; return the answer and the seconds it took: the drain, or the limit."""
        process = self.process(target)
        if self.mismatched:
            return "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", 0.0
        if (refusal := self._refusal(process)) is not None:
            return refusal, 0.0
        if process.state is not ProcessState.RUNNING:
            return answers.ILLEGAL_STATE, 0.0
        drain = process.depth if process.demand > 0 else 0.0
        if drain > limit:
            return answers.NOT_READY, limit
        process.state, process.still_at = ProcessState.LOCKED, self.now + drain
        return answers.SUCCESS, drain

    def unlock(self, target: Target) -> str:
        """Unlock a process, whoever locked it: the lock outlives its locker."""
        process = self.process(target)
        if not self._allowed(process):
            return answers.OPERATING_SYSTEM
        return self._unlock(process)

    def checkpoint(self, target: Target) -> str:
        """Move a locked process's device memory to its host memory. Imported mappings do not stop it."""
        process = self.process(target)
        if not self._allowed(process):
            return answers.OPERATING_SYSTEM
        if process.state is not ProcessState.LOCKED:
            return answers.ILLEGAL_STATE
        process.state = ProcessState.CHECKPOINTED
        return answers.SUCCESS

    def restore_of(self, target: Target) -> str:
        """Move it back; it stays locked. Without room, or with imported mappings, the process is lost."""
        process = self.process(target)
        if process.state is ProcessState.FAILED or not self._allowed(process):
            return answers.OPERATING_SYSTEM
        if process.state is not ProcessState.CHECKPOINTED:
            return answers.ILLEGAL_STATE
        if process.imported or process.held > self.free_memory:
            process.state = ProcessState.FAILED
            return answers.NOT_SUPPORTED if process.imported else answers.OUT_OF_MEMORY
        process.state = ProcessState.LOCKED
        return answers.SUCCESS

    def _enter(self, target: Target) -> tuple[ModelProcess | None, Call]:
        """Enter the driver from inside the target: None and why, where the call does not come through."""
        process = self.process(target)
        if self.fallen or process.broken or process.state is ProcessState.FAILED:
            return None, Call.FAILED
        if process.state in (ProcessState.LOCKED, ProcessState.CHECKPOINTED) or process.stopped:
            return None, Call.WAITS
        if process.state is ProcessState.NONE:
            if self._reserve > self.free_memory:
                return None, Call.OUT_OF_MEMORY
            process.state, process.reserve = ProcessState.RUNNING, self._reserve
        return process, Call.DONE

    def _refusal(self, process: ModelProcess) -> str | None:
        if not self._allowed(process):
            return answers.OPERATING_SYSTEM
        if process.state is ProcessState.NONE:
            return answers.NOT_INITIALIZED
        if process.broken:
            return answers.ASSERT
        return answers.NOT_SUPPORTED if process.profiled or process.mps else None

    def _allowed(self, process: ModelProcess) -> bool:
        return self._uid in (0, process.uid)

    def _unlock(self, process: ModelProcess) -> str:
        if process.state is ProcessState.NONE:
            return answers.NOT_INITIALIZED
        if process.state is not ProcessState.LOCKED:
            return answers.ILLEGAL_STATE
        process.state, process.still_at = ProcessState.RUNNING, 0.0
        return answers.SUCCESS

    def _run(self, seconds: float) -> None:
        left = self._compute
        running = [p for p in self._processes.values() if self._runs(p)]
        running.sort(key=lambda p: p.demand)
        for place, process in enumerate(running):
            share = min(process.demand, left / (len(running) - place))
            left -= share
            self._busy += share * seconds / self._compute
            process.device_time += share * seconds
            process.wanted += process.demand * seconds
            process.progress += process.rate * share / process.demand * seconds

    def _runs(self, process: ModelProcess) -> bool:
        draining = process.state is ProcessState.LOCKED and self.now < process.still_at
        able = process.state is ProcessState.RUNNING and not process.stopped
        return process.demand > 0 and not process.broken and (able or draining)
