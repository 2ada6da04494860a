"""The warm tier of one session: the broker asks, the kernel's main thread moves when it is idle, the broker is told.

What is moved, and what is never, is `client.warm`'s to say (docs/warm.md); where it goes, `client.arena`'s (docs/arena.md).
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from gpushare_kernel.client import arena
from gpushare_kernel.wire import parking_texts
from gpushare_kernel.wire.aside import CameBack, PutBack, SetAside, WentAside
from gpushare_kernel.wire.messages import CellEnded, CellStarted

if TYPE_CHECKING:
    from gpushare_kernel.client.copying import Copier
    from gpushare_kernel.client.session import Session
    from gpushare_kernel.client.warm.warm import Warm

NOT_HERE = "this kernel has no torch on the GPU, or no front end of ours"
_NUMBERS = count(-1_000_000, -1)


class Moving:
    """Carries out what the broker asks for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._made: tuple[Warm, Copier] | None = None
        self._asked: int | None = None
        self._told = 0

    @property
    def aside(self) -> int:
        """Bytes that are set aside."""
        return 0 if self._made is None else self._made[0].away

    def attaching(self) -> int:
        """Return what a new broker is told of (reader thread)."""
        self._told = self.aside
        return self._told

    def went_up(self) -> None:
        """Say what has changed since then, and what somebody here waits for: a broker of before was told, not this one."""
        aside, asked = self.aside, self._asked
        if aside and not self._told:
            self._session.note(WentAside(0, aside))
        elif self._told and not aside:
            self._session.note(CameBack(0))
        if asked is not None:
            self._session.note(CellStarted(asked))

    def hears(self, notice: SetAside | PutBack) -> None:
        """Do it on the kernel's main thread, once nothing is in its way (reader thread)."""
        later = self._session.when_idle
        does = self._set_aside if isinstance(notice, SetAside) else self._put_back
        if later is not None and later(lambda: does(notice.ticket)):
            return
        if isinstance(notice, SetAside):
            self._session.note(WentAside(notice.ticket, 0, NOT_HERE))
        else:
            self._session.note(CameBack(notice.ticket))

    def _set_aside(self, ticket: int) -> None:
        copied, why = 0.0, NOT_HERE
        try:
            mover = self._session.mover  # whoever knows the kernel has set it
            self._made = self._made or (None if mover is None else mover())
            if self._made is not None:
                warm, copier = self._made
                warm.gate(self._waits, self._nobody_waits)
                copied, why = warm.set_aside(self._take, copier).copying, ""
        except Exception as problem:  # noqa: BLE001 - nothing has changed, whatever it was, and the broker waits for an answer
            why = f"{type(problem).__name__}: {problem}"
        self._session.note(WentAside(ticket, self.aside, why, copied))

    def _put_back(self, ticket: int) -> None:
        copied, why = 0.0, ""
        gpu = self._session.gpu
        if self._made is not None and gpu is not None:
            try:
                with gpu.uncapped():
                    copied = self._made[0].back().copying
            except Exception as problem:  # noqa: BLE001 - all of it is set aside still
                why = f"{type(problem).__name__}: {problem}"
        self._session.note(CameBack(ticket, why, copied))
        if not why:
            self._nobody_waits()

    def _take(self, size: int) -> arena.Lease:
        return arena.take(self._session, size)

    def _waits(self) -> str:
        """Somebody waits at the gate: ask for the memory, and say what it waits for (any thread)."""
        if self._asked is None:
            self._asked = next(_NUMBERS)
            self._session.note(CellStarted(self._asked))
        return parking_texts.held_text(self.aside)

    def _nobody_waits(self) -> None:
        """Nobody waits at the gate any more: it is open, or those who waited were interrupted (any thread)."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._session.note(CellEnded(asked, self._session.memory.recent()))
