"""One session's processes, parked and restored together. docs/parking.md has the states and the rules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from time import monotonic

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MoveStatus, PauseStatus, ProcessKey
from gpushare_kernel.devices.base import MoveOutcome
from gpushare_kernel.devices.gpu_session import AGAIN, GpuSession, side_by_side, together
from gpushare_kernel.devices.mover import Move, Mover
from gpushare_kernel.devices.parkable import Refusal

Sizes = dict[ProcessKey, int]
Weigh = Callable[[Collection[ProcessKey]], Awaitable[Sizes | Refusal]]
"""Says how many bytes each of these processes, which stand still, has on the device; or why they must not be parked."""
Room = Callable[[int], Awaitable[Refusal | None]]
"""Says why the device has no room, in fact, for so many bytes; None where it has."""

_LATER = frozenset({PauseStatus.BUSY, PauseStatus.STOPPED, PauseStatus.NOTHING})
_WHY = {
    PauseStatus.BUSY: "its work on the GPU did not end in time. It is tried again when it is wanted again.",
    PauseStatus.STOPPED: "it is stopped by its user. Continue it (fg, or SIGCONT) first.",
    PauseStatus.NOTHING: "it has no GPU context: there is nothing to give back.",
    PauseStatus.UNSUPPORTED: "the driver cannot lock it now: a profiler (CUPTI) is at work, or MPS runs.",
    PauseStatus.FORBIDDEN: "it belongs to somebody whom this broker may not pause. A system broker may.",
    PauseStatus.BROKEN: "its GPU context is lost (an assert, an illegal address). Restart the kernel.",
    PauseStatus.GONE: "it has ended.",
}


class ParkingSession(GpuSession[Mover]):
    """A session that can be parked. Its calls wait for each other."""

    def parked(self) -> int:
        """Return the bytes that are parked of it, those in question included."""
        return sum(m.parked or 0 for m in self.lockers.values() if procfs.alive(m.key))

    def runs(self, key: ProcessKey) -> bool:
        """Tell whether this process is neither parked nor locked."""
        mover = self.lockers.get(key)
        return mover is None or (mover.parked is None and not mover.locked)

    def gave_back(self, key: ProcessKey) -> bool:
        """Tell whether this process has nothing on the device, context included."""
        mover = self.lockers.get(key)
        return mover is not None and mover.parked is not None and not mover.unsure

    async def park(
        self, members: Collection[ProcessKey], limit: float, weigh: Weigh, room: Room
    ) -> MoveOutcome:
        """Lock the root and `members`, then park all that have a context; all or none (K3).

        Who was paused before stays so where it does not come about, the others run again.
        """
        async with self._turn:
            movers, began = self._of([self.root, *members]), monotonic()
            before = {mover for mover in movers if mover.locked}
            try:
                outcome = await self._park(movers, limit, weigh, room)
            except BaseException:  # cancelled, or the record is full
                for mover in movers:
                    if mover not in before:
                        mover.let_go()
                raise
            if outcome.status is not MoveStatus.DONE:
                await self._undo([mover for mover in movers if mover not in before])
            freed = self.parked() if outcome.status is MoveStatus.DONE else 0
            return MoveOutcome(outcome.status, freed, monotonic() - began, outcome.why)

    async def restore(self, members: Collection[ProcessKey], room: Room) -> MoveOutcome:
        """Put back all that is parked, where there is room for all of it (K1); all of the session stands still then."""
        async with self._turn:
            began = monotonic()
            beside = [m for m in self._of([*members]) if self.runs(m.key)]
            try:  # they could take the room
                await side_by_side(mover.lock(AGAIN) for mover in beside)
                move = await self._restore(room)
            except BaseException:
                for mover in beside:
                    mover.let_go()
                raise
            if move.status is MoveStatus.DONE:
                loose = [m for m in self._of([self.root, *members]) if not m.locked]
                await side_by_side(mover.lock(AGAIN) for mover in loose)
                if not procfs.alive(self.root):
                    move = Move(MoveStatus.GONE, _WHY[PauseStatus.GONE])
            else:
                await self._undo(beside)
            return MoveOutcome(move.status, took=monotonic() - began, why=move.why)

    async def _park(self, movers: Sequence[Mover], limit: float, weigh: Weigh, room: Room) -> Move:
        paused = await side_by_side(mover.lock(limit) for mover in movers)
        status = together([each.status for each in paused])
        if PauseStatus.STOPPED in {each.status for each in paused}:
            status = (
                PauseStatus.STOPPED
            )  # one that cannot be locked with the others is not left out of this
        if status is PauseStatus.GONE:
            return Move(MoveStatus.GONE, _WHY[status])
        if status is not PauseStatus.PAUSED:
            return Move(MoveStatus.NOT_NOW if status in _LATER else MoveStatus.UNABLE, _WHY[status])
        locked = [mover for mover in movers if mover.locked]
        if not locked:  # all of it is parked already
            return Move(MoveStatus.DONE)
        sizes = await weigh([mover.key for mover in locked])
        if isinstance(sizes, Refusal):
            return Move(*sizes)
        moves = await side_by_side(mover.checkpoint(sizes[mover.key]) for mover in locked)
        failed = [move for move in moves if move.status not in {MoveStatus.DONE, MoveStatus.GONE}]
        if not failed:
            alive = procfs.alive(self.root)
            return Move(MoveStatus.DONE) if alive else Move(MoveStatus.GONE, _WHY[PauseStatus.GONE])
        worst = min(failed, key=lambda move: _GRAVEST.index(move.status))
        return await self._put_back(worst, room)

    async def _put_back(self, because: Move, room: Room) -> Move:
        """One could not be parked: the others are restored, where there is room still (K3).

        Where there is none, or nobody can tell what came of one, the session counts as parked: then only a restore,
        which looks first, brings it back.
        """
        if any(mover.unsure for mover in self.lockers.values()):
            return Move(MoveStatus.DONE, because.why)
        back = await self._restore(room)
        if back.status is MoveStatus.LOST:
            return back
        return because if not self.parked() else Move(MoveStatus.DONE, because.why)

    async def _restore(self, room: Room) -> Move:
        for mover in [m for m in self.lockers.values() if m.parked is not None]:
            status = mover.standing() or await mover.find_parked()
            if status is PauseStatus.STOPPED:
                return Move(MoveStatus.NOT_NOW, _WHY[status])
            if status not in {None, PauseStatus.PAUSED, PauseStatus.GONE}:
                why = f"nobody can say yet how process {mover.key.pid} stands: the driver has not ended what was asked before. It is tried again."
                return Move(MoveStatus.NOT_NOW, why)
        parked = [m for m in self.lockers.values() if m.parked is not None]
        if not parked:
            return Move(MoveStatus.DONE)
        refusal = await room(sum(mover.parked or 0 for mover in parked))
        if refusal is not None:
            return Move(*refusal)
        moves = await side_by_side(mover.restore() for mover in parked)
        return min(moves, key=lambda move: _GRAVEST.index(move.status))


_GRAVEST = (
    MoveStatus.LOST,
    MoveStatus.UNABLE,
    MoveStatus.NOT_NOW,
    MoveStatus.DONE,
    MoveStatus.GONE,
)
