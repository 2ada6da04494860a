"""How long a thread could have run and had no core: somebody else was on it, or the machine itself was not there.

A layer that is late by that has not overrun: whoever took the core has. Deadlines are promised for nodes that have their
cores (Xiang and Kim leave the system's jitter out too), so it is counted and told, and nobody is punished for it.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from dataclasses import dataclass

_NANOSECOND = 1e-9
_LINE = 64


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a thread: the clock on the wall, the seconds it has run and waited for a core, and how often it slept."""

    wall: float
    ran: float
    waited: float
    slept: int


class CoreWait:
    """Reads the waits of the thread that makes it.

    Where the thread has not slept, all that it did not run it was kept from running: also what a hypervisor took, which
    Linux leaves out of a thread's own time. Where it has, only its waits in the run queue are known. A layer's other
    threads wait too, and the first one sleeps for them: that is not seen here, and counts as the layer's own.
    """

    def __init__(self) -> None:
        try:
            self._fd = os.open(
                f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC
            )
        except FileNotFoundError:  # a kernel that does not count it: nothing is known of who slept
            self._fd = -1

    def seconds(self) -> float:
        """Return how long the thread has waited in the run queue since it began; any thread may ask."""
        if self._fd < 0:
            return 0.0
        fields = os.pread(self._fd, _LINE, 0).split()
        return int(fields[1]) * _NANOSECOND

    def mark(self) -> Mark:
        """Return this moment of the calling thread, which is the one that made this."""
        slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return Mark(time.monotonic(), time.thread_time(), self.seconds(), slept)

    def lost(self, since: Mark) -> float:
        """Return the seconds since then in which the thread could have run and did not."""
        now = self.mark()
        if now.slept == since.slept:
            return max(0.0, (now.wall - since.wall) - (now.ran - since.ran))
        return now.waited - since.waited
