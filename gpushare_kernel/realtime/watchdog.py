"""Looks at the layer that runs, and tells when it takes longer than it ever did while it was measured.

The layer itself is in a library and tells nobody: this is a thread beside it, awake while there is work only. It also
sees that the kernel has ended, for whose sake a layer that hangs would hang for ever.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpushare_kernel.realtime.conduct import Limit
from gpushare_kernel.realtime.core_wait import CoreWait, Mark

PACE = 0.01
"""Seconds between two looks: a layer that hangs is told of so much late."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A layer that runs since `began` and what it may take."""

    task: int
    number: int
    layer: int
    limit: Limit
    began: Mark


class Watchdog:
    """One thread. `late` is called in it, once for each layer that overruns; `alone`, once the process of the pidfd `kernel` has ended."""

    def __init__(
        self,
        late: Callable[[Watched, float], None],
        core: CoreWait,
        kernel: int,
        alone: Callable[[], None],
    ) -> None:
        self._late, self._core, self._alone = late, core, alone
        self._busy = threading.Event()
        self._kernel = select.poll()
        self._kernel.register(kernel, select.POLLIN)
        self.now: Watched | None = None
        threading.Thread(target=self._run, name="gpushare-watchdog", daemon=True).start()

    def wake(self) -> None:
        """There is work."""
        self._busy.set()

    def rest(self) -> None:
        """There is none."""
        self.now = None
        self._busy.clear()

    def _run(self) -> None:
        told: Watched | None = None
        self._core.leave_out(threading.get_native_id())
        while True:
            self._busy.wait()
            seen = self.now
            if seen is not None and seen is not told:
                took = time.monotonic() - seen.began.wall - self._core.so_far(seen.began)
                # A wait that still lasts is not counted yet: one look more than it should take, and it is told.
                if took > seen.limit.seconds + PACE:
                    told = seen
                    self._late(seen, took)
            if self._kernel.poll(1000 * PACE):
                self._alone()
                return
