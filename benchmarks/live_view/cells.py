"""What runs in the notebook's kernel: cells that sleep or work until they are told, and ten thousand updates."""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gpushare_widgets.feed import Feed
from gpushare_widgets.live import LiveView
from gpushare_widgets.scene import scene

from gpushare_kernel import procfs
from gpushare_kernel.client.line import Line
from gpushare_kernel.wire.snapshot import Snapshot
from tests.widgets.snapshots import FULL, IDLE

FEED, SENDER = "gpushare-view", "IOPub"
"""The threads that updates cost: ours, and ipykernel's that sends."""
_LET_GO = 0.05
"""Seconds between two looks at the gate: a look lets go of the GIL."""
_SIGNS = 5
"""Looks after which a view says that it is there."""


def sleeps(gate: str, told: str) -> None:
    """Sleep until the gate is there, and tell what was seen meanwhile."""
    _watched(gate, told, lambda: time.sleep(0.02))


def works(gate: str, told: str) -> None:
    """Compute in Python until the gate is there, holding the GIL as long as Python lets anybody."""
    _watched(gate, told, _compute)


def _compute() -> None:
    for _ in range(10_000):
        pass


def _watched(gate: str, told: str, piece: Callable[[], None]) -> None:
    began, before = time.monotonic(), _clocks()
    last, longest, ends = began, 0.0, Path(gate)
    while not ends.exists():
        looked = last
        while last < looked + _LET_GO:
            piece()
            now = time.monotonic()
            last, longest = now, max(longest, now - last)
    after, passed = _clocks(), time.monotonic() - began
    cpu = {name: 100 * (after[name] - before[name]) / passed for name in before}
    Path(told + ".new").write_text(json.dumps({"longest": longest, **cpu}), encoding="ascii")
    Path(told + ".new").rename(told)


def _clocks() -> dict[str, float]:
    """CPU seconds that the threads of a view have used."""
    return {
        one.name: time.clock_gettime(time.pthread_getcpuclockid(one.ident))
        for one in threading.enumerate()
        if one.name in (FEED, SENDER) and one.ident
    }


class _Many(Line):
    """A line on which something else is seen every time; the clock runs as fast as the feed looks."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.looks = 0
        self.view: LiveView | None = None
        self.feed = Feed(
            lambda snapshot, now: scene(snapshot, now=now),
            lambda: self,
            lambda _changed: True,
            itertools.count(0.0, 0.3).__next__,
        )
        self.seen: list[dict[str, int]] = []
        self.done = threading.Event()

    def snapshot(self) -> Snapshot:
        self.looks += 1
        if self.view is not None and self.looks % _SIGNS == 0:
            self.feed.hear(self.view, {"type": "alive", "view": "a"})
        if self.looks in (self.first, self.last):
            sys.stdout.flush()  # returns once everything before it is sent
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free is not kept
            self.seen.append(_size())
        if self.looks == self.last:
            self.done.set()
        return (IDLE, FULL)[self.looks % 2]

    def close(self) -> None:
        """Nothing to hang up."""


def many(first: int, last: int) -> None:
    """Send so many updates of a real view; print how much larger the kernel is after the last than after the first."""
    line = _Many(first, last)
    line.view = LiveView(line.feed)
    line.done.wait()
    line.feed.close()
    before, after = line.seen
    print(json.dumps({name: after[name] - before[name] for name in after}))


def _size() -> dict[str, int]:
    """What this process keeps: bytes of its own, and Python's blocks."""
    private = procfs.private_memory(os.getpid())
    assert private is not None
    return {"private": private, "blocks": sys.getallocatedblocks()}
