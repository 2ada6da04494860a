"""Requests under way: who waits for which reply.

The reader thread puts what arrives into the waiter's inbox; the waiter blocks in C (`SimpleQueue`),
which a KeyboardInterrupt ends at once. That is one hop from the socket to the waiter, and nothing
wakes up while nothing happens.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from queue import Empty, SimpleQueue
from typing import TypeVar

from gpushare_kernel.core.errors import BadFrame, BrokerUnavailable
from gpushare_kernel.core.values import JobId, Wait
from gpushare_kernel.wire.codec import error_from
from gpushare_kernel.wire.messages import Failure, Reply

_Reply = TypeVar("_Reply")


class Lost(Enum):
    """What a waiter gets instead of a reply."""

    LOST = "the connection ended first"


class Nudge(Enum):
    """What a waiter gets before a reply that is about to come."""

    SOON = "wake up"


LOST, SOON = Lost.LOST, Nudge.SOON


class Call:
    """One request.

    `reply` is set before the inbox gets it, so that an interrupted waiter cannot miss it. `sent` is not
    empty once the request is out.
    """

    __slots__ = ("abandoned", "id", "inbox", "job", "reply", "sent")

    def __init__(self, number: int, job: JobId | None = None) -> None:
        self.id = number
        self.job = job
        self.inbox: SimpleQueue[Wait | Reply | Lost | Nudge] = SimpleQueue()
        self.reply: Reply | Lost | None = None
        self.abandoned = False
        self.sent: list[int] = []

    def wait_reply(self, timeout: float | None) -> Reply | Lost | None:
        """Block until the reply is there; None where it takes longer than `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        item = self.reply
        while item is None:
            try:
                left = None if end is None else max(0.0, end - time.monotonic())
                got = self.inbox.get(timeout=left)
            except Empty:
                return None
            item = None if isinstance(got, Wait | Nudge) else got
        return item


class Calls:
    """All requests of one connection that have no reply yet."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._by_id: dict[int, Call] = {}
        self._queued: dict[JobId, Call] = {}

    def new(self, job: JobId | None = None) -> Call:
        """Return a new call; with `job`, its `Waiting` notices come to the call's inbox."""
        call = Call(next(self._numbers), job)
        with self._lock:
            self._by_id[call.id] = call
            if job is not None:
                self._queued[job] = call
        return call

    @property
    def queued(self) -> bool:
        """Whether anybody waits for a job to be granted."""
        return bool(self._queued)

    def number(self) -> int:
        """Return an id for a request whose reply nobody reads."""
        return next(self._numbers)

    def resolve(self, number: int, reply: Reply) -> Call | None:
        """Deliver a reply. Returns the call where its waiter has left: what was granted must be given back."""
        with self._lock:
            call = self._by_id.pop(number, None)
            if call is None:
                return None
            self._forget_job(call)
            call.reply = reply
        call.inbox.put(reply)
        return call if call.abandoned else None

    def waiting(self, job: JobId, wait: Wait) -> None:
        """Deliver why a job waits."""
        with self._lock:
            call = self._queued.get(job)
        if call is not None:
            call.inbox.put(wait)

    def nudge(self) -> None:
        """A grant is about to come: who waits wakes up once, and is fast when it does."""
        with self._lock:
            calls = list(self._by_id.values())
        for call in calls:
            call.inbox.put(SOON)

    def abandon(self, call: Call) -> Reply | Lost | None:
        """Leave a call. Returns the reply where it was faster than we."""
        with self._lock:
            call.abandoned = True
            self._forget_job(call)
            return call.reply

    def lose_all(self) -> bool:
        """The connection ended: every waiter is told. Say whether anybody waited for a job to be granted."""
        with self._lock:
            calls, queued = list(self._by_id.values()), self.queued
            self._by_id.clear()
            self._queued.clear()
            for call in calls:
                call.reply = LOST
        for call in calls:
            call.inbox.put(LOST)
        return queued

    def _forget_job(self, call: Call) -> None:
        if call.job is not None and self._queued.get(call.job) is call:
            del self._queued[call.job]


def expect(reply: Reply | Lost, expected: type[_Reply]) -> _Reply:
    """Return a reply of the expected class; a `Failure` is raised as the error it names."""
    if isinstance(reply, Failure):
        raise error_from(reply)
    if reply is LOST:
        msg = "the gpushare broker went away before it answered. Try again."
        raise BrokerUnavailable(msg)
    if not isinstance(reply, expected):
        msg = f"expected {expected.__name__} from the broker, got {type(reply).__name__}."
        raise BadFrame(msg)
    return reply


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise here even where an event loop has taken SIGINT for itself.

    In a cell with top-level await the loop's handler only schedules a callback, and a loop that we
    block never runs it: the interrupt button would be dead while the cell queues.
    """
    handler = _loop_handler()
    if handler is None:
        yield
        return
    import signal  # noqa: PLC0415 - only where a loop runs here

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _loop_handler() -> object | None:
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or threading.current_thread() is not threading.main_thread():
        return None
    running = getattr(asyncio, "_get_running_loop", None)  # another thread may be importing it
    return None if running is None else running()
