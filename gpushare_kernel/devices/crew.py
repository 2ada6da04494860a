"""The lock workers of one broker: taken for one process at a time, kept warm in between, never waited for.

Each stands on record as long as it is ours, so that the guardian can end it before it unlocks anybody. One
that hangs is hung up on, taken off the record and left to itself: it undoes what comes through late. Ending it
instead could leave a lock that nobody undoes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from time import monotonic

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Hold, Intents
from gpushare_kernel.devices.lock_link import LockLink, WorkerLost

_IDLE = 4
"""Workers kept though nobody needs them now: another takes half a second to start."""
_FAREWELL = 2.0


class Crew:
    """Hands out workers, and takes them back."""

    def __init__(self, intents: Intents, command: Sequence[str]) -> None:
        self._intents = intents
        self._command = command
        self._idle: list[LockLink] = []
        self._leaving: list[tuple[ProcessKey | None, LockLink]] = []
        self._taken = 0
        #: Workers in a move, which stand on record as such until they have ended; those of a broker before us, too.
        self._moving: set[ProcessKey] = set()
        self._before = set(intents.held(Hold.MOVER))

    def take(self, key: ProcessKey) -> LockLink:
        """Return a worker for `key`, if possible the one that had it last; one in reserve is started for the next.

        Raises
        ------
        WorkerLost
            Where none can be started.
        """
        for dead in [link for link in self._idle if link.ended()]:
            self._idle.remove(dead)
            self.dismiss(None, dead)
        link = next((link for link in self._idle if link.last == key), None)
        if link is not None:
            self._idle.remove(link)
        else:
            link = self._idle.pop() if self._idle else self._hire()
        link.last = key
        self._taken += 1
        self.prepare()
        return link

    def prepare(self, processes: int = 0) -> None:
        """Have one in reserve, one more with each call where so many `processes` may have to be paused at once.

        To start one takes half a second that a pause should not wait for.
        """
        if len(self._idle) < max(1, min(_IDLE, processes - self._taken)):
            with contextlib.suppress(WorkerLost):
                self._idle.append(self._hire())

    def give_back(self, link: LockLink) -> None:
        """It holds nothing any more."""
        self._taken -= 1
        if len(self._idle) < _IDLE:
            self._idle.append(link)
        else:
            self.dismiss(None, link)

    def dismiss(self, key: ProcessKey | None, link: LockLink) -> None:
        """Hang up; where it was asked about `key` and still is at it, `busy_with` knows until it ends."""
        link.hang_up()
        if key is not None:
            self._taken -= 1
        if link.key is not None and link.key not in self._moving:
            self._intents.remove(link.key)
        self._leaving.append((key, link))

    def moves(self, link: LockLink) -> None:
        """It is about to park or restore somebody: nobody ends it meanwhile (K5)."""
        if link.key is not None:
            self._intents.change(link.key, Hold.MOVER)
            self._moving.add(link.key)

    def moved(self, link: LockLink) -> None:
        """It has answered: it is a worker like others again."""
        if link.key is not None:
            self._moving.discard(link.key)
            self._intents.change(link.key, Hold.WORKER)

    def moving_before_us(self) -> bool:
        """Tell whether a worker of a broker before us is parking or restoring somebody still."""
        for gone in [key for key in self._before if not procfs.alive(key)]:
            self._before.discard(gone)
            self._intents.remove(gone)
        return bool(self._before)

    def unlock_later(self, key: ProcessKey) -> LockLink | None:
        """Leave somebody behind who unlocks `key` as soon as the driver answers for it (after SIGCONT); None where nobody can be."""
        try:
            link = self._hire()
        except WorkerLost:
            return None
        self._taken += 1
        link.say("unlock", key)
        self.dismiss(key, link)
        return link

    def busy_with(self, key: ProcessKey) -> bool:
        """Tell whether a worker that we hung up on has not ended: two would undo each other's locks."""
        self._reap()
        return any(asked == key for asked, _ in self._leaving)

    def close(self) -> None:
        """Hang up on all and wait for them a moment; one that hangs still does its duty, after us."""
        for link in self._idle:
            self.dismiss(None, link)
        self._idle.clear()
        deadline = monotonic() + _FAREWELL
        for _, link in self._leaving:
            link.wait(max(0.0, deadline - monotonic()))
        self._reap()

    def _reap(self) -> None:
        for _, link in self._leaving:
            if link.key in self._moving and link.ended():
                self._moving.discard(link.key)
                self._intents.remove(link.key)
        self._leaving = [(asked, link) for asked, link in self._leaving if not link.ended()]

    def _hire(self) -> LockLink:
        try:
            link = LockLink(self._command)
        except OSError as problem:
            msg = f"no lock worker can be started: {problem}"
            raise WorkerLost(msg) from problem
        if link.key is not None:
            try:
                self._intents.add(link.key, Hold.WORKER)
            except DeviceError as full:
                link.hang_up()
                self._leaving.append((None, link))
                raise WorkerLost(str(full)) from full
        return link
