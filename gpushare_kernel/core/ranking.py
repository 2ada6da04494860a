"""Those who wait, of every user, in the order of a policy: users first, then what each has. All operations are O(log n)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import islice
from operator import attrgetter, itemgetter
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
        #: In order. Lists: most users have one that waits, and thousands are moved in microseconds.
        self._waiting: dict[User, list[T]] = {}
        self._users: SortedKeyList = SortedKeyList(key=itemgetter(0))
        self._keys: dict[User, tuple[Key, User]] = {}
        #: Who is first, until anybody comes, goes or is ranked anew.
        self._best: tuple[Key, User, T] | None = None
        #: How often anybody has come or gone.
        self._changes = 0

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
            waiting = self._waiting[user] = []
        insort(waiting, one, key=_rank_of)
        self._changes += 1
        self.rerank(user)

    def remove(self, user: User, one: T) -> None:
        """`one` of `user` waits no more; nothing where it does not."""
        waiting = self._waiting.get(user, [])
        at = _place(waiting, one)
        if at is None:
            return
        del waiting[at]
        self._changes += 1
        if not waiting:
            del self._waiting[user]
        self.rerank(user)

    def move(self, user: User, one: T, key: Key) -> bool:
        """`one` of `user` has another key from now on; False (and nothing changes) where it does not wait."""
        waiting = self._waiting.get(user, [])
        at = _place(waiting, one)
        if at is None:
            return False
        del waiting[at]
        self._changes += 1
        one.rank = key
        insort(waiting, one, key=_rank_of)
        self.rerank(user)
        return True

    def waits(self, user: User, one: T) -> bool:
        """Whether `one` waits."""
        return _place(self._waiting.get(user, []), one) is not None

    def has(self, user: User) -> bool:
        """Whether anything of `user` waits."""
        return user in self._waiting

    def best(self) -> tuple[Key, User, T] | None:
        """Return the best user's key, that user, and the user's best; None where nobody waits."""
        if self._best is None and self._users:
            key, user = self._users[0]
            self._best = key, user, self._waiting[user][0]
        return self._best

    def rerank(self, user: User) -> None:
        """What `user` is ranked by may have changed."""
        old, waiting = self._keys.get(user), self._waiting.get(user)
        if old is None and waiting is None:
            return
        self._best = None
        key = self._user_key(user, waiting[0].rank, 0.0) if waiting else None
        if old is not None:
            if old[0] == key:
                return
            self._users.remove(old)
            del self._keys[user]
        if key is not None:
            entry = self._keys[user] = (key, user)
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
            before = self._changes
            yield one
            waiting = self._waiting.get(user)
            number = 0 if waiting is None else len(waiting)
            if before == self._changes or (
                waiting is not None and at < number and waiting[at] is one
            ):
                at += 1  # not taken: try the user's next
            else:
                ahead[user] = ahead.get(user, 0.0) + cost(one) / user.weight
            if waiting is not None and at < (number if deep is None else min(number, deep)):
                key = self._user_key(user, waiting[at].rank, ahead.get(user, 0.0))
                heappush(heap, (key, order, user, at))
                order += 1


_rank_of = attrgetter("rank")


def _place(waiting: list[T], one: T) -> int | None:
    """Return where `one` stands among those in order; None where it does not."""
    at = bisect_left(waiting, one.rank, key=_rank_of)
    while at < len(waiting) and waiting[at].rank == one.rank:
        if waiting[at] is one:
            return at
        at += 1
    return None
