"""Learned needs: what jobs that came to their end have shown, by user and by a hash of their code.

Bounded: `MOST` pieces of code a user, the least recently used goes first. A learned need belongs to a device and to the
versions of frameworks. Where those differ its *bytes* are still taken, where the device is of the same kind: they are
nearly the same elsewhere, and too few are corrected at the next boundary. Its *time* is not: it may be off by any factor.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import structs

from gpushare_kernel.broker.ledger import Ledger, NeedRow
from gpushare_kernel.core.book import MemoryBook
from gpushare_kernel.core.learned import Declared, Learned, Place, Run
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.values import Need, UserId
from gpushare_kernel.wire.messages import Submit
from gpushare_kernel.wire.snapshot import NeedView

MOST = 256
_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A job as it is submitted: what it declared, and what is asked for it, with from how many runs that was learned (0: not)."""

    declared: Submit
    submit: Submit
    runs: int = 0


class Needs:
    """What is known of every user's code."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        #: By user, then by code and device; the least recently used first.
        self._rows: dict[UserId, dict[_Key, NeedRow]] = {}

    def know(self, rows: Iterable[NeedRow]) -> None:
        """Take over what the ledger tells, the latest used last."""
        for row in rows:
            self._put(row)

    def ask(
        self, body: Submit, user: UserId, place: Place, session: Session, book: MemoryBook
    ) -> Asked:
        """Return `body` with what it does not declare filled in, as far as it was learned. What it declares counts."""
        row = self._find(user, body.code, place)
        if row is None:
            return Asked(body, body)
        self._put(row)
        known, filled = row.learned, body
        if body.time is None and not place.differs(row.place):
            filled = structs.replace(filled, time=known.time)
        if not _declared(body).nothing:
            return Asked(body, filled)
        need = _that_fits(known, session, book)
        if need is None:
            return Asked(body, filled)
        filled = structs.replace(filled, persistent=need.persistent, ephemeral=need.ephemeral)
        return Asked(body, filled, known.count)

    def learn(self, asked: Submit, user: UserId, place: Place, run: Run) -> Learned:
        """A job came to its end: return what is known now. What was learned with other versions of its frameworks does not count any more."""
        if not asked.code:
            return Learned(1, (run,))
        row = self._rows.get(user, {}).get((asked.code, place.kind, place.device))
        if row is None or place.differs(row.place):
            learned = Learned(1, (run,))
        else:
            learned, place = row.learned.and_then(run), row.place.joined(place)
        new = NeedRow(user, asked.code, asked.name, place, _declared(asked), learned, time.time())
        self._put(new)
        self._ledger.need_saved(new)
        mine = self._rows[user]
        while len(mine) > MOST:
            self._ledger.need_dropped(mine.pop(next(iter(mine))))
        return learned

    def views(self, user: UserId, place: Place | None, most: int = 0) -> tuple[NeedView, ...]:
        """Return what is known of `user`'s code, the latest used first, as seen from `place` (None: from nowhere), where `most` can be declared."""
        rows = reversed(self._rows.get(user, {}).values())
        return tuple(_view(row, place, most) for row in rows)

    def _find(self, user: UserId, code: str, place: Place) -> NeedRow | None:
        """Return what was learned on this device, else the latest from another of its kind."""
        if not code:
            return None
        mine = self._rows.get(user, {})
        here = mine.get((code, place.kind, place.device))
        if here is not None:
            return here
        near = (row for row in reversed(mine.values()) if row.code == code)
        return next((row for row in near if row.place.kind == place.kind), None)

    def _put(self, row: NeedRow) -> None:
        mine = self._rows.setdefault(row.user, {})
        key = (row.code, row.place.kind, row.place.device)
        mine.pop(key, None)  # the latest used stands last
        mine[key] = row


def _declared(body: Submit) -> Declared:
    return Declared(body.size, body.persistent, body.ephemeral, body.time)


def _that_fits(known: Learned, session: Session, book: MemoryBook) -> Need | None:
    """Return what was learned, its margin cut to what the device can hold and its user may; None where what was seen is more than that, too.

    A job that declares nothing is never refused for what another run took: what counts here is what `book.never_fits` counts.
    """
    persistent, ephemeral = known.least
    if book.never_fits(session, Need(persistent, ephemeral)) is not None:
        return None
    parked, cap = session.parked, session.user.cap_ever
    context = session.context or (book.reserve if parked is None else parked.context)
    kept = max(known.persistent, session.holds, 0 if parked is None else parked.persistent)
    most = book.whole if cap is None else min(book.whole, cap)
    over = max(0, kept + known.ephemeral + context - most)
    spare_e = min(over, known.ephemeral - ephemeral)
    spare_p = over - spare_e
    return Need(known.persistent - spare_p, known.ephemeral - spare_e)


def _view(row: NeedRow, place: Place | None, most: int) -> NeedView:
    known, last, declared = row.learned, row.learned.last, row.declared
    return NeedView(
        code=row.code,
        name=row.name,
        runs=known.count,
        elsewhere="" if place is None else place.differs(row.place),
        declared_size=declared.size,
        declared_persistent=declared.persistent,
        declared_ephemeral=declared.ephemeral,
        declared_time=declared.time,
        measured_persistent=last.persistent,
        measured_ephemeral=last.ephemeral,
        measured_time=last.time,
        persistent=known.persistent,
        ephemeral=known.ephemeral,
        time=known.time,
        iteration=known.iteration,
        most=most,
    )
