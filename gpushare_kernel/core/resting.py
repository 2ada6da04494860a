"""Idle sessions that hold memory, in the order in which they fell idle: whoever looks for memory need not look at all sessions."""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedKeyList

from gpushare_kernel.core.records import Session
from gpushare_kernel.core.values import SessionId

_Entry = tuple[float, int, Session]


class Resting:
    """No job, no cell open, and memory: those that have been idle longest come first. All changes are O(log n)."""

    def __init__(self) -> None:
        self._order: SortedKeyList = SortedKeyList(key=_key)
        self._entries: dict[SessionId, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Session]:
        return (session for _, _, session in self._order)

    def note(self, session: Session) -> None:
        """Something of `session` has changed: what it holds, its jobs, its cell, since when it is idle."""
        known = self._entries.get(session.id)
        rests = belongs(session)
        if rests and known is not None and known[0] == session.idle_since:
            return
        if known is not None:
            self._order.remove(known)
            del self._entries[session.id]
        if rests:
            entry = self._entries[session.id] = (session.idle_since, session.order, session)
            self._order.add(entry)


def belongs(session: Session) -> bool:
    """Whether `session` is idle and holds memory of the device."""
    return bool(session.charged or session.context) and not (session.jobs or session.cell_open)


def _key(entry: _Entry) -> tuple[float, int]:
    return entry[:2]
