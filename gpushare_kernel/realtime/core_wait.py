"""How long a node's threads could have run and had no core: somebody else was on it, or the machine itself was not there.

A layer that is late by that has not overrun: whoever took the core has. Deadlines are promised for nodes that have their
cores (Xiang and Kim leave the system's jitter out too), so it is counted and told, and nobody is punished for it.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

_NANOSECOND = 1e-9
_LINE = 64
_TASKS = "/proc/self/task"
_MOST = 32
"""Threads beside the first that are looked at: each takes a microsecond or two, before and after each layer."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: the clock on the wall, the seconds the thread has run and waited for a core, how often it slept.

    `used` is the processor time of the whole process, `others` how long each of its other threads has waited.
    """

    wall: float
    ran: float
    waited: float
    slept: int
    used: float
    others: Mapping[int, float]


class CoreWait:
    """Reads the waits of the thread that makes it, and of those that share a layer with it.

    Where the thread has not slept, all that it did not run it was kept from running: also what a hypervisor took, which
    Linux leaves out of a thread's own time. Where it has, only its waits in the run queue are known. A library's other
    threads wait too, and the first one sleeps (or spins) for them: the longest of their waits comes to its own, as far as the
    process left its cores to somebody else meanwhile; so threads that are in each other's way are no excuse.

    Parameters
    ----------
    cores
        How many cores the process has.
    """

    def __init__(self, cores: int = 1) -> None:
        self._cores = cores
        self._mine = threading.get_native_id()
        self._fd = _opened(self._mine)
        self._others: dict[int, int] = {}
        self._links = -1
        self._ours = {self._mine}

    def leave_out(self, thread: int) -> None:
        """Thread `thread` (native id) does none of a layer's work."""
        self._ours.add(thread)
        self._links = -1

    def mark(self) -> Mark:
        """Return this moment of the calling thread, which is the one that made this."""
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        self._list()
        others = {thread: _waited(fd) for thread, fd in self._others.items()}
        return Mark(
            time.monotonic(),
            time.thread_time(),
            _waited(self._fd),
            slept,
            time.process_time(),
            others,
        )

    def lost(self, since: Mark, now: Mark, *, alone: bool = False) -> float:
        """Return the seconds between two moments in which the layer's threads could have run and did not; `alone`: the first one."""
        if now.slept == since.slept:
            first = max(0.0, (now.wall - since.wall) - (now.ran - since.ran))
        else:
            first = now.waited - since.waited
        if alone:
            return first
        return self._with_others(first, since, now.wall, now.used, now.others)

    def so_far(self, since: Mark) -> float:
        """Return the seconds since then that are known to be lost while the layer runs; any thread may ask."""
        others = {thread: _waited(fd) for thread, fd in [*self._others.items()]}
        first = _waited(self._fd) - since.waited
        return self._with_others(first, since, time.monotonic(), time.process_time(), others)

    def _with_others(
        self, first: float, since: Mark, wall: float, used: float, others: Mapping[int, float]
    ) -> float:
        """Return what is lost where the first thread waited for `first` seconds, and the others until now as `others` says."""
        before = since.others
        longest = max((waited - before.get(thread, 0.0) for thread, waited in others.items()), default=0.0)  # fmt: skip
        left = self._cores * (wall - since.wall) - (used - since.used)
        return max(0.0, min(first + longest, left, wall - since.wall))

    def _list(self) -> None:
        """Know the other threads there are, where some have come or gone."""
        if self._fd < 0:
            return
        links = os.stat(_TASKS).st_nlink  # noqa: PTH116  twice a layer
        if links == self._links:
            return
        self._links = links
        there = {int(name) for name in os.listdir(_TASKS)} - self._ours  # noqa: PTH208
        for thread in self._others.keys() - there:
            os.close(self._others.pop(thread))
        for thread in sorted(there - self._others.keys())[: _MOST - len(self._others)]:
            fd = _opened(thread)
            if fd >= 0:
                self._others[thread] = fd


def _opened(thread: int) -> int:
    """Return a descriptor of a thread's counters; -1 where the kernel does not count, or the thread is gone."""
    try:
        return os.open(f"{_TASKS}/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _waited(fd: int) -> float:
    """Return how long a thread has waited in the run queue since it began."""
    if fd < 0:
        return 0.0
    try:
        fields = os.pread(fd, _LINE, 0).split()
    except ProcessLookupError:  # it has ended
        return 0.0
    return int(fields[1]) * _NANOSECOND
