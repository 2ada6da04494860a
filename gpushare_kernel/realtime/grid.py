"""Known releases: one on each tick of a grid that nothing shifts, however long a source or a reader takes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

MOST_UNREAD = 256
"""Results that wait for their reader. Beyond it ticks are skipped, and counted: memory has an end."""
_END = object()
_running: set[Grid] = set()
"""Those whose thread may be in their source."""


class Skipped(Exception):
    """A job was held up until its deadline was not certain any more: it did not run, and its tick is counted as skipped."""


class Grid:
    """A thread that takes an input at each tick and releases it; `results` gives what comes of them, in order.

    Parameters
    ----------
    period
        Seconds between ticks.
    source
        An iterable, or a callable that is called at each tick.
    release
        Called with an input and its tick; returns the future of its result.
    late
        Called with how many seconds after its tick a release came.
    skipped
        Called with how many ticks passed without a release.
    may_release
        Asked at each tick whether a job may be released.
    first
        The first tick (monotonic clock); none given: as soon as the results are asked for.
    """

    def __init__(
        self,
        period: float,
        source: Iterable[Any] | Callable[[], Any],
        release: Callable[[Any, float], Future[Any]],
        late: Callable[[float], None],
        skipped: Callable[[int], None],
        *,
        first: float | None = None,
        may_release: Callable[[], bool] = lambda: True,
    ) -> None:
        self._first, self._may_release = first, may_release
        self._period, self._release, self._late, self._skipped = period, release, late, skipped
        self._source = source
        self._take = source if callable(source) else iter(source).__next__
        self._ended = threading.Event()
        self._futures: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gpushare-grid", daemon=True)

    def results(self) -> Iterator[Any]:
        """Start, and give each result when it is there. An error of a layer, or of the source, is raised here and ends it."""
        for one in [*_running]:
            if one is not self and one._ended.is_set() and _same(one._source, self._source):
                one._thread.join()  # a loop that was left while its source was read: nobody is called twice at once
        _running.add(self)
        self._thread.start()
        try:
            while (one := self._futures.get()) is not _END:
                if isinstance(one, BaseException):
                    raise one
                try:
                    result = one.result()
                except Skipped:
                    continue
                yield result
        finally:
            self._ended.set()

    def _run(self) -> None:
        start, tick = time.monotonic() if self._first is None else self._first, 0
        try:
            while not self._ended.wait(max(0.0, start + tick * self._period - time.monotonic())):
                due = start + tick * self._period
                if self._futures.qsize() >= MOST_UNREAD or not self._may_release():
                    self._skipped(1)
                else:
                    value = self._take()
                    if self._ended.is_set():
                        break
                    self._late(time.monotonic() - due)
                    self._futures.put(self._release(value, due))
                passed = int((time.monotonic() - start) / self._period)
                self._skipped(max(0, passed - (tick + 1)))
                tick = max(tick + 1, passed)  # the tick that has just come is still taken
        except StopIteration:
            pass
        except BaseException as problem:  # noqa: BLE001  the source is the user's: its error belongs to who reads
            self._futures.put(problem)
        finally:
            _running.discard(self)
        self._futures.put(_END)


def _same(one: object, other: object) -> bool:
    """Tell whether two sources are one: methods are of one object."""
    mine = getattr(one, "__self__", None)
    if mine is not None and mine is getattr(other, "__self__", None):
        return getattr(one, "__name__", one) == getattr(other, "__name__", other)
    return one is other
