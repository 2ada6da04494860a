"""Who there is on this host: users and unix groups, as its directory knows them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import threading
from collections.abc import Callable
from difflib import get_close_matches
from typing import TypeVar

LIMIT = 5.0
"""Seconds for which a look-up is waited for: less than a command waits for the broker."""
_T = TypeVar("_T")


class People:
    """The host's directory. Its answers may take long: whoever asks keeps them."""

    def has_user(self, name: str) -> bool:
        """Say whether there is such an account."""
        try:
            pwd.getpwnam(name)
        except KeyError:
            return False
        return True

    def has_group(self, name: str) -> bool:
        """Say whether there is such a unix group."""
        try:
            grp.getgrnam(name)
        except KeyError:
            return False
        return True

    def groups_of(self, user: str) -> frozenset[str] | None:
        """Return the unix groups of an account; None where it knows no such account, which may be its fault."""
        try:
            found = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
        except KeyError:
            return None
        return frozenset(name for gid in found if (name := _group_name(gid)))

    def nearest(self, name: str, *, group: bool) -> str:
        """Return the name of a user or a unix group that may have been meant; empty where none is near."""
        there = [one.gr_name for one in grp.getgrall()] if group else [one.pw_name for one in pwd.getpwall()]  # fmt: skip
        return next(iter(get_close_matches(name, there, 1)), "")


class Anybody(People):
    """Takes every name: for a file that was held against the directory before."""

    def has_user(self, name: str) -> bool:  # noqa: ARG002
        return True

    def has_group(self, name: str) -> bool:  # noqa: ARG002
        return True


class Lookups:
    """Asks the directory beside the loop, one question after the other: one that hangs holds up nobody but who asks."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        #: Whether a thread is out still whose answer nobody waits for any more.
        self._hangs = False

    @property
    def busy(self) -> bool:
        """Whether one is being asked."""
        return self._turn.locked()

    async def ask(self, question: Callable[[], _T]) -> _T:
        """Return what `question` returns, called in a thread.

        Raises
        ------
        OSError
            Where there is no thread to be had.
        TimeoutError
            Where that takes longer than `LIMIT`, those before it included, or one of them has not come back yet: there is one thread at most.
        """
        async with asyncio.timeout(LIMIT), self._turn:
            if self._hangs:
                raise TimeoutError
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[_T] = loop.create_future()
            self._hangs = True
            # No pool's: a broker that ends waits for those.
            thread = threading.Thread(target=self._answer, args=(question, answer, loop), name="gpushare-names", daemon=True)  # fmt: skip
            try:
                thread.start()
            except RuntimeError as problem:  # the host has no thread left for us
                self._hangs = False
                raise OSError(errno.EAGAIN, str(problem)) from problem
            return await answer

    def _answer(
        self,
        question: Callable[[], _T],
        answer: asyncio.Future[_T],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        found = problem = None
        try:
            found = question()
        except Exception as error:  # noqa: BLE001  whoever asks has it
            problem = error

        def take() -> None:
            self._hangs = False
            if answer.done():
                return
            if problem is not None:
                answer.set_exception(problem)
            else:
                answer.set_result(found)  # type: ignore[arg-type]

        with contextlib.suppress(RuntimeError):  # the broker has ended
            loop.call_soon_threadsafe(take)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
