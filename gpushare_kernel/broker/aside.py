"""What a notebook's user reads while its memory is set aside and a cell asks for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gpushare_kernel.broker import views
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.values import SessionId
from gpushare_kernel.wire import parking_texts
from gpushare_kernel.wire.messages import Announce

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker

QUIET = 1.0
"""Seconds of waiting that nobody needs to read about."""


class Aside:
    """Tells a cell that what it asks for is not there yet, once, and when it is."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._timers: dict[SessionId, asyncio.TimerHandle] = {}
        self._told: set[SessionId] = set()

    def asked(self, session: SessionId) -> None:
        """A cell of `session` waits for what is set aside."""
        if session not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[session] = loop.call_later(QUIET, self._tell, session)

    def returned(self, session: SessionId, lost: str) -> None:
        """It is back, or lost."""
        if lost:
            self._say(session, parking_texts.lost_text(lost))
        elif session in self._told:
            self._say(session, parking_texts.MEMORY_BACK)
        self.forget(session)

    def forget(self, session: SessionId) -> None:
        """Nothing of it is asked for any more."""
        self._told.discard(session)
        timer = self._timers.pop(session, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Say nothing more."""
        for session in [*self._timers]:
            self.forget(session)

    def _tell(self, session: SessionId) -> None:
        del self._timers[session]
        core, kernel = self._broker.engine_of(session).scheduler, self._broker.registry.get(session)
        record = core.sessions.get(session)
        if record is None or record.parked is None or kernel is None or kernel.aside:
            return  # whose client has set it aside itself says so where it waits
        job = next((job for job in record.jobs.values() if job.in_driver), None)
        if job is None:
            return  # the cell is over, or a job of it says what it waits for
        self._told.add(session)
        wait = views.named(self._broker, why(core, job), kernel.person)
        self._say(session, parking_texts.aside_text(record.parked.size, wait))

    def _say(self, session: SessionId, text: str) -> None:
        kernel = self._broker.registry.get(session)
        if kernel is not None:
            kernel.notify(Announce(text))
