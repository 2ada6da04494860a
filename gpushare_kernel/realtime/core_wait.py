"""How long a thread could have run and had no core: somebody else was on it.

A layer that is late by that has not overrun: whoever took the core has. Deadlines are promised for nodes that have their
cores (Xiang and Kim leave the system's jitter out too), so it is counted and told, and nobody is punished for it.
"""

from __future__ import annotations

import os
import threading

_NANOSECOND = 1e-9
_LINE = 64


class CoreWait:
    """Reads the waits of the thread that makes it; any thread may ask. Not known (no `schedstat`): none.

    A layer's other threads wait too, and the first one for them: that is not seen here, and counts as the layer's own.
    """

    def __init__(self) -> None:
        try:
            self._fd = os.open(
                f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC
            )
        except FileNotFoundError:
            self._fd = -1

    def seconds(self) -> float:
        """Return how long the thread has waited since it began."""
        if self._fd < 0:
            return 0.0
        fields = os.pread(self._fd, _LINE, 0).split()
        return int(fields[1]) * _NANOSECOND
