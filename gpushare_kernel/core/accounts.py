"""Who wants a turn, in the order in which they deserve it (I6): max-min by user, then by session, weighted.

Start-time fair queueing with measured use: everyone has a virtual time (device seconds used in competition, divided by
weight) and the smallest comes next. Credit is bounded both ways: whoever slept, arrived late or used less than its share
starts at most one turn ahead of those who compete. All operations are O(log n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush

from sortedcontainers import SortedKeyList

from gpushare_kernel.core.policies import Policy
from gpushare_kernel.core.records import Session, User

_SCAN = 64
_DEEP = 16
"""How many users, and sessions of one user, are looked at for one frame: a bound on work, far above what fits a device."""

_Entry = tuple[tuple[float, int], int, User, int]


class Accounts:
    """The waiting sessions of every user, and the virtual times."""

    def __init__(self, policy: Policy, credit: float) -> None:
        self.policy = policy
        #: Device seconds of one turn: how far a newcomer or sleeper may be ahead of those who compete.
        self.credit = credit
        #: The least virtual time of those who compete (never falls), and what one turn is worth to that user.
        self.now = 0.0
        self.now_turn = 0.0
        #: How often anybody has joined.
        self.joins = 0
        self._waiting: dict[User, SortedKeyList] = {}
        self._users: SortedKeyList = SortedKeyList(key=lambda entry: entry[0])
        self._keys: dict[User, tuple[tuple[float, int], User]] = {}

    @property
    def users(self) -> int:
        """How many users have a session that waits."""
        return len(self._waiting)

    def sessions(self) -> Iterator[Session]:
        """Every session that waits, in no order."""
        for waiting in self._waiting.values():
            yield from waiting

    def join(self, session: Session) -> None:
        """`session` wants a turn and has none. An account further behind than credit allows is lifted to the bound."""
        self.joins += 1
        user = session.user
        user.vtime = max(user.vtime, self.now - self.now_turn - self.credit / user.weight)
        session.vtime = max(
            session.vtime, user.floor - user.floor_turn - self.credit / session.weight
        )
        self._add(session)

    def leave(self, session: Session) -> None:
        """`session` got its turn, or wants none."""
        waiting = self._waiting.get(session.user)
        if waiting is None or session not in waiting:
            return
        waiting.remove(session)
        if not waiting:
            del self._waiting[session.user]
        self._rank(session.user)

    def waits(self, session: Session) -> bool:
        """Whether `session` waits for a turn."""
        waiting = self._waiting.get(session.user)
        return waiting is not None and session in waiting

    def has_waiting(self, user: User) -> bool:
        """Whether a session of `user` waits for a turn."""
        return user in self._waiting

    def charge(self, session: Session, seconds: float) -> None:
        """`session` used `seconds` of the device in competition."""
        waits = self.waits(session)
        if waits:
            self.leave(session)
        session.vtime += seconds / session.weight
        session.user.vtime += seconds / session.user.weight
        if waits:
            self._add(session)
        else:
            self._rank(session.user)

    def ranked(self, cost: Callable[[Session], float]) -> Iterator[Session]:
        """Yield waiting sessions, best first. Each that the caller takes (by `leave`) puts its user `cost` device seconds ahead."""
        heap: list[_Entry] = []
        rest = iter(list(self._users[:_SCAN]))
        ahead: dict[User, float] = {}
        upcoming = next(rest, None)
        order = 0
        while upcoming is not None or heap:
            while upcoming is not None and (not heap or upcoming[0] <= heap[0][0]):
                user = upcoming[1]
                heappush(heap, (upcoming[0], order, user, 0))
                order += 1
                upcoming = next(rest, None)
            _, _, user, at = heappop(heap)
            waiting = self._waiting.get(user)
            if waiting is None or at >= len(waiting):
                continue
            session = waiting[at]
            yield session
            if self.waits(session):
                at += 1  # not taken: try the user's next
            else:
                ahead[user] = ahead.get(user, 0.0) + cost(session) / user.weight
            waiting = self._waiting.get(user)
            if waiting is not None and at < min(len(waiting), _DEEP):
                key = self.policy.user_key(user, waiting[at], ahead.get(user, 0.0))
                heappush(heap, (key, order, user, at))
                order += 1

    def advance(self, squeezed: Session | None = None) -> None:
        """A frame was filled: those still waiting compete, and their virtual time is the present.

        `squeezed` competes too: it is in the frame with less than it can use.
        """
        best = squeezed
        if self._users:
            user = self._users[0][1]
            if best is None or user.vtime < best.user.vtime:
                best = self._waiting[user][0]
        if best is None:
            return
        user = best.user
        if user.vtime >= self.now:
            self.now, self.now_turn = user.vtime, self.credit / user.weight
        if best.vtime >= user.floor:
            user.floor, user.floor_turn = best.vtime, self.credit / best.weight

    def follow(self, policy: Policy, users: Iterable[User], sessions: Iterable[Session]) -> None:
        """Rank everybody by another policy, from equal accounts: what the former one gave is not paid back."""
        self.policy = policy
        self.now = self.now_turn = 0.0
        waiting = [*self.sessions()]
        self._waiting.clear()
        self._users.clear()
        self._keys.clear()
        for user in users:
            user.vtime = user.floor = user.floor_turn = 0.0
        for session in sessions:
            session.vtime = 0.0
        for session in waiting:
            self._add(session)

    def _add(self, session: Session) -> None:
        waiting = self._waiting.get(session.user)
        if waiting is None:
            waiting = self._waiting[session.user] = SortedKeyList(key=_rank_of)
        session.rank = self.policy.session_key(session)
        waiting.add(session)
        self._rank(session.user)

    def _rank(self, user: User) -> None:
        old = self._keys.pop(user, None)
        if old is not None:
            self._users.remove(old)
        waiting = self._waiting.get(user)
        if waiting:
            entry = self._keys[user] = (self.policy.user_key(user, waiting[0], 0.0), user)
            self._users.add(entry)


def _rank_of(session: Session) -> tuple[float, int]:
    return session.rank
