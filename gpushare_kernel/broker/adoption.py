"""GPU processes that nobody opened a session for: scripts in terminals, notebooks without us. They take turns too.

Once a second the device names the *strangers*: who uses it and belongs to no session. One that is still there at
the second look and belongs to a known user becomes a session of that user: without a client, so with
enforced turns and measured memory, and it ends with its process. Of a tree of strangers (workers of a training)
the topmost becomes the session, and the others are part of it.

Known users are the accounts of people (from UID_MIN of login.defs up, those of directory services too), and whoever has a session here. Daemons
are neither: what watches the GPU as root or under an account of its own is left alone, and so are root's
scripts and containers unless root has notebooks here. Displays are nobody's work: never touched, shown as *desktop*.

Only a system broker adopts (`foreign = adopt`): a user's broker could pause that user's processes only, and would
have them yield to people who do not yield to them (`ignore`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices.base import Stranger

LOOKS = 2
"""At so many looks in a row a stranger must be there: a kernel that is being bound, or a short command, is left alone."""
LOGIN_DEFS = Path("/etc/login.defs")
_FIRST_PERSON = 1000
_NO_UID = 2**32 - 1
_NOBODY = frozenset({65534, 65535, _NO_UID})
_TRANSIENT = range(61184, 65520)
"""What systemd gives to services that have an account only while they run."""
_logger = logging.getLogger(__name__)


class Foreign(StrEnum):
    """What becomes of strangers."""

    ADOPT = "adopt"
    IGNORE = "ignore"


class Adoption:
    """Makes sessions of strangers.

    Parameters
    ----------
    foreign
        Whether it does, or only counts.
    take
        Opens a session for a stranger. Returns whether that was possible; else it is not tried again for this process.
    has_sessions
        Whether a uid has sessions here.
    has_name
        Whether a uid's account is known by now: a directory that is slow is not waited for.
    below
        Whether a pid is another one or below it.
    first_person
        The first uid that is a person's; None is what login.defs says.

    Attributes
    ----------
    desktop, foreign_memory
        Bytes that displays, and strangers that are no sessions, were last seen to hold.
    """

    def __init__(
        self,
        foreign: Foreign,
        *,
        take: Callable[[Stranger], bool],
        has_sessions: Callable[[int], bool],
        has_name: Callable[[int], bool] = lambda _: True,
        below: Callable[[int, int], bool] = procfs.is_descendant,
        first_person: int | None = None,
    ) -> None:
        self._foreign = foreign
        self._first_person = first_uid() if first_person is None else first_person
        self._take, self._has_sessions, self._below = take, has_sessions, below
        self._has_name = has_name
        self._looks: dict[ProcessKey, int] = {}
        self._left_alone: set[ProcessKey] = set()
        self.desktop = 0
        self.foreign_memory = 0

    def look(self, strangers: Sequence[Stranger]) -> None:
        """Take in who uses the device now, and adopt whom it is time to."""
        others = [one for one in strangers if not one.display]
        present = {one.key for one in others}
        self._left_alone &= present
        self._looks = {key: self._looks.get(key, 0) + 1 for key in present}
        named = [one for one in self.adoptable(others) if self._has_name(one.uid)]
        due = [one for one in named if self._looks[one.key] >= LOOKS]
        taken = [one for one in due if self._adopt(one)]
        self.desktop = sum(one.size for one in strangers if one.display)
        self.foreign_memory = sum(
            one.size
            for one in others
            if not any(self._below(one.key.pid, top.key.pid) for top in taken)
        )

    def adoptable(self, strangers: Sequence[Stranger]) -> list[Stranger]:
        """Return whom we would make sessions of: of each tree of one user the topmost."""
        if self._foreign is Foreign.IGNORE:
            return []
        known = [one for one in strangers if not one.display and self._is_known(one.uid)]
        return [one for one in known if not any(self._within(one, other) for other in known)]

    def _is_known(self, uid: int) -> bool:
        person = uid >= self._first_person and uid not in _NOBODY and uid not in _TRANSIENT
        return person or self._has_sessions(uid)

    def _within(self, one: Stranger, other: Stranger) -> bool:
        return one is not other and one.uid == other.uid and self._below(one.key.pid, other.key.pid)

    def _adopt(self, one: Stranger) -> bool:
        if one.key in self._left_alone:
            return False
        if not self._take(one):
            self._left_alone.add(one.key)
            return False
        _logger.info(
            "a process takes part from here on",
            extra={"pid": one.key.pid, "uid": one.uid, "size": one.size},
        )
        return True


def first_uid(path: Path = LOGIN_DEFS) -> int:
    """Return the first uid that this host gives to people: UID_MIN, 1000 where nothing says so."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return _FIRST_PERSON
    for line in lines:
        match line.split():
            case ["UID_MIN", value, *_] if value.isdecimal():
                return int(value)
    return _FIRST_PERSON


def adopted_name(one: Stranger) -> str:
    """Return what an adopted process is called in lists."""
    return f"{one.name} (adopted)"
