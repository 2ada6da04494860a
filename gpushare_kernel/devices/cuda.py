"""A CUDA GPU: pause and resume by the driver's per-process lock, memory by NVML.

Pauses reach the session's root process; its memory stays resident. Driver calls are made by a worker
process per target (`cuda_worker`), because they may hang for as long as the target does not answer.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import DeviceId, MiB, PauseStatus, ProcessKey, Usage
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.base import Capabilities, Intents, Inventory, PauseOutcome, Target
from gpushare_kernel.devices.lock_link import LockLink, Reply, WorkerLost
from gpushare_kernel.devices.nvml import DeviceMemory, Nvml

WORKER = (sys.executable, "-P", "-m", "gpushare_kernel.devices.cuda_worker")
"""The command of a lock worker, without the pid."""

_RESERVE = 520 * MiB
"""The context of a torch process, before it is measured."""

_GRACE = 0.25
"""Seconds beyond the limit in which the driver should have said so."""

_UNLOCK_LIMIT = 1.0
_SAMPLE_AGE = 1.0
_FAREWELL = 2.0


class MemoryReader(Protocol):
    """What we need of NVML."""

    name: str
    uuid: str

    def memory(self) -> DeviceMemory:
        """Return the GPU's memory now."""

    def process_memory(self) -> dict[int, int]:
        """Return pid -> bytes."""

    def close(self) -> None:
        """Give the library back."""


@dataclass(slots=True)
class Gpu:
    """One GPU."""

    index: int
    uuid: str
    name: str


@dataclass(slots=True)
class _Clock:
    """Wall seconds of one session outside pauses."""

    at: float
    seconds: float = 0.0


