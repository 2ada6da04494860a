"""Whom samples are asked of: who runs, who just gave its turn back, and a few of those who stand still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice

from gpushare_kernel.core.records import Session
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import SessionId

LOOKS = 1
"""How many of those who stand still are looked at with each sample, one after the other: a bound on work, which is taken from those who run."""
IDLE_LOOKS = 16
"""How many of those who run and do next to nothing on the device are."""


class Watch:
    """Takes turns among those who are to be looked at. `using` are those who use the device, as their turns keep it."""

    def __init__(self, using: dict[SessionId, Session]) -> None:
        self._using = using
        #: Who gave its turn back since it was last sampled, and who was sampled since and still stands still.
        self._left_now: dict[SessionId, Session] = {}
        self._standing: dict[SessionId, Session] = {}

    def __iter__(self) -> Iterator[SessionId]:
        """Yield who is to be sampled next."""
        using: Mapping[SessionId, Session] = self._using
        work = (name for name, session in using.items() if session.counted > 0)
        idle = (name for name, session in using.items() if session.counted <= 0)
        return chain(work, islice(idle, IDLE_LOOKS), self._left_now, islice(self._standing, LOOKS))

    def left(self, session: Session) -> None:
        """`session` gave its turn back."""
        self._left_now[session.id] = session

    def sampled(self, session: Session) -> None:
        """`session` was sampled: if it stands still, the others that do come before it again."""
        self.forget(session)
        if session.counted <= 0 and session.id in self._using:
            self._using[session.id] = self._using.pop(session.id)
        still = session.stopped is not None or session.held > 0
        if still and session.phase is Phase.WAITING:
            self._standing[session.id] = session

    def forget(self, session: Session) -> None:
        """`session` wants nothing."""
        self._left_now.pop(session.id, None)
        self._standing.pop(session.id, None)
