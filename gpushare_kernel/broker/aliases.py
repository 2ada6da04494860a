"""What people are called before others (I9)."""

from __future__ import annotations

from gpushare_kernel.core.values import UserId


def initials(user: UserId) -> str:
    """Return what others see of a user: `ann.lee` is `al`, `bob` is `b`."""
    parts = [part for part in user.replace("-", ".").replace("_", ".").split(".") if part]
    return "".join(part[0] for part in parts)[:3].lower() or "?"


class Aliases:
    """What others see of each user: initials, and a number for whoever has the same as somebody before. Lasts as long as the broker."""

    def __init__(self) -> None:
        self._of: dict[UserId, str] = {}
        self._taken: set[str] = set()

    def of(self, user: UserId) -> str:
        """Return what others see of `user`: the same every time, and nobody else's."""
        alias = self._of.get(user)
        if alias is None:
            short = initials(user)
            alias, number = short, 1
            while alias in self._taken:
                number += 1
                alias = f"{short}{number}"
            self._of[user] = alias
            self._taken.add(alias)
        return alias
