"""What administrators have begun: a maintenance, a word to everybody. Both outlive the broker, until somebody ends them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpushare_kernel.broker.persons import Person
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.records import Session
from gpushare_kernel.wire.admin_texts import (
    announced_text,
    maintenance_begins_text,
    maintenance_over_text,
)
from gpushare_kernel.wire.messages import Announce
from gpushare_kernel.wire.snapshot import AnnouncementView, MaintenanceView

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.broker.kernels import Kernel

_DRAIN, _WORD = "maintenance", "announcement"
_logger = logging.getLogger(__name__)


class Upkeep:
    """A maintenance, and an announcement."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        #: Since when there is a maintenance (None: there is none), and what is said of it; whether it was seen to be done.
        self.since: float | None = None
        self.note = ""
        self._was_empty = False
        self.word: AnnouncementView | None = None

    def restore(self, notes: Iterable[tuple[str, str]]) -> None:
        """Go on with what a broker before us had begun."""
        for name, value in notes:
            try:
                since, text = json.loads(value)
            except ValueError:
                continue
            if name == _WORD:
                self.word = AnnouncementView(str(text), float(since))
            elif name == _DRAIN:
                self.since, self.note = float(since), str(text)
                self._feed(on=True)

    # --- maintenance -----------------------------------------------------------------------------------------

    def drain(self, note: str) -> None:
        """Let nothing new in, with this note; said again, with another one."""
        news = self.since is None
        self.since, self.note, self._was_empty = self.since or time.time(), note, False
        self._broker.ledger.noted(_DRAIN, json.dumps([self.since, note]))
        self._feed(on=True)
        if news:
            self._broker.say(Announce(maintenance_begins_text(note), keep=True))

    def end(self) -> None:
        """Let everybody in again."""
        if self.since is None:
            return
        self.since, self.note = None, ""
        self._broker.ledger.noted(_DRAIN, "")
        self._feed(on=False)
        self._broker.say(Announce(maintenance_over_text(), keep=True))

    def look(self) -> None:
        """Note the moment at which nothing runs any more."""
        if self.since is not None and not self._was_empty and self._is_empty():
            self._was_empty = True
            _logger.info("nothing runs on the device any more: it may be taken away")

    def view(self, who: Person) -> MaintenanceView | None:
        """Return how far it is, in names that `who` may know."""
        if self.since is None:
            return None
        idle = [one for one in self._broker.sessions() if not _runs(one) and one.moving is None]
        return MaintenanceView(
            self.since,
            self.note,
            tuple(self._name(one, who) for one in self._broker.sessions() if _runs(one)),
            tuple(self._name(one, who) for one in idle if one.charged or one.context),
            sum(one.parked is not None for one in self._broker.sessions()),
            self._is_empty(),
        )

    def _feed(self, *, on: bool) -> None:
        for engine in self._broker.engines.values():
            engine.feed(ev.Draining(at=engine.now, on=on, note=self.note))

    def _is_empty(self) -> bool:
        return not any(_runs(one) or one.moving is not None for one in self._broker.sessions())

    def _name(self, session: Session, who: Person) -> str:
        kernel = self._broker.registry.get(session.id)
        if kernel is None or not self._broker.may_see(who, kernel):
            return self._broker.aliases.of(session.user.id)
        return kernel.name if kernel.person == who else f"{kernel.user}: {kernel.name}"

    # --- a word to everybody -------------------------------------------------------------------------------------

    def proclaim(self, text: str) -> int:
        """Tell everybody who is here, and who comes; say how many notebooks are here. Empty: take it back."""
        self.word = AnnouncementView(text, time.time()) if text else None
        self._broker.ledger.noted(_WORD, json.dumps([time.time(), text]) if text else "")
        here = [kernel for kernel in self._broker.registry if kernel.lines]
        for kernel in here:
            self.greet(kernel)
        return len(here)

    def all_told(self) -> None:
        """Whoever is known now was told by the broker before us."""
        since = 0.0 if self.word is None else self.word.since
        for kernel in self._broker.registry:
            kernel.heard = since

    def greet(self, kernel: Kernel) -> None:
        """Tell one notebook, which is here since a moment, what it was not told yet."""
        if self.word is not None and kernel.heard != self.word.since:
            kernel.heard = self.word.since
            kernel.lines[0].notify(Announce(announced_text(self.word.text), keep=True))


def _runs(session: Session) -> bool:
    return any(job.granted is not None for job in session.jobs.values())
