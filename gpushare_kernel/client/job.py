"""A job that runs: its word, its boundaries, its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpushare_kernel.client import fingerprint
from gpushare_kernel.client.calls import Call, interruptible
from gpushare_kernel.client.link import LinkDown
from gpushare_kernel.core.errors import FrameTooLong
from gpushare_kernel.core.values import Wait, WaitReason
from gpushare_kernel.transport.words import LANE, TURN, WordView
from gpushare_kernel.wire import limit_texts, texts
from gpushare_kernel.wire.messages import End, Granted, HeldJob, RealtimeKept, Report, Yield

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session
    from gpushare_kernel.wire.realtime import RealtimeTask

_WEIGHT = 0.5
"""How much the latest stretch counts in the average interval between boundaries."""
_REPORT = 5.0

INNER = TURN
OUTER = TURN | LANE
"""What a boundary can answer to."""


class Loop:
    """How far a loop over `lane.steps` is. Its thread counts; any other may read."""

    __slots__ = ("began", "done", "total")

    def __init__(self, total: int | None) -> None:
        self.began = time.monotonic()
        self.done = 0
        self.total = total


class Job:
    """One declared piece of work, from its grant to its end. One thread at a time meets its boundaries.

    A boundary is `job.boundaries += 1` and `if job.read(job.slot): job.meet(...)`: what reads the word
    is an attribute, so that the common case is one call.
    """

    __slots__ = (
        "_counted",
        "_most",
        "_pending",
        "_session",
        "_since",
        "_view",
        "boundaries",
        "count",
        "ephemeral",
        "first",
        "id",
        "interval",
        "lane",
        "learned",
        "loops",
        "name",
        "persistent",
        "placement",
        "plain",
        "read",
        "realtime",
        "slot",
        "stepped",
        "waited",
    )

    def __init__(
        self, session: Session, name: str, granted: Granted, waited: float, *, plain: bool = False
    ) -> None:
        self._session = session
        self.id = granted.job
        self.name = name
        self.plain = plain
        self.stepped = False
        self.count: Callable[[], None] = _nobody_counts
        self.lane = granted.lane
        self.slot = granted.slot
        self.persistent = granted.persistent
        self.ephemeral = granted.ephemeral
        self.learned = granted.learned
        #: Where a real-time job runs.
        self.placement = granted.placement
        #: What was proven of it, and when its releases began where they are on a grid.
        self.realtime: RealtimeTask | None = None
        self.first: float | None = None
        self.waited = waited
        self.boundaries = 0
        #: The loops that run, the outermost first.
        self.loops: list[Loop] = []
        self.interval = 0.0
        self._counted = 0
        self._most = 0
        self._since = time.monotonic()
        self._pending: Call | None = None
        self._view: WordView | None = None
        self.read: Callable[[int], int] = _silence

    def watch(self, view: WordView | None, count: Callable[[], None] | None) -> None:
        """Read the job's word from this page from now on (None: run past all boundaries), and count them so."""
        self._view = view
        self.count = count or _nobody_counts
        if self._pending is None:
            self.read = _silence if view is None else view.read

    def detach(self) -> None:
        """Run on without a word: the job is over, or belongs to the process that forked us."""
        self.count = _nobody_counts
        self._view = None
        self.read = _silence

    def held(self) -> HeldJob:
        """Return what a broker that just came back must know."""
        return HeldJob(
            job=self.id,
            name=self.name,
            persistent=self.persistent,
            ephemeral=self.ephemeral,
            lane=self.lane,
            slot=self.slot,
            running=True,
            plain=self.plain,
        )

    def returned(self) -> None:
        """Tell a broker that just came back what another one had promised to a real-time job."""
        if self.realtime is None or self.placement is None:
            return
        try:
            self._session.note(RealtimeKept(self.id, self.realtime, self.placement, self.first))
        except FrameTooLong:
            why = "its notebook's pipelines have more layers than can be told at once"
            self._session.say(limit_texts.not_promised_again_text(self.realtime.name, why))

    def end(self, *, failed: bool = False) -> Report | None:
        """End the job; returns what became of it, or None where the broker is away. `failed`: it did not come to its end."""
        session = self._session
        self._over()
        if not session.up:
            return None
        memory, call = session.memory, session.new_call()
        try:
            memory.peak()
            memory.job_over()
            session.send(self._end(failed=failed), call)
        except LinkDown:
            return None
        finally:
            if not call.sent:  # interrupted: nobody else would ever end it
                session.post(self._end(failed=True))
        reply = session.answer(call, _REPORT)
        session.apply_budget()
        return reply if isinstance(reply, Report) else None

    def leave(self, *, failed: bool = False) -> None:
        """End the job and wait for no report: nobody reads it."""
        self._over()
        try:
            self._session.memory.peak()
        finally:  # interrupted: nobody else would ever end it
            self._session.post(self._end(failed=failed))

    def _end(self, *, failed: bool) -> End:
        memory = self._session.memory
        return End(
            self.id, memory.last, memory.highest, self.boundaries, failed, fingerprint.frameworks()
        )

    def _over(self) -> None:
        session, pending = self._session, self._pending
        self.detach()
        if pending is not None:
            self._pending = None
            session.leave(pending)
        session.ended(self)

    def meet(self, mask: int) -> None:
        """Do what the word asks for, and go on when the broker says so. A broker that is away is not waited for.

        While a CUDA graph is captured nothing is done: what waits for the device would spoil it. The next boundary does it.
        With `INNER` only the turn may pass: a block inside the job cannot empty the memory around it.
        """
        session = self._session
        if self._pending is None:
            asked = self.read(self.slot) & mask
            if not asked or not session.up or session.memory.capturing():
                return
            self._average()
            if not self._ask(self._yield(trimmed=bool(asked & LANE))):
                return
        if self._pending is not None:
            self._await_grant(self._pending)

    def hears(self, wait: Wait) -> str | None:
        """Return what its user is to read while it waits at a boundary (reader thread): that it outgrew its grant, once."""
        most, self._most = self._most, 0
        if wait.reason is not WaitReason.MEMORY or most <= self.ephemeral:
            return None
        return texts.outgrown_text(most, self.ephemeral, wait, self._session.noun)

    def _ask(self, question: Yield) -> bool:
        """Send a yield; what is on its way stays pending, whatever is raised meanwhile."""
        call = self._session.new_call()
        self._pending = call
        try:
            self._session.send(question, call)
        except LinkDown:
            return False
        finally:
            if not call.sent:
                self._pending = None
            else:
                self.read = _still_waiting
        return True

    def _await_grant(self, call: Call) -> None:
        # An interrupt leaves the call pending, and every later boundary comes back here: the code may
        # go on after the exception, the turn is still not ours.
        with interruptible():
            reply = call.wait_reply(None)
        self._pending = None
        self.read = self._view.read if self._view is not None else _silence
        self._since = time.monotonic()
        if isinstance(reply, Granted):
            self.lane, self.slot = reply.lane, reply.slot
            # It may have grown: what it was seen to take is what it has from here on.
            self.persistent, self.ephemeral = reply.persistent, reply.ephemeral
            self._session.apply_budget()

    def _yield(self, *, trimmed: bool) -> Yield:
        memory = self._session.memory
        if trimmed:
            memory.trim()
            memory.peak()
            self._most = memory.ephemeral()
        else:
            memory.settle()  # the turn is over when the device has done what it was given
            self._most = 0
        return Yield(
            job=self.id,
            trimmed=trimmed,
            persistent=memory.last,
            peak=memory.highest,
            boundaries=self.boundaries,
            interval=self.interval,
            ephemeral=self._most,
        )

    def _average(self) -> None:
        met = self.boundaries - self._counted
        if met > 0:
            latest = (time.monotonic() - self._since) / met
            old = self.interval
            self.interval = latest if not old else (1 - _WEIGHT) * old + _WEIGHT * latest
            self._counted = self.boundaries


class Unshared:
    """Stands for a job where no broker takes part: boundaries are counted, nothing else happens."""

    __slots__ = ("boundaries", "count", "loops", "read", "slot", "stepped")

    def __init__(self) -> None:
        self.boundaries = 0
        self.loops: list[Loop] = []
        self.stepped = False
        self.count: Callable[[], None] = _nobody_counts
        self.slot = 0
        self.read: Callable[[int], int] = _silence

    def meet(self, mask: int) -> None:
        """Never asked for anything."""

    def end(self, *, failed: bool = False) -> None:
        """Nobody has to know."""


def _nobody_counts() -> None:
    return None


def _silence(_slot: int) -> int:
    return 0


def _still_waiting(_slot: int) -> int:
    return TURN
