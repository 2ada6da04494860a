"""What users are told of how their work shares the device: once for each piece of work, and only where it matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from gpushare_kernel.core.config import Config
from gpushare_kernel.core.instructions import Instruction, Slow
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.values import UserId


class Telling:
    """Knows who wants the device, and since when each shares it."""

    def __init__(self, config: Config, emit: Callable[[Instruction], None]) -> None:
        self._config, self._emit = config, emit
        self._users: Counter[UserId] = Counter()  # of those that want the device

    def joined(self, session: Session) -> None:
        """`session` wants the device."""
        self._users[session.user.id] += 1

    def left(self, session: Session) -> None:
        """`session` wants it no more: what comes next is other work."""
        self._users[session.user.id] -= 1
        if not self._users[session.user.id]:
            del self._users[session.user.id]
        session.shared_since, session.shared_told = None, False

    def shares(self, session: Session, at: float) -> None:
        """`session` shares the device from now on."""
        session.shared_since, session.shared_used = at, session.device_time

    def came(self, session: Session, waited: float, at: float) -> None:
        """`session` comes to its turn after `waited` seconds."""
        if waited >= self._config.tell_paused and session.turns > 1:
            session.shared_told = True  # a speed would be the same news again, in worse words
            self._emit(Slow(session.id, self._others(session), 0.0, waited))
        self.goes_on(session, at)

    def goes_on(self, session: Session, at: float) -> None:
        """`session` has the device: after a while of sharing its user is told, and at which speed it runs."""
        since = session.shared_since
        if since is None or session.shared_told or at - since < self._config.tell_shared:
            return
        session.shared_told = True
        whole = (at - since) * (session.counted or 1.0)
        fraction = min(1.0, (session.device_time - session.shared_used) / whole)
        self._emit(Slow(session.id, self._others(session), fraction))

    def _others(self, session: Session) -> int:
        return len(self._users) - (session.user.id in self._users)
