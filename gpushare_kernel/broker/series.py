"""Which users' metrics have a series of their own: those who used most, so many at most; the rest is one. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from gpushare_kernel.core.values import UserId

OTHER = "other"


class Series:
    """Device time by name, for `most` names at a time.

    What somebody used since the last look counts for that name, or for `other`: so every series only ever grows, also
    when another one is among the first from now on.
    """

    def __init__(self, most: int, known: Mapping[UserId, float]) -> None:
        """`known` is what is in the accounts already: it was not used since our start."""
        self._most = most
        self._seen = dict(known)
        self._began = dict(known)
        self.used: defaultdict[str, float] = defaultdict(float)
        self.named: frozenset[UserId] = frozenset()

    def look(self, accounts: Mapping[UserId, float]) -> None:
        """Take in what everybody has used in all."""
        since_start = {user: used - self._began.get(user, 0.0) for user, used in accounts.items()}
        ranked = sorted(since_start, key=lambda user: (-since_start[user], user))
        self.named = frozenset(ranked[: self._most])
        for user, used in accounts.items():
            more = used - self._seen.get(user, 0.0)
            self._seen[user] = used
            self.used[self.label(user)] += max(0.0, more)

    def label(self, user: UserId) -> str:
        """Return what `user` counts as now."""
        return user if user in self.named else OTHER
