"""What one user may cost everybody else: connections, bytes it leaves unread, and the broker's time. Counted by uid, here only.

Who administers (root, the broker's owner) is not held to the time: it may stop the broker anyway.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections import deque
from collections.abc import Callable
from typing import Protocol

from gpushare_kernel.core.errors import Busy, UserError
from gpushare_kernel.transport.strange import Strange
from gpushare_kernel.wire import limit_texts as texts

HANDSHAKES = 64
CONNECTIONS = 2048
"""At most, and never more than a quarter of the broker's descriptors."""
UNREAD = 32 * 2**20
"""Bytes that all connections of one user may leave unread together."""
SHARE = 0.05
"""How much of the loop's time one user's frames may take, in seconds a second; who takes more waits until it has less.

So little because a broker that is busy is no longer woken at once where cores are contended: at 0.25 a flood made others' hand-overs
up to 20 times as long, though the loop itself was free (benchmarks/hostile). Fifty hand-overs a second take 0.01.
"""
BURST = 0.05
"""Seconds of it that somebody quiet may take at once: nobody else's hand-over waits longer. Nobody's debt is larger, so that it ends."""
HELLO = 0.0005
"""What a handshake counts for, in seconds (it waits between its steps, so it is not measured)."""
TURNED_AWAY = 0.0001
_SAY_AGAIN = 60.0


class Reader(Protocol):
    """A connection, as far as its user's unread bytes are counted."""

    @property
    def buffered(self) -> int:
        """How many bytes it has yet to read."""


class Allowance:
    """One user's: what it has left, and who of its connections waits for more."""

    def __init__(self, *, limited: bool) -> None:
        self.greeting = 0
        self.connections: set[Reader] = set()
        #: Descriptors that it passed.
        self.strange = Strange()
        self._limited = limited
        self._left, self._at = BURST, 0.0
        self._waiting: deque[Callable[[], object]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._said: dict[str, float] = {}

    def refusal(self) -> UserError | None:
        """Return why another connection of this user is turned away; None where it is not."""
        most = most_connections()
        if len(self.connections) >= most:
            return UserError(texts.connections_text(most, len(self.connections)))
        if self.greeting >= HANDSHAKES:
            return Busy(texts.handshakes_text(HANDSHAKES, self.greeting))
        return None

    def spend(self, seconds: float) -> None:
        """Charge what was done for this user."""
        if self._limited:
            self._refill()
            self._left = max(-BURST, self._left - seconds)

    @property
    def exhausted(self) -> bool:
        """Whether this user has to wait."""
        if self._limited and self._left <= 0:
            self._refill()
        return self._limited and self._left <= 0

    def wait(self, go: Callable[[], object]) -> None:
        """Call `go` once this user has time left, after those that wait already: one a turn of the loop."""
        self._waiting.append(go)
        self._arm()

    async def turn(self) -> None:
        """Wait until this user has time left."""
        if not self.exhausted:
            return
        ready = asyncio.Event()
        self.wait(ready.set)
        await ready.wait()

    def reads_too_little(self) -> bool:
        """Whether the user's connections together leave more unread than they may."""
        return sum(one.buffered for one in self.connections) > UNREAD

    def worth_saying(self, what: str) -> bool:
        """Whether the log is to have a line about this user: one a minute of each kind, else it floods, too."""
        now = asyncio.get_running_loop().time()
        if now - self._said.get(what, -_SAY_AGAIN) < _SAY_AGAIN:
            return False
        self._said[what] = now
        return True

    def _refill(self) -> None:
        now = asyncio.get_running_loop().time()
        self._left = min(BURST, self._left + SHARE * (now - self._at))
        self._at = now

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            delay = max(0.0, -self._left / SHARE) if self.exhausted else 0.0
            self._timer = asyncio.get_running_loop().call_later(delay, self._serve)

    def _serve(self) -> None:
        self._timer = None
        if not self.exhausted:
            self._waiting.popleft()()
        self._arm()


class Allowances:
    """Everybody's."""

    def __init__(self) -> None:
        self._of: dict[int, Allowance] = {}

    def of(self, uid: int) -> Allowance:
        """Return that of one user; kept, so that who leaves and comes back finds its debt again."""
        known = self._of.get(uid)
        if known is None:
            known = self._of[uid] = Allowance(limited=uid not in {0, os.geteuid()})
        return known


def most_connections() -> int:
    """Return how many connections a user may have: its sessions hold as many descriptors again, and others come in still."""
    return min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
