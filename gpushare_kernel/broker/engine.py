"""One device at work: events go into its scheduler, its instructions are carried out, what comes of them goes back in."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from gpushare_kernel.broker.alarm import Alarm
from gpushare_kernel.broker.counts import Counts
from gpushare_kernel.broker.history import History
from gpushare_kernel.broker.kernels import Kernel, Registry
from gpushare_kernel.broker.moves import Moves
from gpushare_kernel.broker.recorder import Recorder
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import JobId, PauseStatus, SessionId, Usage
from gpushare_kernel.devices.base import Device, Target
from gpushare_kernel.transport.words import LANE, TURN
from gpushare_kernel.wire import limit_texts, texts
from gpushare_kernel.wire.messages import Announce, Slowed, Soon

RESUME_AGAIN = 0.01
"""A resume that could not be done is tried again after this long (seconds), then less and less often."""
_FREES = (
    ev.CellEnded,
    ev.JobEnded,
    ev.BoundaryReached,
    ev.Released,
    ev.SessionClosed,
    ev.SessionRestarted,
)
"""After these somebody may hold less than before."""
ABSENT = 5.0
"""Seconds without a decision that are on nobody's account: there is one every second."""
SETTLED = 1.0
"""Who waits for a resume waits no longer than this (seconds): what its own user has stopped stays stopped."""
_logger = logging.getLogger(__name__)


class Answers(Protocol):
    """Where the answers to waiting clients go."""

    def granted(self, grant: do.Grant) -> None:
        """A job may go on."""

    def queued(self, job: JobId) -> None:
        """A job waits."""

    def refused(self, job: JobId, message: str) -> None:
        """A job can never fit."""

    def dropped(self, job: JobId) -> None:
        """A job is over before it was granted."""

    def returned(self, session: SessionId, lost: str) -> None:
        """What was set aside of a session is back, or `lost` and why."""


