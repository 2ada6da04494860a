"""Who is at the other end of a socket: a uid, as the kernel says, and where many people share one, the name their hub vouches for (I9)."""

from __future__ import annotations

import logging
import pwd
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from gpushare_kernel.core.errors import HubAway
from gpushare_kernel.core.values import UserId
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.wire import limit_texts

HUB = " (hub)"
"""What is written behind a hub's name that is an account of this host, too."""
_SAY_AGAIN = 60.0
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
            if time.monotonic() - self._said >= _SAY_AGAIN:
                self._said = time.monotonic()
                _logger.warning(text, extra={"uid": peer.uid})
            return Person(peer.uid), text


@lru_cache(maxsize=4096)  # a directory service that is slow must not hold up turns
def user_name(uid: int) -> UserId:
    """Return the account name of `uid`, or the number where it has none."""
    try:
        return UserId(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return UserId(str(uid))


@lru_cache(maxsize=4096)
def hub_user(name: str) -> UserId:
    """Return the account of a hub's `name`: marked where the host has, or may show, an account that is called so.

    Also where it is that of the uid itself: many share that, and whoever shows no token has it. An account without a
    name is its number; and what ends as a marked name does is marked, so that no two names make one account.
    """
    if name.isdecimal() or name.endswith(HUB):
        return UserId(name + HUB)
    try:
        pwd.getpwnam(name)
    except KeyError:
        return UserId(name)
    return UserId(name + HUB)
