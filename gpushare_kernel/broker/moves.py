"""The memory of one device's sessions is moved out and back: `engine` has the turns, this has the moves. docs/parking.md has the rules.

A park takes its place in its session's order, like a pause. A restore also holds every other session of the device
still, so that nobody takes the room between the look at it and the end (K2): a hold takes its place in each one's order
too, and ends with the restore. There is one restore at a time, and who is parked is not held, so no two wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gpushare_kernel import procfs
from gpushare_kernel.broker.kernels import Kernel, Registry
from gpushare_kernel.broker.warm import Warm, limit
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.values import MiB, MoveStatus, PauseStatus, SessionId
from gpushare_kernel.devices.base import MoveOutcome, Target

if TYPE_CHECKING:
    from gpushare_kernel.broker.engine import Engine

DRAIN = 2.0
"""Seconds for which a session that is to be parked may drain, and one that is held for a restore."""
STANDING = 3.0
"""Seconds after which who does not stand still yet counts as one that cannot be held."""
MARGIN = 256 * MiB
"""What must be free on the device beyond what is restored."""
AGAIN, RARELY = 5.0, 80.0
"""Seconds between two attempts to bring somebody back of whom the scheduler does not know that it is parked: each holds the others, so it is tried less and less often."""
_HELD = frozenset({PauseStatus.PAUSED, PauseStatus.NOTHING, PauseStatus.BROKEN, PauseStatus.GONE})
"""What came of a pause of somebody who takes no memory for now; NOTHING has no context yet to take it with."""
_BACK = frozenset({MoveStatus.DONE, MoveStatus.LOST, MoveStatus.GONE})
"""What comes of a restore after which nothing is set aside any more."""
_BUSY = "its kernel has not said yet what it has set aside itself."
_Action = Callable[[], Awaitable[None]]
_logger = logging.getLogger(__name__)


class Standstill:
    """What one restore knows of the others: who stands still, who could not be made to; and when it is over."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self._awaited: set[SessionId] = set()
        self._loose: set[SessionId] = set()
        self._changed = asyncio.Event()

    def asked(self, session: SessionId) -> None:
        """It is asked to stand still."""
        self._awaited.add(session)

    def said(self, session: SessionId, *, stands: bool) -> None:
        """It does, or cannot be made to."""
        self._awaited.discard(session)
        if not stands:
            self._loose.add(session)
        self._changed.set()

    async def reached(self) -> int:
        """Wait until all have said so, or for `STANDING`; return how many do not stand still then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STANDING):
                while self._awaited:
                    self._changed.clear()
                    await self._changed.wait()
        return len(self._awaited | self._loose)


class Moves:
    """Parks and restores of one engine's sessions."""

    def __init__(self, engine: Engine, registry: Registry) -> None:
        self._engine, self._registry = engine, registry
        self._restores = asyncio.Lock()
        #: What clients move themselves.
        self.warm = Warm()
        self._under_way: set[SessionId] = set()
        #: Whom to bring back unasked: when it is tried next, and how long after that.
        self._again: dict[SessionId, tuple[float, float]] = {}

    def under_way(self, kernel: Kernel) -> bool:
        """Tell whether its memory is on the way now: what the driver says of it then is half the truth (K8)."""
        return kernel.id in self._under_way

    def away(self, kernel: Kernel) -> bool:
        """Tell whether its memory, or some of it, is not on the device, or on the way."""
        target = kernel.target
        here = target is None or not (self._engine.device.parked(target) or kernel.aside)
        return self.under_way(kernel) or not here

    def parking(self, kernel: Kernel, park: do.Park) -> _Action:
        """Return what carries out a park when it is its turn in the order of `kernel`."""
        target = kernel.target

        async def action() -> None:
            outcome = await self._carried_out(kernel, target, partial(self._park, park.least))
            done = outcome.status is MoveStatus.DONE
            contexts = done and target is not None and not self._engine.device.parked(target)
            self._mark_away(kernel, target, away=done)
            left = self._left(kernel) if done else 0
            if kernel.id in self._engine.scheduler.sessions:
                self._engine.feed(ev.Parked(at=self._engine.now, session=kernel.id, ticket=park.ticket, persistent=left, status=outcome.status, freed=outcome.freed, contexts=contexts, took=outcome.took, why=outcome.why))  # fmt: skip
            if outcome.status in {MoveStatus.DONE, MoveStatus.GONE}:
                kernel.mark_paused(paused=False)  # nothing of it that anybody else should undo
            else:
                await self._run_again(kernel, target)

        return action

    def restoring(self, kernel: Kernel, restore: do.Restore) -> _Action:
        """Return what carries out a restore when it is its turn; after it the session stands still until it is resumed."""
        target = kernel.target

        async def action() -> None:
            outcome = await self._carried_out(kernel, target, self._restore)
            self._mark_away(kernel, target, away=outcome.status not in _BACK)
            if kernel.id in self._engine.scheduler.sessions:
                self._engine.feed(ev.Restored(at=self._engine.now, session=kernel.id, ticket=restore.ticket, status=outcome.status, took=outcome.took, why=outcome.why))  # fmt: skip
            if outcome.status is MoveStatus.LOST:
                await self._run_again(kernel, target)
            elif outcome.status is not MoveStatus.DONE:
                kernel.mark_paused(paused=False)

        return action

    def look(self) -> None:
        """Bring back whose memory is parked without the scheduler's knowledge: by a broker before us, or by half (K7).

        And say who is back without its knowledge: a worker of a broker before us has ended the restore that it was at.
        """
        for session in [*self._engine.scheduler.sessions.values()]:
            kernel = self._registry.get(session.id)
            if kernel is None or session.moving:
                continue
            idle = kernel.tail is None or kernel.tail.done()
            if session.parked is not None:
                alive = kernel.key is not None and procfs.alive(kernel.key)
                if idle and alive and not self.away(kernel):
                    kernel.mark_away(away=False)
                    self._engine.feed(ev.Restored(at=self._engine.now, session=kernel.id, ticket=session.move))  # fmt: skip
                continue
            due, pause = self._again.get(kernel.id, (0.0, AGAIN))
            if idle and self._engine.now >= due and self.away(kernel):
                self._again[kernel.id] = self._engine.now + pause, min(2 * pause, RARELY)
                self._engine.then(kernel, self._bringing_back(kernel))

    def _bringing_back(self, kernel: Kernel) -> _Action:
        target = kernel.target

        async def action() -> None:
            outcome = await self._carried_out(kernel, target, self._restore)
            self._mark_away(kernel, target, away=outcome.status not in _BACK)
            if outcome.status in _BACK:
                self._again.pop(kernel.id, None)
                await self._run_again(kernel, target)
            else:
                kernel.mark_paused(paused=False)

        return action

    @staticmethod
    def _mark_away(kernel: Kernel, target: Target | None, *, away: bool) -> None:
        """Say so in its word, unless that is another process's by now: a restart keeps the word, and begins with nothing set aside."""
        if target is not None and kernel.key == target.root:
            kernel.mark_away(away=away)

    # --- one move ------------------------------------------------------------------------------------------

    async def _carried_out(
        self,
        kernel: Kernel,
        target: Target | None,
        move: Callable[[Kernel, Target], Awaitable[MoveOutcome]],
    ) -> MoveOutcome:
        """Move it; whatever goes wrong, there is an answer (the scheduler waits for one)."""
        if target is None:
            return MoveOutcome(MoveStatus.GONE)
        kernel.mark_paused(paused=True)
        self._under_way.add(kernel.id)
        try:
            with self._engine.device.moving():
                outcome = await move(kernel, target)
        except Exception:  # the scheduler waits for an answer
            _logger.exception("a park or restore failed", extra={"session": kernel.id})
            why = "the broker could not do it (its log says why). It is tried again when it is wanted again."
            outcome = MoveOutcome(MoveStatus.NOT_NOW, why=why)
        finally:
            self._under_way.discard(kernel.id)
        self._note(kernel, outcome)
        return outcome

    @staticmethod
    def _note(kernel: Kernel, outcome: MoveOutcome) -> None:  # its user is told by the scheduler
        extra = {"session": kernel.id, "why": outcome.why, "freed": outcome.freed}
        if outcome.status is MoveStatus.LOST:
            _logger.error("a session's device memory is lost", extra=extra)
        else:
            extra |= {"took": outcome.took}
            _logger.info("a session's memory was to be moved: %s", outcome.status, extra=extra)

    async def _park(self, least: int, kernel: Kernel, target: Target) -> MoveOutcome:
        """Have its client set aside what it can; park the rest, where that is needed too."""
        if kernel.barred:
            return MoveOutcome(MoveStatus.UNABLE, why=kernel.barred)
        began = self._engine.now
        aside = await self._set_aside(kernel)
        if aside is None:
            return MoveOutcome(MoveStatus.NOT_NOW, why=_BUSY)
        self._mark_away(kernel, target, away=True)
        if aside and aside >= least > 0:
            paused = await self._engine.device.pause(target, limit=DRAIN)
            if paused.status is PauseStatus.PAUSED:
                await self._engine.device.look()  # what is read of it now is what is left
                return MoveOutcome(MoveStatus.DONE, aside, self._engine.now - began)
        outcome = await self._engine.device.park(target, limit=DRAIN)
        if outcome.status is MoveStatus.DONE:
            return replace(outcome, freed=outcome.freed + aside, took=self._engine.now - began)
        if kernel.aside:
            self._mark_away(kernel, target, away=False)
            if await self._put_back(kernel, target):
                # Others have its room by now: it is parked, and waits for some.
                await self._engine.device.pause(target, limit=DRAIN)
                await self._engine.device.look()
                return MoveOutcome(MoveStatus.DONE, kernel.aside, self._engine.now - began)
        return outcome

    async def _set_aside(self, kernel: Kernel) -> int | None:
        session = self._engine.scheduler.sessions.get(kernel.id)
        if not self._engine.scheduler.config.warm or session is None or session.jobs:
            return 0
        return await self.warm.set_aside(kernel, session.charged)

    async def _put_back(self, kernel: Kernel, target: Target) -> str:
        """Let it run, so that its client can copy it back; return why it has not."""
        if not kernel.aside:
            return ""
        await self._engine.let_run(kernel, target)
        return await self.warm.put_back(kernel, limit(kernel.aside))

    async def _restore(self, kernel: Kernel, target: Target) -> MoveOutcome:
        """Restore what the driver parked, then have its client put back what it set aside."""
        began, outcome = self._engine.now, MoveOutcome(MoveStatus.DONE)
        if self._engine.device.parked(target) or not kernel.aside:
            outcome = await self._restore_held(kernel, target)
        if outcome.status is MoveStatus.DONE and kernel.aside:
            self._mark_away(kernel, target, away=False)
            why = await self._put_back(kernel, target)
            if why:
                return MoveOutcome(MoveStatus.NOT_NOW, why=why)
        return replace(outcome, took=self._engine.now - began)

    async def quiet(self) -> None:
        """Wait until no restore is under way."""
        async with self._restores:
            pass

    async def bring_back(self) -> None:
        """Restore whom a former broker parked and no session is of; never beside another restore: both would see the same room."""
        async with self._restores:
            targets = [kernel.target for kernel in self._registry if kernel.target is not None]
            for key in await self._engine.device.bring_back(targets, margin=MARGIN):
                told = {"pid": key.pid}
                _logger.warning("what a former broker had parked, of nobody we know, is back", extra=told)  # fmt: skip

    async def _restore_held(self, kernel: Kernel, target: Target) -> MoveOutcome:
        """Hold the others still, and restore it; where not all can be held there must be twice the room (K2)."""
        device = self._engine.device
        async with self._restores:
            still = Standstill()
            self._hold_others(kernel, still)
            try:
                loose = await still.reached() + self._strangers()
                size = device.parked(target)
                margin = MARGIN + (size + MARGIN if loose else 0)
                outcome = await device.restore(target, margin=margin)
            finally:
                still.over.set()
        if loose and outcome.status is MoveStatus.NOT_NOW:
            why = f"{outcome.why} Twice the room is needed as {loose} other(s) on the device cannot be held still meanwhile."
            return replace(outcome, why=why)
        return outcome

    def _strangers(self) -> int:
        """Return how many use the device whom we never pause; what draws a screen takes little."""
        targets = [kernel.target for kernel in self._registry if kernel.target is not None]
        strangers = self._engine.device.strangers(targets)
        return sum(not one.display and one.size > 0 for one in strangers)

    def _hold_others(self, kernel: Kernel, still: Standstill) -> None:
        """Have each other session stand still that could take memory; real-time jobs never are held (I7). A parked one's later children cannot be."""
        for session in self._engine.scheduler.sessions.values():
            other = self._registry.get(session.id)
            if other is None or other is kernel or other.target is None or session.realtime:
                continue
            if self._engine.device.parked(other.target) == 0:
                still.asked(other.id)
                self._engine.then(other, self._holding(other, still))
            elif self._engine.device.loose(other.target):
                # Its own restore may be before a hold in its order: nobody waits for that.
                still.said(other.id, stands=False)

    def _holding(self, kernel: Kernel, still: Standstill) -> _Action:
        """Return what holds one of the others; it runs again afterwards unless the scheduler has it stopped by then."""

        async def action() -> None:
            target = kernel.target
            if still.over.is_set() or target is None:
                still.said(kernel.id, stands=True)
                return
            session = self._engine.scheduler.sessions.get(kernel.id)
            if session is not None and session.stopped is not None and not session.pausing:
                still.said(kernel.id, stands=True)  # the scheduler has it paused already
                await still.over.wait()
            else:
                kernel.mark_paused(paused=True)
                status = await self._paused(kernel, target)
                still.said(kernel.id, stands=status in _HELD)
                if status is PauseStatus.PAUSED:
                    await still.over.wait()
            await self._run_again(kernel, target)

        return action

    async def _paused(self, kernel: Kernel, target: Target) -> PauseStatus:
        try:
            return (await self._engine.device.pause(target, limit=DRAIN)).status
        except Exception:  # then it counts as one that takes memory meanwhile
            _logger.exception("a session could not be held", extra={"session": kernel.id})
            return PauseStatus.UNSUPPORTED

    async def _run_again(self, kernel: Kernel, target: Target | None) -> None:
        """Let it run, unless the scheduler has it stopped."""
        session = self._engine.scheduler.sessions.get(kernel.id)
        if session is None or session.stopped is None:
            await self._engine.let_run(kernel, target)

    def _left(self, kernel: Kernel) -> int:
        """Return what it has on the device still, beside its contexts."""
        usage = self._engine.usage(kernel, memory=True)
        return 0 if usage is None else usage.memory or 0
