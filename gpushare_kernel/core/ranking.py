"""Those who wait, of every user, in the order of a policy: users first, then what each has. All operations are O(log n)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import islice
from typing import Generic, Protocol, TypeVar

from sortedcontainers import SortedKeyList

from gpushare_kernel.core.records import Key, User

SCAN = 64
DEEP = 16
"""How many users, and how many of one user, are looked at for one decision: a bound on work, far above what fits a device."""


class Ranked(Protocol):
    """What can wait: its key is fixed while it does."""

    rank: Key


T = TypeVar("T", bound=Ranked)


class Ranking(Generic[T]):
    """Who waits. `user_key(user, best, ahead)` ranks a user whose best has the key `best` and who was given `ahead` already."""

    def __init__(self, user_key: Callable[[User, Key, float], Key]) -> None:
        self._user_key = user_key
        self._waiting: dict[User, SortedKeyList] = {}
        self._users: SortedKeyList = SortedKeyList(key=_first)
        self._keys: dict[User, tuple[Key, User]] = {}

    def __iter__(self) -> Iterator[T]:
        """Everybody, in no order."""
        for waiting in self._waiting.values():
            yield from waiting

    @property
    def users(self) -> int:
        """How many users wait."""
        return len(self._waiting)

    def add(self, user: User, one: T) -> None:
        """`one` of `user` waits, with the key it has."""
        waiting = self._waiting.get(user)
        if waiting is None:
            waiting = self._waiting[user] = SortedKeyList(key=_rank_of)
        waiting.add(one)
        self.rerank(user)

    def remove(self, user: User, one: T) -> None:
        """`one` of `user` waits no more; nothing where it does not."""
        waiting = self._waiting.get(user)
        if waiting is None or one not in waiting:
            return
        waiting.remove(one)
        if not waiting:
            del self._waiting[user]
        self.rerank(user)

    def move(self, user: User, one: T, key: Key) -> bool:
        """`one` of `user` has another key from now on; False (and nothing changes) where it does not wait."""
        waiting = self._waiting.get(user)
        if waiting is None or one not in waiting:
            return False
        waiting.remove(one)
        one.rank = key
        waiting.add(one)
        self.rerank(user)
        return True

    def waits(self, user: User, one: T) -> bool:
        """Whether `one` waits."""
        waiting = self._waiting.get(user)
        return waiting is not None and one in waiting

    def has(self, user: User) -> bool:
        """Whether anything of `user` waits."""
        return user in self._waiting

    def best(self) -> tuple[Key, User, T] | None:
        """Return the best user's key, that user, and the user's best; None where nobody waits."""
        if not self._users:
            return None
        key, user = self._users[0]
        return key, user, self._waiting[user][0]

    def rerank(self, user: User) -> None:
        """What `user` is ranked by may have changed."""
        old = self._keys.pop(user, None)
        if old is not None:
            self._users.remove(old)
        waiting = self._waiting.get(user)
        if waiting:
            entry = self._keys[user] = (self._user_key(user, waiting[0].rank, 0.0), user)
            self._users.add(entry)

    def ranked(
        self,
        cost: Callable[[T], float],
        *,
        scan: int | None = SCAN,
        deep: int | None = DEEP,
    ) -> Iterator[T]:
        """Yield who waits, best first. Each that the caller takes (by `remove`) puts its user `cost` ahead."""
        heap: list[tuple[Key, int, User, int]] = []
        rest = iter(list(islice(self._users, scan)))
        ahead: dict[User, float] = {}
        upcoming = next(rest, None)
        order = 0
        while upcoming is not None or heap:
            while upcoming is not None and (not heap or upcoming[0] <= heap[0][0]):
                heappush(heap, (upcoming[0], order, upcoming[1], 0))
                order += 1
                upcoming = next(rest, None)
            _, _, user, at = heappop(heap)
            waiting = self._waiting.get(user)
            if waiting is None or at >= len(waiting):
                continue
            one: T = waiting[at]
            yield one
            waiting = self._waiting.get(user)
            number = 0 if waiting is None else len(waiting)
            if waiting is not None and at < number and waiting[at] is one:
                at += 1  # not taken: try the user's next
            else:
                ahead[user] = ahead.get(user, 0.0) + cost(one) / user.weight
            if waiting is not None and at < (number if deep is None else min(number, deep)):
                key = self._user_key(user, waiting[at].rank, ahead.get(user, 0.0))
                heappush(heap, (key, order, user, at))
                order += 1


def _first(entry: tuple[Key, User]) -> Key:
    return entry[0]


def _rank_of(one: Ranked) -> Key:
    return one.rank
