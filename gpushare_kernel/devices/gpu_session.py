"""One session's processes on a GPU: locked together or not at all, because they may wait for each other (NCCL, cudaIpc)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Generic, TypeVar

from gpushare_kernel import procfs
from gpushare_kernel.core.values import PauseStatus, ProcessKey
from gpushare_kernel.devices.answers import UNDONE
from gpushare_kernel.devices.base import PauseOutcome
from gpushare_kernel.devices.locker import Locker

AGAIN = 0.1
"""Seconds that a process may drain which is locked again, or is new in a paused session."""

_RUNS_ON = (PauseStatus.BUSY, PauseStatus.UNSUPPORTED, PauseStatus.FORBIDDEN)
"""One of its processes cannot be paused: then none is. The first that applies is said."""

_T = TypeVar("_T")
_L = TypeVar("_L", bound=Locker)


class GpuSession(Generic[_L]):
    """The lockers of one session. Its three calls wait for each other.

    Parameters
    ----------
    root
        Its root process: always asked about, since the driver knows of a context before NVML tells us.
    locker
        Makes the locker of a process.
    """

    def __init__(self, root: ProcessKey, locker: Callable[[ProcessKey], _L]) -> None:
        self.root = root
        self.lockers: dict[ProcessKey, _L] = {}
        #: Processes with a context that were seen in its tree, the root excluded.
        self.members: dict[ProcessKey, None] = {}
        #: The newest time stamp of its work, and the reading of activities that it was last asked about.
        self.stamp, self.reading = 0, -1
        self._locker = locker
        self._turn = asyncio.Lock()

    async def pause(self, members: Collection[ProcessKey], limit: float) -> PauseOutcome:
        """Lock the root and `members` side by side; all of them, as far as there is anything to lock, or none.

        Where it is none, what cannot be undone now stays on record: `resume` is to be asked for until all run.
        """
        async with self._turn:
            lockers = self._of([self.root, *members])
            try:
                outcomes = await side_by_side(locker.lock(limit) for locker in lockers)
            except BaseException:  # cancelled, or the record is full
                for locker in lockers:
                    locker.let_go()
                raise
            status = together([outcome.status for outcome in outcomes])
            if status is not PauseStatus.PAUSED:
                await self._undo(lockers)
            return PauseOutcome(status, max(outcome.drain for outcome in outcomes))

    async def still(self, members: Collection[ProcessKey]) -> bool:
        """Lock again who unlocked itself, and who is new; tell whether all stood still."""
        async with self._turn:
            held = [locker for locker in self.lockers.values() if locker.locked]
            if not held:
                return True
            answers = await side_by_side(locker.holds() for locker in held)
            ran = [locker for locker, holds in zip(held, answers, strict=True) if not holds]
            for locker in ran:
                locker.locked = False
            every = self._of([self.root, *members])
            loose = [locker for locker in every if not locker.locked and locker.parked is None]
            await side_by_side(locker.lock(AGAIN) for locker in {*ran, *loose})
            return not ran

    async def resume(self) -> PauseOutcome:
        """Unlock all that we locked, those who outlived the root too."""
        async with self._turn:
            lockers = [locker for locker in self.lockers.values() if locker.recorded]
            outcomes = await side_by_side(locker.unlock() for locker in lockers)
            drain = max((outcome.drain for outcome in outcomes), default=0.0)
            for outcome in outcomes:
                if outcome.status not in UNDONE:
                    return PauseOutcome(outcome.status, drain)
            self._tidy()
            alive = procfs.alive(self.root)
            return PauseOutcome(PauseStatus.NOTHING if alive else PauseStatus.GONE, drain)

    def locked(self) -> list[ProcessKey]:
        """Return who stands still on our account, parked or not."""
        return [key for key, each in self.lockers.items() if each.stands and procfs.alive(key)]

    def adopt(self, locker: _L) -> None:
        """A broker before us may have locked it."""
        self.lockers.setdefault(locker.key, locker)

    def settle(self) -> None:
        """Take off the record who has ended, and whom no worker holds any more."""
        if not self._turn.locked():
            for locker in self.lockers.values():
                locker.standing()
                locker.settle()

    @property
    def holds(self) -> bool:
        """Whether anything of it stands on record."""
        return any(locker.recorded for locker in self.lockers.values())

    def close(self) -> None:
        """Let all go."""
        for locker in self.lockers.values():
            if locker.recorded:
                locker.let_go()

    def _of(self, keys: Sequence[ProcessKey]) -> list[_L]:
        for key in keys:
            if key not in self.lockers:
                self.lockers[key] = self._locker(key)
        return [self.lockers[key] for key in keys]

    async def _undo(self, lockers: Sequence[_L]) -> None:
        locked = [locker for locker in lockers if locker.locked]
        await side_by_side(locker.unlock() for locker in locked)

    def _tidy(self) -> None:
        for key, locker in [*self.lockers.items()]:
            if not locker.recorded and key != self.root:
                del self.lockers[key]


def together(statuses: Sequence[PauseStatus]) -> PauseStatus:
    """Return what came of a pause; the root's status is the first. Who has nothing to lock stands still by itself."""
    if statuses[0] is PauseStatus.GONE:
        return PauseStatus.GONE
    for status in (*_RUNS_ON, PauseStatus.PAUSED):
        if status in statuses:
            return status
    return statuses[0]


async def side_by_side(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """Await all of them, and only then raise what went wrong with one: none goes on behind our back."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