class Engine:
    """A scheduler, its device, and the clock between them. Everything runs on one loop."""

    def __init__(
        self, scheduler: Scheduler, device: Device, registry: Registry, answers: Answers
    ) -> None:
        self.scheduler = scheduler
        self.device = device
        #: Bytes that displays, and others who take no part, were last seen to hold.
        self.desktop = self.foreign = 0
        #: Somebody has given memory back, and others wait for some: who holds what is to be read anew.
        self.freed = asyncio.Event()
        #: Where events are written down, if anybody asked for it.
        self.recorder: Recorder | None = None
        #: What its metrics count, if anybody asked for them.
        self.counts: Counts | None = None
        #: Who had the device in the last half minute, for people to see.
        self.history = History()
        scheduler.turns.noted = self.history.note
        self._registry = registry
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._events: deque[ev.Event] = deque()
        self._draining = False
        self._wake: asyncio.TimerHandle | None = None
        #: When anything was decided last; None before the broker looks around for the first time.
        self._here: float | None = None
        self._alarm = Alarm(self._loop, self._ring)
        self._tasks: set[asyncio.Task[None]] = set()
        #: Parks and restores.
        self.moves = Moves(self, registry)
        self._does: dict[type[do.Instruction], Callable[..., None]] = {
            do.Grant: self._grant,
            do.Queue: lambda i: answers.queued(i.job),
            do.Refuse: lambda i: answers.refused(i.job, i.message),
            do.Drop: lambda i: answers.dropped(i.job),
            do.Ask: self._ask,
            do.Returned: lambda i: answers.returned(i.session, i.lost),
            do.Pause: self._pause,
            do.Resume: self._resume,
            do.Park: self._park,
            do.Restore: self._restore,
            do.Slow: self._slow,
            do.Wake: self._set_wake,
            do.Alarm: lambda i: self._alarm.set(i.at),
            do.Overran: lambda i: self._say(i.session, texts.OVERRAN),
            do.Beside: lambda i: self._say(i.session, limit_texts.beside_text(i.status)),
            do.Barred: lambda i: self._say(i.session, texts.barred_text(i.drain, i.absorbs)),
        }

    @property
    def now(self) -> float:
        """The time that goes into events (CLOCK_MONOTONIC, seconds)."""
        return self._loop.time()

    def feed(self, event: ev.Event) -> bool:
        """Take in an event, and those that follow from it; False where one of them failed (it is logged)."""
        if self._here is not None and event.at > self._here:
            self.here(event.at)
        self._events.append(event)
        if self._draining:
            return True
        well = True
        self._draining = True
        try:
            while self._events:
                well = self._handle(self._events.popleft()) and well
        finally:
            self._draining = False
        return well

    def here(self, at: float) -> None:
        """We decide; said once a second at least. After a longer silence we were stopped, or the machine was."""
        since, self._here = self._here, at
        if since is not None and at - since > ABSENT:
            _logger.warning("nothing was decided for %.0f s", at - since, extra={"device": self.device.inventory.id})  # fmt: skip
            self.feed(ev.Absent(at=at, since=since))

    def _handle(self, event: ev.Event) -> bool:
        try:
            instructions = self.scheduler.handle(event)
        except Exception:
            # One event that goes wrong must not take the turns of everybody else along.
            _logger.exception("an event failed", extra={"event": repr(event)})
            if self.recorder is not None:
                self.recorder.note(self.device.inventory.id, event, None)
            if self.counts is not None:
                self.counts.failures += 1
            return False
        self._note(event, instructions)
        core = self.scheduler
        if isinstance(event, _FREES) and not core.config.divisible and len(core.book.queue):
            self.freed.set()  # a CPU's memory is what clients say, until somebody looks closely
        for instruction in instructions:
            try:
                self._does[type(instruction)](instruction)
            except Exception:  # the others of the same event are carried out all the same
                _logger.exception("an instruction failed", extra={"instruction": repr(instruction)})
        return True

    def _note(self, event: ev.Event, instructions: list[do.Instruction]) -> None:
        """Write it down and count it. Whatever goes wrong with that, the instructions are carried out."""
        try:
            if self.recorder is not None:
                self.recorder.note(self.device.inventory.id, event, instructions)
            if self.counts is not None:
                self.counts.note(event, instructions)
        except Exception:  # who only looks on must not cost the event its instructions
            _logger.exception("an event was not noted", extra={"event": repr(event)})

    def usage(self, kernel: Kernel, *, memory: bool = False) -> Usage | None:
        """Sample one kernel; what its interpreter held from the start is not counted as memory it uses."""
        target = kernel.target
        if kernel.keeps_pages and self.scheduler.config.divisible:
            target = (
                None  # its start is no work of anybody's, and its pages are charged as declared
            )
        active = self.scheduler.turns.asks_for(kernel.id)
        memory = memory and not self.moves.under_way(kernel)
        usage = None if target is None else self.device.usage(target, memory=memory, active=active)
        if usage is None:
            return None
        held = None if usage.memory is None else max(0, usage.memory - kernel.baseline)
        if held is not None:
            kernel.held = held
        return replace(usage, memory=held, progress=kernel.tally.read())

    def sample(self, *sessions: SessionId) -> None:
        """Sample what the scheduler watches and `sessions`, and let it decide."""
        used: dict[SessionId, Usage] = {}
        for session in {*self.scheduler.watched(self.now), *sessions}:
            kernel = self._registry.get(session)
            try:
                usage = None if kernel is None else self.usage(kernel)
            except Exception:
                # Whatever it was: who waits for this sample, a pause's answer above all, waits for nobody's reading.
                _logger.exception("a session's use cannot be read", extra={"session": session})
                continue
            if usage is not None:
                used[session] = usage
        busy = self.device.utilization()
        self.feed(
            ev.Sampled(
                at=self.now,
                used=used,
                utilization=None if busy is None else busy.part,
                utilization_since=0.0 if busy is None else busy.since,
            )
        )

    def undo(self, kernel: Kernel) -> None:
        """Let it run, where a broker before us left it paused and nobody could undo that yet."""
        self.then(kernel, self._resuming(kernel))

    def bar(self, kernel: Kernel, why: str) -> None:
        """It must not be parked from now on, and why; "": it may be again."""
        if kernel.barred != why:
            kernel.barred = why
            if kernel.id in self.scheduler.sessions:
                self.feed(ev.ParkBarred(at=self.now, session=kernel.id, why=why))

    async def settled(self, kernel: Kernel) -> None:
        """Wait until every pause and resume of `kernel` asked for so far is carried out, or its user has stopped it."""
        if kernel.tail is not None:
            await asyncio.wait([kernel.tail], timeout=SETTLED)

    def look_at_paused(self) -> None:
        """A process can let itself run: look whether those we paused still stand, side by side. Who is parked cannot."""
        self.moves.look()
        for session in self.scheduler.sessions.values():
            kernel = self._registry.get(session.id)
            if session.stopped is None or session.pausing or kernel is None:
                continue
            if self.moves.away(kernel):
                continue
            if kernel.tail is None or kernel.tail.done():
                self.then(kernel, self._looking(kernel))

    def _looking(self, kernel: Kernel) -> Callable[[], Awaitable[None]]:
        target = kernel.target

        async def action() -> None:
            if target is None or await self.device.still(target):
                return
            _logger.warning("a paused session lets itself run", extra={"session": kernel.id})
            self.feed(ev.Continued(at=self.now, session=kernel.id))

        return action

    async def close(self) -> None:
        """Let everybody run again and stop deciding."""
        if self._wake is not None:
            self._wake.cancel()
        self._alarm.close()
        self._events.clear()
        self._draining = True  # nothing is decided from here on
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.device.close()
        for session in self.scheduler.sessions:  # those of other devices may stand still yet
            kernel = self._registry.get(session)
            if kernel is not None:
                kernel.mark_paused(paused=False)

    # --- instructions ---------------------------------------------------------------------------------

    def _grant(self, grant: do.Grant) -> None:
        kernel = self._registry.get(grant.session)
        slot = None if kernel is None else kernel.slot_of.get(grant.job)
        if kernel is not None and slot is not None:
            kernel.page.set(slot, 0)
        self._answers.granted(grant)

    def _ask(self, ask: do.Ask) -> None:
        kernel = self._registry.get(ask.session)
        slot = None if kernel is None else kernel.slot_of.get(ask.job)
        if kernel is not None and slot is not None:
            if ask.turn:
                # Before the word: threads that have slept for a turn take 100 us longer to take in a grant.
                for session in self.scheduler.turns.joining:
                    heir = self._registry.get(session)
                    if heir is not None:
                        heir.notify(Soon())
            kernel.page.set(slot, (TURN if ask.turn else 0) | (LANE if ask.lane else 0))

    def _slow(self, slow: do.Slow) -> None:
        kernel = self._registry.get(slow.session)
        if kernel is not None:
            kernel.notify(Slowed(slow.people, slow.fraction, slow.paused, slow.reason or ""))

    def _set_wake(self, wake: do.Wake) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = None if wake.at is None else self._loop.call_at(wake.at, self.sample)

    def _ring(self, due: float) -> None:
        self.feed(ev.Rung(at=max(due, self.now)))  # a loop's clock is coarse: never before its time

    def _say(self, session: SessionId, text: str) -> None:
        kernel = self._registry.get(session)
        if kernel is not None:
            kernel.notify(Announce(text))

    def _pause(self, pause: do.Pause) -> None:
        kernel = self._registry.get(pause.session)
        if kernel is not None:
            self.then(kernel, self._pausing(kernel, pause))

    def _park(self, park: do.Park) -> None:
        kernel = self._registry.get(park.session)
        if kernel is not None:
            self.then(kernel, self.moves.parking(kernel, park))

    def _restore(self, restore: do.Restore) -> None:
        kernel = self._registry.get(restore.session)
        if kernel is not None:
            self.then(kernel, self.moves.restoring(kernel, restore))

    def _resume(self, resume: do.Resume) -> None:
        kernel = self._registry.get(resume.session)
        if kernel is not None:
            self.undo(kernel)

    def then(self, kernel: Kernel, action: Callable[[], Awaitable[None]]) -> None:
        """Do `action` when all that was to be done with `kernel` before is done."""
        before = kernel.tail

        async def in_order() -> None:
            if before is not None and not before.done():
                await asyncio.wait([before])
            try:
                await action()
            except Exception:  # what is next in this session's order does not wait for it
                _logger.exception("a pause or resume failed", extra={"session": kernel.id})

        task = kernel.tail = self._loop.create_task(in_order())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pausing(self, kernel: Kernel, pause: do.Pause) -> Callable[[], Awaitable[None]]:
        target = kernel.target

        async def action() -> None:
            if target is None:
                status, drain = PauseStatus.GONE, 0.0
            else:
                kernel.mark_paused(paused=True)
                try:
                    outcome = await self.device.pause(target, limit=pause.limit)
                    status, drain = outcome.status, outcome.drain
                except Exception:
                    # Whatever it was, the scheduler waits for an answer, and everybody else for the scheduler.
                    _logger.exception("a pause failed", extra={"session": kernel.id})
                    status, drain = PauseStatus.UNSUPPORTED, 0.0
            if kernel.id in self.scheduler.sessions:
                if not self.scheduler.config.divisible:
                    self.sample(kernel.id)  # it stands still: what it has counted is final
                self.feed(
                    ev.Paused(
                        at=self.now,
                        session=kernel.id,
                        ticket=pause.ticket,
                        status=status,
                        drain=drain,
                    )
                )
            if status is PauseStatus.GONE:
                kernel.mark_paused(
                    paused=False
                )  # whom it left behind is resumed with its session's end
            elif status is not PauseStatus.PAUSED:
                # A part of it may stand still all the same: a worker has died of its lock, say.
                await self.let_run(kernel, target)

        return action

    def _resuming(self, kernel: Kernel) -> Callable[[], Awaitable[None]]:
        target = (
            kernel.target
        )  # as it is now: where the root has ended, its children are still to be resumed

        return lambda: self.let_run(kernel, target)

    async def let_run(self, kernel: Kernel, target: Target | None) -> None:
        """Resume it, again and again until all of it runs; only then does its word say so."""
        pause, task = RESUME_AGAIN, asyncio.current_task()
        while target is not None:
            try:
                outcome = await self.device.resume(target)
            except Exception:  # it is tried again: nobody stays paused for an error of ours (I3)
                _logger.exception("a resume failed", extra={"session": kernel.id})
            else:
                if outcome.status in {PauseStatus.NOTHING, PauseStatus.GONE}:
                    break
            if kernel.tail is not task:
                return  # something else is to be done with it: that is not to wait for this
            # Its user has stopped it (the driver answers after SIGCONT), or it became somebody else's.
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)
        kernel.mark_paused(paused=False)
