"""Keeps a guardian beside the broker: starts it, sees it die, resumes everybody and starts another (I4)."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable, Sequence

from gpushare_kernel.broker.guardian import spawn_guardian
from gpushare_kernel.broker.intents import IntentTable
from gpushare_kernel.transport.places import Places

_SLOWEST = 10.0
_logger = logging.getLogger(__name__)


class Keeper:
    """The broker's side of its guardian."""

    def __init__(self, table: IntentTable, places: Places, command: Sequence[str]) -> None:
        self._table, self._places, self._command = table, places, command
        self._guardian: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._again: asyncio.TimerHandle | None = None
        self._deaths = 0
        self._resume: Callable[[], None] = lambda: None

    def start(self, resume_everybody: Callable[[], None]) -> None:
        """Start a guardian; whenever it dies, resume everybody first and start another."""
        self._resume = resume_everybody
        self._again = None
        try:
            self._guardian = spawn_guardian(self._table, self._places, self._command)
            self._pidfd = os.pidfd_open(self._guardian.pid)
        except OSError:
            _logger.exception("a guardian cannot be started: it is tried again")
            self._again = asyncio.get_running_loop().call_later(
                _SLOWEST, self.start, resume_everybody
            )
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    async def stop(self) -> None:
        """Tell the guardian that we go on purpose. It sees our end by itself."""
        self._table.mark_clean_exit()
        if self._again is not None:
            self._again.cancel()
        self._let_go()

    def _died(self) -> None:
        self._let_go()
        guardian, self._guardian = self._guardian, None
        code = guardian.wait() if guardian is not None else None
        self._deaths += 1
        _logger.warning("the guardian died: everybody is resumed", extra={"code": code})
        self._resume()
        loop = asyncio.get_running_loop()
        delay = min(_SLOWEST, 0.1 * 2 ** (self._deaths - 1) - 0.1)
        self._again = loop.call_later(delay, self.start, self._resume)

    def _let_go(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