class CudaDevice:
    """One CUDA GPU as a `Device`.

    Parameters
    ----------
    intents
        Where a process is put on record before it is locked.
    capacity
        Bytes to share; default is what is free now.
    held
        Bytes that sessions taken over from an earlier broker hold already: part of the capacity.
    nvml
        Who reads memory; default is GPU 0 through NVML.
    worker
        The command of a lock worker, to which the target's pid is added.

    Raises
    ------
    DeviceError
        Without a driver, a GPU or the package `cuda-bindings`.
    """

    def __init__(
        self,
        intents: Intents,
        *,
        capacity: int | None = None,
        held: int = 0,
        nvml: MemoryReader | None = None,
        worker: Sequence[str] = WORKER,
    ) -> None:
        if worker is WORKER:
            _need_bindings()
        self._intents = intents
        self._worker = worker
        self._nvml: MemoryReader = Nvml() if nvml is None else nvml
        self._free_at_start = self._nvml.memory().free + held
        self._links: dict[ProcessKey, LockLink] = {}
        self._leaving: list[tuple[ProcessKey, LockLink]] = []  # hung up on, not ended yet
        self._paused: set[ProcessKey] = set()
        self._recorded = set(intents.held())  # also by a broker before us, that may be held still
        self._clocks: dict[ProcessKey, _Clock] = {}
        self._sample: tuple[float, dict[int, int]] | None = None
        self.capabilities = Capabilities(
            can_pause=True,
            can_park=False,
            why="this device pauses and resumes; memory stays on the GPU",
        )
        self.inventory = Inventory(
            id=DeviceId(self._nvml.uuid),
            kind="cuda",
            name=self._nvml.name,
            capacity=self._free_at_start if capacity is None else capacity,
            compute=1.0,
            reserve=_RESERVE,
        )

    def usage(self, target: Target, *, memory: bool = False) -> Usage | None:
        """Return wall seconds outside pauses (an upper bound of its GPU time) and its tree's GPU bytes."""
        if not procfs.alive(target.root):
            self._forget(target.root)
            return None
        seconds = self._tick(target.root)
        try:
            held = self._memory_of(target) if memory else None
        except DeviceError:
            return None  # NVML is gone: nobody measures, which says nothing about the session
        return Usage(seconds, seconds, held)

    def foreign(self, managed: int) -> int:
        """Return what others took of the GPU's memory since we started."""
        spare = max(0, self._free_at_start - self.inventory.capacity)
        return max(0, self._free_at_start - self._nvml.memory().free - managed - spare)

    async def pause(self, target: Target, *, limit: float) -> PauseOutcome:
        """Lock the root process: its submitted work drains, its next CUDA call waits.

        Past `limit` the target runs on (BUSY). Where the driver does not even say so, the worker is
        left to itself: it undoes a lock that comes through late.
        """
        root = target.root
        if (standing := self._look(root)) is not None:
            return PauseOutcome(standing)
        if not self._answered(root):
            return PauseOutcome(PauseStatus.BUSY)
        if root not in self._recorded:
            self._intents.add(root)
            self._recorded.add(root)
        asked = monotonic()
        try:
            reply, asked = await self._ask(root, f"lock {round(limit * 1000)}", limit + _GRACE)
        except TimeoutError:
            status = _standing(root) or PauseStatus.BUSY
        except WorkerLost:
            status = PauseStatus.UNSUPPORTED
        except BaseException:  # cancelled: the worker was hung up on, and undoes what it did
            self._runs_again(root)
            raise
        else:
            status = answers.lock_status(reply.answer, reply.state)
            if not procfs.alive(root):
                status = PauseStatus.GONE
        if status is PauseStatus.PAUSED:
            self._tick(root)  # the drain is the locked one's
            self._paused.add(root)
        elif status is PauseStatus.GONE:
            self._forget(root)
        else:
            self._runs_again(root)
        return PauseOutcome(status, monotonic() - asked)

    async def resume(self, target: Target) -> PauseOutcome:
        """Unlock the root process, whoever held its lock for us. NOTHING: it runs."""
        root = target.root
        standing = self._look(root)
        if root not in self._recorded:
            return PauseOutcome(
                PauseStatus.GONE if standing is PauseStatus.GONE else PauseStatus.NOTHING
            )
        if standing is not None:
            return PauseOutcome(standing)
        asked = monotonic()
        try:
            reply, asked = await self._ask(root, "unlock", _UNLOCK_LIMIT)
        except TimeoutError:
            return PauseOutcome(_standing(root) or PauseStatus.BUSY, monotonic() - asked)
        except WorkerLost:
            return PauseOutcome(PauseStatus.UNSUPPORTED)
        status = answers.unlock_status(reply.answer, reply.state)
        if status in (PauseStatus.NOTHING, PauseStatus.BROKEN):
            self._runs_again(root)
        return PauseOutcome(status, monotonic() - asked)

    def paused(self, target: Target) -> Collection[ProcessKey]:
        """Return the root process where we locked it. One that unlocked itself shows at the next pause."""
        return [target.root] if target.root in self._paused and procfs.alive(target.root) else []

    def survivors(self, target: Target) -> Sequence[ProcessKey]:  # noqa: ARG002
        """Return nobody: only root processes are followed here."""
        return ()

    def close(self) -> None:
        """Hang up on all workers: each unlocks what it holds. Waits for them a moment."""
        for root in [*self._links]:
            self._hang_up(root)
        for root in [*self._paused]:
            self._runs_again(root)
        deadline = monotonic() + _FAREWELL
        for _, link in self._leaving:  # one that hangs still does its duty, after us
            link.wait(max(0.0, deadline - monotonic()))
        self._nvml.close()

    async def _ask(self, root: ProcessKey, request: str, limit: float) -> tuple[Reply, float]:
        """Ask the target's worker; return its reply and when it was asked. A lost worker is replaced once."""
        for attempt in (1, 2):
            link = self._links.get(root)
            try:
                if link is None:
                    link = self._links[root] = LockLink(self._worker, root.pid)
                    await link.ready()
                asked = monotonic()
                return await link.ask(request, limit=limit), asked
            except WorkerLost:
                self._hang_up(root)
                if attempt == 2:  # noqa: PLR2004
                    raise
            except BaseException:  # no reply in time, or the caller was cancelled
                self._hang_up(root)
                raise
        raise AssertionError

    def _look(self, root: ProcessKey) -> PauseStatus | None:
        standing = _standing(root)
        if standing is PauseStatus.GONE:
            self._forget(root)
        return standing

    def _hang_up(self, root: ProcessKey) -> None:
        link = self._links.pop(root, None)
        if link is not None:
            link.hang_up()
            self._leaving.append((root, link))

    def _answered(self, root: ProcessKey) -> bool:
        """Tell whether no earlier worker is still stuck: two would undo each other's locks."""
        self._leaving = [(key, link) for key, link in self._leaving if not link.ended()]
        return all(key != root for key, _ in self._leaving)

    def _runs_again(self, root: ProcessKey) -> None:
        self._tick(root)
        self._paused.discard(root)
        if root in self._recorded:
            self._recorded.remove(root)
            self._intents.remove(root)

    def _forget(self, root: ProcessKey) -> None:
        self._hang_up(root)
        self._runs_again(root)
        self._clocks.pop(root, None)
        self._answered(root)

    def _tick(self, root: ProcessKey) -> float:
        """Bring a session's clock up to now, and return its seconds."""
        now = monotonic()
        clock = self._clocks.setdefault(root, _Clock(now))
        if root not in self._paused:
            clock.seconds += now - clock.at
        clock.at = now
        return clock.seconds

    def _memory_of(self, target: Target) -> int:
        now = monotonic()
        if self._sample is None or now - self._sample[0] > _SAMPLE_AGE:
            self._sample = now, self._nvml.process_memory()
        held = self._sample[1]
        return sum(held.get(key.pid, 0) for key in procfs.tree(target.root.pid, target.without))


def find_gpus() -> Sequence[Gpu]:
    """Return the GPUs of this host. DeviceError where there are none, or nobody can say."""
    return [Gpu(0, Nvml().uuid, "")]


def _standing(root: ProcessKey) -> PauseStatus | None:
    """Return why the driver need not be asked: stopped by its user it would not answer."""
    state = procfs.state_of(root)
    if state is None or state in "ZX":
        return PauseStatus.GONE
    return PauseStatus.STOPPED if state in "Tt" else None


def _need_bindings() -> None:
    try:
        found = importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        msg = (
            "pausing on a CUDA GPU needs the package cuda-bindings, which is not installed. "
            "Install it for your driver: pip install 'gpushare-kernel[cuda13]' (or [cuda12])."
        )
        raise DeviceError(msg)
