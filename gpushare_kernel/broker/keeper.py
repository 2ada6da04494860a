"""Keeps a guardian beside the broker: starts it, sees it die, resumes everybody and starts another (I4)."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence

from gpushare_kernel.broker.guardian import spawn_guardian
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.transport.places import Places

_SLOWEST = 10.0
_GROWN_UP = 60.0
"""A guardian that lived for so many seconds did not die of its start."""
BEAT = 1.0
"""Seconds between two signs of life: `guardian.HANGS` looks without one, and it lets everybody run."""
FREE = 0.4
"""Seconds for which everybody may run, said anew in half that time, while there is no guardian."""
_logger = logging.getLogger(__name__)


class Keeper:
    """The broker's side of its guardian. `lock_worker`, `restarts`: see `spawn_guardian`."""

    def __init__(
        self,
        table: IntentTable,
        places: Places,
        command: Sequence[str],
        lock_worker: Sequence[str] = (),
        *,
        restarts: bool = True,
    ) -> None:
        self._table, self._places, self._command = table, places, command
        self._lock_worker, self._restarts = lock_worker, restarts
        self._guardian: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._again: asyncio.TimerHandle | None = None
        self._freeing: asyncio.TimerHandle | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._deaths = 0
        self._started = 0.0
        self._let_run: Callable[[float], None] = lambda _: None

    def start(self, let_run: Callable[[float], None]) -> None:
        """Start a guardian; whenever it dies, start another, and until it lives have `let_run` free everybody for seconds."""
        self._let_run = let_run
        self._again = None
        if self._beating is None:
            self._beat()
        try:
            guardian = spawn_guardian(
                self._table,
                self._places,
                self._command,
                self._lock_worker,
                restarts=self._restarts,
            )
            try:
                self._pidfd = os.pidfd_open(guardian.pid)
            except OSError:  # one that we could not see end is none
                guardian.kill()
                guardian.wait()
                raise
            self._guardian = guardian
        except OSError:
            _logger.exception("a guardian cannot be started: it is tried again")
            self._again = asyncio.get_running_loop().call_later(_SLOWEST, self.start, let_run)
            if self._freeing is None:
                self._free()
            return
        self._started = time.monotonic()
        if self._freeing is not None:
            self._freeing.cancel()
            self._freeing = None
        asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    async def stop(self) -> None:
        """Tell the guardian that we go on purpose. It sees our end by itself."""
        self._table.mark_clean_exit()
        for timer in (self._again, self._freeing, self._beating):
            if timer is not None:
                timer.cancel()
        self._let_go()

    def _died(self) -> None:
        self._let_go()
        guardian, self._guardian = self._guardian, None
        code = guardian.wait() if guardian is not None else None
        self._deaths = 1 if time.monotonic() - self._started > _GROWN_UP else self._deaths + 1
        _logger.warning("the guardian died: everybody is resumed", extra={"code": code})
        self._free()
        loop = asyncio.get_running_loop()
        delay = min(_SLOWEST, 0.1 * 2 ** (self._deaths - 1) - 0.1)
        self._again = loop.call_later(delay, self.start, self._let_run)

    def _beat(self) -> None:
        self._table.beat()
        self._beating = asyncio.get_running_loop().call_later(BEAT, self._beat)

    def _free(self) -> None:
        """Whoever stood still now would stay so if we died, too."""
        self._freeing = asyncio.get_running_loop().call_later(FREE / 2, self._free)
        self._let_run(FREE)

    def _let_go(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
