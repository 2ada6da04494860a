"""A fake GPU as a `Device`: deterministic, for property tests, examples and replays.

The asynchronous methods never wait: a pause answers at once with the drain it would have taken, and
the drain itself passes in the next `advance`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import DeviceId, GiB, MoveStatus, PauseStatus, ProcessKey, Usage
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState
from gpushare_kernel.devices.base import (
    NVML_WINDOW,
    TORCH_CONTEXT,
    Busy,
    Capabilities,
    Hold,
    Intents,
    Inventory,
    MoveOutcome,
    PauseOutcome,
    Stranger,
    Target,
)
from gpushare_kernel.devices.model_gpu import ModelGpu, ModelProcess

__all__ = ["ModelDevice", "ModelProcess"]

_AGAIN = 0.1
"""Seconds that a process may drain which is locked again."""


class ModelDevice(ModelGpu):
    """A model GPU behind the device protocol; its script is inherited from `ModelGpu`.

    Parameters
    ----------
    intents
        Where a process is put on record before it is locked; None keeps no record.
    capacity
        Bytes free at the start.
    compute
        How much can run at once: 1.0 is one GPU.
    reserve
        Bytes of each process's context.
    uid
        Whose broker this is: root may lock anybody, a user their own.
    """

    def __init__(
        self,
        intents: Intents | None = None,
        *,
        capacity: int = 16 * GiB,
        compute: float = 1.0,
        reserve: int = TORCH_CONTEXT,
        uid: int = 0,
    ) -> None:
        super().__init__(size=capacity, reserve=reserve, compute=compute, uid=uid)
        self._intents = intents
        self._paused: set[ProcessKey] = set()
        self._recorded: set[ProcessKey] = set()
        self.inventory = Inventory(
            id=DeviceId("model"),
            kind="model",
            name="model GPU (simulated)",
            capacity=capacity,
            compute=compute,
            reserve=reserve,
            divisible=False,
        )
        self.capabilities = Capabilities(can_pause=True, can_park=True)

    @property
    def lost(self) -> str | None:
        """Why nothing can be said or done any more: it fell off the bus, its driver was replaced, NVML is gone."""
        for so, what in (
            (self.fallen, "is lost (fell off the bus)"),
            (self.mismatched, "has a driver that was replaced while it ran"),
            (self.nvml_gone, "does not answer NVML"),
        ):
            if so:
                return f"the model GPU {what}. Restart the machine, then the broker."
        return None

    def usage(self, target: Target, *, memory: bool = False, active: bool = True) -> Usage | None:
        """Return what the process used; None where it has ended, or nobody can measure any more."""
        if self.fallen or self.nvml_gone or target.root in self._ended:
            return None
        process = self.process(target)
        contexts = int(process.state is not ProcessState.NONE)
        held = max(0, process.resident - process.reserve) if memory else None
        active = process.device_time > process.looked_at
        process.looked_at = process.device_time
        return Usage(
            process.device_time, process.wanted, held, contexts, int(process.progress), active
        )

    async def look(self) -> None:
        """Do nothing: it knows."""

    def moving(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: it never mistakes one for the other."""
        return contextlib.nullcontext()

    def utilization(self) -> Busy | None:
        """Return how busy the device was in its last closed window of model time."""
        if self.fallen or self.nvml_gone or self.busy_before is None:
            return None
        return Busy(self.now - 2 * NVML_WINDOW, self.now, self.busy_before)

    @property
    def window(self) -> float:
        """Return the length of such a window, in model seconds."""
        return NVML_WINDOW

    def environment(self, needs: int = 0) -> Mapping[str, str]:  # noqa: ARG002
        """Return nothing: its processes are scripts."""
        return {}

    def strangers(self, targets: Collection[Target]) -> Sequence[Stranger]:
        """Return the processes with a context that are no target's."""
        known = {target.root for target in targets}
        return [
            Stranger(p.key, p.uid, p.resident, f"process {p.key.pid}")
            for p in self._processes.values()
            if p.resident and p.key not in known
        ]

    def foreign(self, managed: int) -> int:
        """Return the bytes in use beyond `managed`.

        Raises
        ------
        DeviceError
            Where the device is lost: nothing about its memory is true any more.
        """
        if self.fallen:
            raise DeviceError(self.lost)
        return max(0, self.used_memory - managed)

    async def pause(self, target: Target, *, limit: float) -> PauseOutcome:
        """Lock the process; its memory stays. The drain passes in the next `advance`."""
        if target.root in self._ended:
            return PauseOutcome(PauseStatus.GONE)
        process = self.process(target)
        if process.stopped:
            # The driver would hang far beyond the limit; whoever asks finds out when it is over.
            return PauseOutcome(PauseStatus.STOPPED, limit)
        if self._intents is not None and target.root not in self._recorded:
            self._intents.add(target.root, Hold.LOCK)
            self._recorded.add(target.root)
        answer, took = self.lock(target, limit=limit)
        status = answers.lock_status(answer, process.state)
        if status is PauseStatus.PAUSED:
            self._paused.add(target.root)
        else:
            self._forget(target.root)
        return PauseOutcome(status, took)

    async def still(self, target: Target) -> bool:
        """Lock it again where it has unlocked itself."""
        if target.root not in self._paused or target.root in self._ended or self.paused(target):
            return True
        await self.pause(target, limit=_AGAIN)
        return False

    async def resume(self, target: Target) -> PauseOutcome:
        """Unlock the process. NOTHING: nothing holds it any more."""
        if target.root in self._ended:
            return PauseOutcome(PauseStatus.GONE)
        process = self.process(target)
        if process.stopped and process.state is ProcessState.LOCKED:
            return PauseOutcome(PauseStatus.STOPPED)  # the driver answers only after SIGCONT
        status = answers.unlock_status(self.unlock(target), process.state)
        if status in (PauseStatus.NOTHING, PauseStatus.BROKEN):
            self._forget(target.root)
        return PauseOutcome(status)

    def paused(self, target: Target) -> Collection[ProcessKey]:
        """Return the process where we locked it and it has not unlocked itself."""
        if target.root in self._paused and self.process(target).state in (
            ProcessState.LOCKED,
            ProcessState.CHECKPOINTED,
        ):
            return [target.root]
        return []

    def runs_on(self, target: Target) -> str:  # noqa: ARG002
        """Return ""."""
        return ""

    async def park(self, target: Target, *, limit: float) -> MoveOutcome:
        """Lock and checkpoint it. The model takes no time for it, and no host memory; imported mappings are seen."""
        if target.root in self._ended:
            return MoveOutcome(MoveStatus.GONE)
        process = self.process(target)
        if process.imported:
            why = "it maps memory of another process, and the driver could not restore it"
            return MoveOutcome(MoveStatus.UNABLE, why=why)
        held = self.paused(target)
        if not held:
            outcome = await self.pause(target, limit=limit)
            if outcome.status is not PauseStatus.PAUSED:
                later = outcome.status in {PauseStatus.BUSY, PauseStatus.STOPPED}
                status = MoveStatus.NOT_NOW if later else MoveStatus.UNABLE
                return MoveOutcome(status, why=f"it cannot be paused: {outcome.status}")
        freed = process.resident
        self.checkpoint(target)
        return MoveOutcome(MoveStatus.DONE, freed)

    async def bring_back(self, targets: Collection[Target], *, margin: int) -> Sequence[ProcessKey]:  # noqa: ARG002
        """Nobody was parked by another broker."""
        return ()

    async def restore(self, target: Target, *, margin: int) -> MoveOutcome:
        """Restore it, where there is room in fact; it stays locked."""
        if target.root in self._ended:
            return MoveOutcome(MoveStatus.GONE)
        process = self.process(target)
        if process.state is ProcessState.CHECKPOINTED:
            if process.held + margin > self.free_memory:
                why = f"{process.held + margin} bytes are needed and {self.free_memory} are free"
                return MoveOutcome(MoveStatus.NOT_NOW, why=why)
            if self.restore_of(target) != answers.SUCCESS:
                return MoveOutcome(MoveStatus.LOST, why="the driver could not restore it")
        return MoveOutcome(MoveStatus.DONE)

    def parked(self, target: Target) -> int:
        """Return what it holds that is not on the device."""
        if target.root in self._ended:
            return 0
        process = self.process(target)
        return process.held - process.resident

    def loose(self, target: Target) -> int:  # noqa: ARG002
        """Return 0: only root processes are followed here."""
        return 0

    def kill(self, target: Target) -> None:
        """SIGKILL: at once, also while locked; the memory is freed."""
        super().kill(target)
        self._forget(target.root)

    def survivors(self, target: Target) -> Sequence[ProcessKey]:  # noqa: ARG002
        """Return nobody: only root processes are followed here."""
        return ()

    def close(self) -> None:
        """Unlock everybody whom we locked. Who is checkpointed needs room first, and stays so."""
        for key in sorted(self._paused, key=lambda key: key.pid):
            self.unlock(Target(key))
            self._forget(key)

    def _forget(self, key: ProcessKey) -> None:
        self._paused.discard(key)
        if self._intents is not None and key in self._recorded:
            self._recorded.remove(key)
            self._intents.remove(key)
