"""Who is at the other end of a socket: a uid, as the kernel says, and where many people share one, the name their hub vouches for (I9)."""

from __future__ import annotations

import logging
import pwd
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Generic, Protocol, TypeVar

from gpushare_kernel.core.errors import HubAway
from gpushare_kernel.core.values import UserId
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.wire import limit_texts

HUB = " (hub)"
"""What is written behind a hub's name that is an account of this host, too."""
BELIEVED = 10.0
"""Seconds for which it holds that the directory knows no such account, or did not answer: that may be over in a moment."""
_MOST = 4096
_SAY_AGAIN = 60.0
_Key = TypeVar("_Key", int, str)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody. `hub` is the name that a hub vouches for, empty where the uid says it all."""

    uid: int
    hub: str = ""

    @property
    def user(self) -> UserId:
        """The account: what is used, weights, groups and caps go by it, and it is what people read.

        Whom a hub vouches for and whom the host does never have the same one, whatever they are called.
        """
        return hub_user(self.hub) if self.hub else user_name(self.uid)


class Hub(Protocol):
    """Whoever vouches for names."""

    async def name(self, token: str) -> str:
        """Return whose token it is.

        Raises
        ------
        NotVouched
            Where it is nobody's: forged, or expired.
        HubAway
            Where nobody can tell now.
        """

    @property
    def trouble(self) -> str | None:
        """What is wrong with it; None while all is well."""


class Persons:
    """Tells who asks.

    Parameters
    ----------
    hub
        Whoever vouches for names; None where a uid is a person everywhere.
    shared
        The uids that several people have; None for all.
    """

    def __init__(self, hub: Hub | None = None, shared: Collection[int] | None = None) -> None:
        self.hub, self._shared = hub, shared
        self._said = -_SAY_AGAIN

    def share(self, uid: int) -> bool:
        """Whether a uid says nothing about who it is."""
        return self.hub is not None and (self._shared is None or uid in self._shared)

    def many(self, uid: int) -> bool:
        """Whether a uid was named as that of many (not: all are, as nobody named any)."""
        return self._shared is not None and self.share(uid)

    async def who(self, peer: Peer, token: str) -> tuple[Person, str]:
        """Return who a peer with this hub token is, and what they should know of it.

        Where the hub does not answer it is the account of the uid, with all others of whom nobody knows more.

        Raises
        ------
        NotVouched
            Where the hub knows no such token.
        """
        if self.hub is None or not token or not self.share(peer.uid):
            return Person(peer.uid), ""
        try:
            return Person(peer.uid, await self.hub.name(token)), ""
        except HubAway as problem:
            text = limit_texts.hub_away_text(str(problem), user_name(peer.uid))
            if monotonic() - self._said >= _SAY_AGAIN:
                self._said = monotonic()
                _logger.warning(text, extra={"uid": peer.uid})
            return Person(peer.uid), text


class _Names(Generic[_Key]):
    """What accounts are called, as the host's directory says. A slow one must not hold up turns: it is asked once for an account that is there.

    That there is none may be its fault: after `BELIEVED` seconds it is asked again, by who comes in, beside the loop.
    """

    def __init__(self, look: Callable[[_Key], tuple[UserId, bool]]) -> None:
        self._look: Callable[[_Key], tuple[UserId, bool]] = look
        self._said: dict[_Key, UserId] = {}
        self._doubtful: dict[_Key, float] = {}

    def __call__(self, key: _Key) -> UserId:
        """Return what is known; the directory is asked here only where that is nothing."""
        if key not in self._said:
            self.learn(key)
        return self._said[key]

    def __contains__(self, key: _Key) -> bool:
        return key in self._said

    def due(self, key: _Key) -> bool:
        """Whether it is to be asked, again."""
        return key not in self._said or self._doubtful.get(key, inf) <= monotonic()

    def learn(self, key: _Key) -> None:
        """Ask it."""
        self._keep(key, *self._look(key))

    def doubt(self, key: _Key, otherwise: UserId) -> None:
        """It does not answer: what was known holds, or `otherwise`, for seconds."""
        self._keep(key, self._said.get(key, otherwise), sure=False)

    def _keep(self, key: _Key, name: UserId, sure: bool) -> None:  # noqa: FBT001
        while len(self._said) >= _MOST and key not in self._said:
            oldest = next(iter(self._said))
            del self._said[oldest]
            self._doubtful.pop(oldest, None)
        self._said[key] = name
        if sure:
            self._doubtful.pop(key, None)
        else:
            self._doubtful[key] = monotonic() + BELIEVED


def _account_of(uid: int) -> tuple[UserId, bool]:
    try:
        return UserId(pwd.getpwuid(uid).pw_name), True
    except KeyError:
        return UserId(str(uid)), False


def _hub_account_of(name: str) -> tuple[UserId, bool]:
    if name.isdecimal() or name.endswith(HUB):
        return UserId(name + HUB), True
    try:
        pwd.getpwnam(name)
    except KeyError:
        return UserId(name), False
    return UserId(name + HUB), True


user_name = _Names(_account_of)
"""The account name of a uid, or the number where it has none."""
hub_user = _Names(_hub_account_of)
"""The account of a hub's name: marked where the host has, or may show, an account that is called so.

Also where it is that of the uid itself: many share that, and whoever shows no token has it. An account without a
name is its number; and what ends as a marked name does is marked, so that no two names make one account.
"""


def due(who: Person) -> bool:
    """Whether the directory is to be asked what `who` is called."""
    return hub_user.due(who.hub) if who.hub else user_name.due(who.uid)


def heard(who: Person) -> bool:
    """Whether there is something to call `who` without asking it."""
    return who.hub in hub_user if who.hub else who.uid in user_name


def learn(who: Person) -> None:
    """Ask it; that may take long."""
    if who.hub:
        hub_user.learn(who.hub)
    else:
        user_name.learn(who.uid)


def doubt(who: Person) -> None:
    """It does not answer. A hub's name nobody knew before is marked: it may be an account's."""
    if who.hub:
        hub_user.doubt(who.hub, UserId(who.hub + HUB))
    else:
        user_name.doubt(who.uid, UserId(str(who.uid)))
