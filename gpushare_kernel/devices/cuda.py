"""A CUDA GPU: pause and resume by the driver's per-process lock, park and restore by its checkpoint, memory and activity by NVML.

A session is its process tree; of it, those with a context count. Driver calls are made by worker processes
(`cuda_worker`), because they may hang for as long as the target does not answer; NVML is read by a thread
(`sampler`). Nothing here waits for either on the loop. docs/locking.md and docs/parking.md have the facts and the rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import DeviceId, MoveStatus, PauseStatus, ProcessKey, Usage
from gpushare_kernel.devices.answers import SICK_DRIVER
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
from gpushare_kernel.devices.crew import Crew
from gpushare_kernel.devices.mover import Mover
from gpushare_kernel.devices.nvml import GpuReader, Nvml
from gpushare_kernel.devices.parking_session import ParkingSession
from gpushare_kernel.devices.sampler import GpuUser, Sample, Sampler
from gpushare_kernel.devices.scale import Scale
from gpushare_kernel.devices.unlocking import WORKER
from gpushare_kernel.devices.verdict import Probe, Verdict, probe_capabilities, refused_by

_STALE = 1.0
"""Seconds after which a list of processes is read anew before the next pause: a child may be new."""


class CudaDevice:
    """One CUDA GPU as a `Device`.

    Parameters
    ----------
    intents
        Where a process is put on record before it is locked.
    gpu
        Its index in NVML's (PCI bus) order, or its UUID.
    capacity
        Bytes to share; default is what is free now.
    nvml
        Who reads the GPU; for tests.
    worker
        The command of a lock worker.
    probe
        What this GPU lets us do; default is to find out (half a second).

    Raises
    ------
    DeviceError
        Without a driver or such a GPU, and for one that is cut into parts (MIG).
    """

    def __init__(
        self,
        intents: Intents,
        *,
        gpu: int | str = 0,
        capacity: int | None = None,
        nvml: GpuReader | None = None,
        worker: Sequence[str] = WORKER,
        probe: Probe | None = None,
    ) -> None:
        reader: GpuReader = Nvml(gpu) if nvml is None else nvml
        info = reader.info
        refused = refused_by(info)
        if refused is not None and info.mig:
            reader.close()
            raise DeviceError(refused.text)
        try:
            found = probe or probe_capabilities(reader.info, worker=worker)
            self._sampler = Sampler(reader)
        except BaseException:
            reader.close()
            raise
        self._intents = intents
        self._crew = Crew(intents, worker)
        self._sessions: dict[ProcessKey, ParkingSession] = {}
        # By a broker before us: locked, perhaps; and parked, perhaps, by how many bytes.
        self._left_over = set(intents.held(Hold.LOCK))
        self._left_parked = _parked_before(intents)
        #: Those of them that are in no session.
        self._unclaimed: set[ProcessKey] = set()
        self._scale = Scale(self._sampler)
        self._sick: str | None = None
        first = self._sampler.now
        self._memory = first.memory
        self._free_at_start = self._memory.free
        #: Who held what when we started: no part of the capacity, until they are gone or in a session.
        self._held_at_start = {user.key: user.size for user in first.users}
        self._given = capacity
        # A driver that can lock can checkpoint and restore, too: they came with it (12.8).
        full = found.verdict is Verdict.FULL
        self.capabilities = Capabilities(can_pause=full, can_park=full, why=found.text)
        self.inventory = Inventory(
            id=DeviceId(info.uuid),
            kind="cuda",
            name=info.name,
            capacity=self._free_at_start if capacity is None else capacity,
            compute=1.0,
            reserve=TORCH_CONTEXT,
            total=info.total,
            divisible=False,
        )
        for key in self._left_over:
            if procfs.state_of(key) in procfs.STOPPED:
                self._crew.unlock_later(key)
        self._sampler.start()

    @property
    def lost(self) -> str | None:
        """Why nothing can be said or done on this GPU any more, and what to do; None while all is well."""
        return self._sick or self._sampler.lost

    # ------------------------------------------------------------ what there is to know

    def usage(self, target: Target, *, memory: bool = False, active: bool = False) -> Usage | None:
        """Return what NVML knows of the session's tree: bytes beside its contexts, contexts, whether it was at work."""
        session = self._sessions.get(target.root)
        if session is not None:
            session.settle()
        sample = self._sampler.sample
        if not procfs.alive(target.root) or sample is None:
            return None
        session = self._session(target.root)
        if self.capabilities.can_pause and len(self._sessions) > 1:
            self._crew.prepare(len(self._sessions) - 1)  # alone on the GPU nobody is ever paused
        mine = self._mine(target, session, sample)
        works = self._active(session, mine) if active else None
        if not memory:
            return Usage(0.0, 0.0, active=works)
        self._measure()
        mine = [user for user in mine if not session.gave_back(user.key)]
        held = sum(user.size for user in mine) - len(mine) * self.inventory.reserve
        return Usage(0.0, 0.0, max(0, held), len(mine), active=works, memory_at=sample.at)

    async def look(self) -> None:
        """Have NVML's list of processes read."""
        await self._sampler.fresh()

    def moving(self) -> AbstractContextManager[None]:
        """Have NVML's word of who is at work left out: it gives what a checkpoint or a restore does to whoever worked last."""
        return self._sampler.moving()

    def utilization(self) -> Busy | None:
        """Return how busy the GPU was, as last read."""
        return self._sampler.utilization()

    @property
    def window(self) -> float:
        """Return the length of NVML's window."""
        return NVML_WINDOW

    def environment(self, needs: int = 0) -> Mapping[str, str]:
        """Return what makes a kernel see this GPU only, and take its memory as it needs it; JAX reads its limit here."""
        part = min(1.0, needs / self.inventory.total) if self.inventory.total else 0.0
        return {
            **({"XLA_CLIENT_MEM_FRACTION": f"{part:.4f}"} if part > 0 else {}),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": self.inventory.id,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }

    def strangers(self, targets: Collection[Target]) -> Sequence[Stranger]:
        """Return the processes with a context that are in no session's tree."""
        return [
            Stranger(user.key, user.uid, user.size, user.name, user.display)
            for user in self._outside(target.root for target in targets)
            if procfs.alive(user.key)
        ]

    def foreign(self, managed: int) -> int:
        """Return what others took of the GPU's memory since we started, as of the last reading.

        What those of the start held and hold no more as strangers is room of ours: at most so much below 0, however
        the numbers waver. Where an administrator gave the capacity, it stays at that.
        """
        sample = self._sampler.sample
        if sample is not None:
            self._memory = sample.memory
        back = 0 if sample is None else self._given_back()
        room = self._free_at_start + back
        taken = room - self._memory.free - managed
        if self._given is not None:
            return max(0, taken - max(0, room - self._given))
        return max(0, taken) - back

    def _given_back(self) -> int:
        """Return what those held at the start who have ended, gave their contexts up, or are in a session now."""
        strangers = {user.key for user in self._outside(self._sessions)}
        return sum(size for key, size in self._held_at_start.items() if key not in strangers)

    def _outside(self, roots: Iterable[ProcessKey]) -> Iterator[GpuUser]:
        """Yield who has a context and is in none of the sessions of these roots, as last seen."""
        sample, roots = self._sampler.sample, [*roots]
        pids = {root.pid for root in roots}
        known = {key for r in roots if r in self._sessions for key in self._sessions[r].members}
        for user in () if sample is None else sample.users:
            if user.line.isdisjoint(pids) and user.key not in known:
                yield user

    # ------------------------------------------------------------ pause and resume

    async def pause(self, target: Target, *, limit: float) -> PauseOutcome:
        """Lock every process of the session that has a context: submitted work drains, the next CUDA call waits.

        All of them or none; past `limit` they run on (BUSY). The drain is that of the slowest.
        """
        if not procfs.alive(target.root):
            return PauseOutcome(PauseStatus.GONE)
        if not self.capabilities.can_pause or self.lost:
            return PauseOutcome(PauseStatus.UNSUPPORTED)
        session = self._adopted(target)
        outcome = await session.pause(self._members(target, session), limit)
        self._note_trouble(session)
        return outcome

    async def still(self, target: Target) -> bool:
        """Look whether all that we locked is locked still; lock again who is not, and who is new."""
        session = self._sessions.get(target.root)
        return session is None or await session.still(self._members(target, session))

    async def resume(self, target: Target) -> PauseOutcome:
        """Unlock whatever we (or a broker before us) locked of this session. NOTHING: all of it runs."""
        outcome = await self._adopted(target).resume()
        if outcome.status is PauseStatus.GONE:
            self._forget(target.root)
        return outcome

    def paused(self, target: Target) -> Collection[ProcessKey]:
        """Return which processes we locked. One that unlocked itself is found by `still`."""
        session = self._sessions.get(target.root)
        return () if session is None else session.locked()

    def runs_on(self, target: Target) -> str:  # noqa: ARG002
        """Return ""."""
        return ""

    async def park(self, target: Target, *, limit: float) -> MoveOutcome:
        """Lock the session and checkpoint it, where nothing speaks against it and the host has room for its bytes (docs/parking.md)."""
        if not procfs.alive(target.root):
            return MoveOutcome(MoveStatus.GONE)
        if not self.capabilities.can_park:
            why = self.capabilities.why or "gpushare does not park on this GPU."
            return MoveOutcome(MoveStatus.UNABLE, why=why)
        if (lost := self.lost) is not None:
            return MoveOutcome(MoveStatus.NOT_NOW, why=lost)
        session = self._adopted(target)
        members = self._members(target, session)
        barred = await self._scale.barred([target.root, *members])
        if barred is not None:
            return MoveOutcome(barred.status, why=barred.why)
        outcome = await session.park(members, limit, self._scale.weigh, self._scale.room)
        self._note_moved(session, outcome)
        await self._sampler.fresh()  # what is said of its memory from now on is no older than this
        return outcome

    async def restore(self, target: Target, *, margin: int) -> MoveOutcome:
        """Restore what is parked of the session, where the GPU has room for it and `margin` bytes by a reading made now."""
        if not procfs.alive(target.root):
            return MoveOutcome(MoveStatus.GONE)
        if (lost := self.lost) is not None:
            return MoveOutcome(MoveStatus.NOT_NOW, why=lost)
        session = self._adopted(target)
        members = self._members(target, session)
        outcome = await session.restore(members, lambda size: self._scale.room(size, margin))
        self._note_moved(session, outcome)
        await self._sampler.fresh()
        return outcome

    async def bring_back(self, targets: Collection[Target], *, margin: int) -> Sequence[ProcessKey]:
        """Restore whom a broker before us parked and nobody knows any more, each where there is room for it twice."""
        known = {target.root.pid for target in targets}
        self._unclaimed |= self._left_parked.keys()
        self._unclaimed = {key for key in self._unclaimed if not procfs.is_below(key.pid, known)}
        back = []
        for key in [*self._unclaimed]:
            target = Target(key)
            outcome = await self.restore(target, margin=self.parked(target) + 2 * margin)
            if outcome.status is MoveStatus.DONE:
                if (await self.resume(target)).status is not PauseStatus.NOTHING:
                    continue  # asked for again
                back.append(key)
            if outcome.status in {MoveStatus.DONE, MoveStatus.GONE, MoveStatus.LOST}:
                self._unclaimed.discard(key)
                self._forget(key)
        return back

    def parked(self, target: Target) -> int:
        """Return the bytes that are parked of the session; those that a broker before us wrote down, too."""
        return self._adopted(target).parked()

    def loose(self, target: Target) -> int:
        """Return how many processes of a parked session NVML last named that run: children of later than the park."""
        session, sample = self._adopted(target), self._sampler.sample
        users = () if sample is None else self._mine(target, session, sample)
        return sum(
            session.runs(user.key) and not user.display and procfs.alive(user.key) for user in users
        )

    def survivors(self, target: Target) -> Sequence[ProcessKey]:
        """Return the processes with a context that outlived their root; forget the rest."""
        session = self._sessions.get(target.root)
        if session is None or procfs.alive(target.root):
            return ()
        for key, mover in [*session.lockers.items()]:
            if mover.parked is not None and procfs.alive(
                key
            ):  # whose session it will be restores it
                self._left_parked[key] = mover.parked
                del session.lockers[key]
        session.settle()  # who was parked is resumed by nobody: it leaves the record here
        self._forget(target.root)
        return procfs.topmost(session.members, target.without)

    def close(self) -> None:
        """Hang up on all workers: each unlocks what it holds. Waits for them a moment."""
        for session in self._sessions.values():
            session.close()
        self._crew.close()
        for session in self._sessions.values():
            session.settle()
        self._sampler.close()

    # ------------------------------------------------------------ whose is what

    def _session(self, root: ProcessKey) -> ParkingSession:
        session = self._sessions.get(root)
        if session is None:
            session = self._sessions[root] = ParkingSession(root, self._locker)
        return session

    def _locker(self, key: ProcessKey) -> Mover:
        recorded, parked = key in self._left_over, self._left_parked.pop(key, None)
        self._left_over.discard(key)
        return Mover(key, self._intents, self._crew, recorded=recorded, parked=parked)

    def _adopted(self, target: Target) -> ParkingSession:
        """Return the session, with those of its tree whom a broker before us may have locked, or parked."""
        session = self._session(target.root)
        for key in [*self._left_over, *self._left_parked]:
            mine = key == target.root or procfs.is_descendant(key.pid, target.root.pid)
            if mine and not procfs.is_below(key.pid, target.without):
                session.adopt(self._locker(key))
        return session

    def _mine(self, target: Target, session: ParkingSession, sample: Sample) -> list[GpuUser]:
        """Return who of the session has a context; remember them, for when their parent ends before them."""
        mine = [
            user
            for user in sample.users
            if user.below(target.root.pid, target.without)
            or (user.key in session.members and user.line.isdisjoint(target.without))
        ]
        children = {user.key: None for user in mine if user.key != target.root}
        left = {key: None for key in session.members if key in children or procfs.alive(key)}
        session.members = left | children
        return mine

    def _members(self, target: Target, session: ParkingSession) -> list[ProcessKey]:
        """Return whom to lock beside the root. Who draws a screen is never touched."""
        sample = self._sampler.sample
        if sample is None:
            return [key for key in session.members if procfs.alive(key)]
        self._sampler.hurry(older_than=_STALE)
        return [
            user.key
            for user in self._mine(target, session, sample)
            if user.key != target.root and not user.display and procfs.alive(user.key)
        ]

    def _active(self, session: ParkingSession, mine: Collection[GpuUser]) -> bool | None:
        """Tell whether NVML saw it at work since it was last asked; None where it has not looked again yet."""
        if not mine:
            return False
        activity = self._sampler.want_activity()
        if activity is None or activity.reading == session.reading:
            return None
        if activity.blurred:
            session.reading = activity.reading
            return None
        stamp = max((activity.stamps.get(user.key.pid, 0) for user in mine), default=0)
        first, before = session.reading < 0, session.stamp
        session.reading, session.stamp = activity.reading, max(stamp, before)
        return None if first else stamp > before

    def _measure(self) -> None:
        """Put the size that contexts really have in the place of the estimate."""
        # Small programs have smaller ones; whoever is to come is taken for a framework.
        seen = max(self._sampler.context or 0, TORCH_CONTEXT)
        if seen != self.inventory.reserve:
            self.inventory = dataclasses.replace(self.inventory, reserve=seen)

    def _note_trouble(self, session: ParkingSession) -> None:
        answers = [each.trouble for each in session.lockers.values() if each.trouble in SICK_DRIVER]
        if answers:
            self._sick = (
                f"the CUDA driver does not come up ({answers[0]}): it was replaced, or the GPU is gone. "
                "Restart the machine, then the broker."
            )

    def _note_moved(self, session: ParkingSession, outcome: MoveOutcome) -> None:
        self._note_trouble(session)
        if (
            outcome.status is MoveStatus.GONE
        ):  # it ended in the middle, and nobody asks about it again
            session.settle()
            self._forget(session.root)

    def _forget(self, root: ProcessKey) -> None:
        session = self._sessions.get(root)
        if session is not None and not session.holds:
            del self._sessions[root]


def _parked_before(intents: Intents) -> dict[ProcessKey, int]:
    """Return who is on record as parked, and lives."""
    held = intents.held(Hold.PARK)
    for key in held:
        if not procfs.alive(key):
            intents.remove(key)
    return {key: intents.size(key) for key in held if procfs.alive(key)}
