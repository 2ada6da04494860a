"""Turns on cores: a frame takes the best of those who want them until the cores are full.

Rank those who want the device, take the best until it is full (co-run), let the others leave, start the taken ones as
room appears. Holes are filled within the frame. Nobody's turn costs anything while all fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import inf
from typing import Any

from gpushare_kernel.core.policies import Together
from gpushare_kernel.core.probe import Seen
from gpushare_kernel.core.records import Session, User
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.turns import SLACK, Turns
from gpushare_kernel.core.values import SessionId, Usage

FILLER, FILLER_PART = 0.5, 0.25
"""Cores, and the part of a small device, that must lie idle before a session larger than them may fill them."""
PATIENCE = 4
"""Frames in a row in which a session that is larger than what is left lets smaller ones of its user pass."""
FITS = 32
"""How many of those who wait are tried in a hole within a frame, best first; the next frame tries them all."""


class Frames(Turns):
    """Turns of a device that is divided like cores."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: After so many had joined, nobody who waited fitted into so much room: not looked for again before that changes.
        self._nobody_fits: tuple[int, float] = (-1, 0.0)
        self._filler = min(FILLER, FILLER_PART * self.compute)
        self._length = self.config.turn
        #: Who was taken into this frame with less room than it can use.
        self._squeezed: Session | None = None

    def all_fit(self, at: float) -> bool:  # noqa: ARG002
        """Whether their measured demand fits the cores."""
        if self.together is Together.ONE:
            return sum(s.counted > 0 for s in self.wanting.values()) <= 1
        return self.load <= self.compute + SLACK

    def wants_more(self) -> bool:
        """Whether the cores are not asked for so much that one more would find none."""
        return self.load < self.compute

    @property
    def turn(self) -> float:
        """How long this frame lasts."""
        return self._length

    def account(self, session: Session, usage: Usage, seen: Seen, at: float) -> None:  # noqa: ARG002
        """Charge what was used in competition, and take in what could be used."""
        session.user.device_time += seen.used
        shares = self.accounts.policy.shares
        if seen.used and shares and (self.accounts.contended or self.crowded(at)):
            self.accounts.charge(session, seen.used)
        if seen.demand is not None:
            self.measure(session, seen.demand)

    def looked(self, utilization: float | None, since: float, at: float) -> None:
        """Nothing follows: here demand is measured by session."""

    def _choose(self, held: list[Session], at: float) -> dict[SessionId, Session]:
        taken = self._pack(self._room(at) + sum(s.counted for s in held))
        self.accounts.advance(self._squeezed)
        policy, usual = self.accounts.policy, self.config.turn
        known = all(s.demand is not None for s in taken.values())  # else this turn measures
        turns = (policy.turn(s, usual, at) for s in taken.values() if known)
        self._length = min(turns, default=usual)
        return taken

    def _pack(self, room: float) -> dict[SessionId, Session]:
        """Take the best that fit into `room` together; one that is larger than what is left may get just that."""
        taken: dict[SessionId, Session] = {}
        skipped: Session | None = None
        self._squeezed = None
        looks = FITS
        patient = self.accounts.waited_long()
        if patient is not None:
            self._take(patient, taken)
            room -= patient.counted
        for session in self._candidates():
            if taken and self.together is Together.ONE:
                break
            if room <= SLACK:  # only what needs next to nothing fits still
                looks -= 1
                if looks < 0:
                    break
            if session.counted <= room + SLACK:
                self._take(session, taken)
                room -= session.counted
            elif skipped is None and self._squeezed is None and not session.yields:
                # Nobody before it could use what is left, and they would come first in every frame.
                if taken and room >= self._filler and not self._objectors(session, taken, room):
                    self._take(session, taken)
                    self._squeezed, room = session, 0.0
                else:
                    skipped = session
                    session.passed += 1
        # Cores would lie idle: co-run a larger one, but only while it is not ahead of its share.
        if taken and skipped is not None and skipped.demand is not None and room >= self._filler:
            credit = self.accounts.credit
            others = self._objectors(skipped, taken, room)
            if all(skipped.user.vtime <= user.vtime + credit / user.weight for user in others):
                self._take(skipped, taken)
                self._squeezed = skipped
        return taken

    def _candidates(self) -> Iterator[Session]:
        """Yield who waits, best first, those who yield last. Smaller sessions pass a larger one of their user by one turn's worth, not for ever."""
        left: dict[User, Session] = {}
        yielding: list[Session] = []
        shares = self.accounts.policy.shares  # else nobody's account says how far that was
        for session in self.accounts.ranked(self._cost):
            if session.yields:
                yielding.append(session)
                continue
            if not shares:
                yield session
                continue
            first = left.get(session.user)
            if (
                first is not None
                and session.vtime > first.vtime + self.accounts.credit / first.weight
            ):
                continue
            yield session
            if self.accounts.waits(session):
                left.setdefault(session.user, session)
        yield from yielding

    def _take(self, session: Session, taken: dict[SessionId, Session]) -> None:
        self.accounts.leave(session)
        taken[session.id] = session
        session.passed = 0

    def _objectors(
        self, session: Session, taken: dict[SessionId, Session], room: float
    ) -> list[User]:
        """Users of `taken` who lose by `session` getting `room`: others of theirs wait, or theirs would be slower.

        Its own user divides its own share: the better ranked ones object only for a while.
        """
        return [
            other.user
            for other in taken.values()
            if (
                session.passed < PATIENCE
                if other.user is session.user
                else self.accounts.has_waiting(other.user) or other.counted > room + SLACK
            )
        ]

    def _fill(self, at: float) -> None:
        for session in [*self.joining.values()]:
            if self._leaving and session.counted > self._room(at) + SLACK:
                return
            del self.joining[session.id]
            self._use(session, at)
            if self.accounts.policy.rotates:
                self.frame_end = at + self.turn
        if self._leaving or not self.accounts.users:
            return
        if not self.using:
            self._frame(at)
            return
        room = self._room(at)
        if self.together is Together.ONE and self.busy > 0:
            room = 0.0
        if room <= SLACK or (
            self._nobody_fits[0] == self.accounts.joins and room <= self._nobody_fits[1]
        ):
            return
        for session in islice(self._candidates(), FITS):
            if session.counted <= room + SLACK:
                self.accounts.leave(session)
                self._use(session, at)
                room -= session.counted
        self._nobody_fits = (self.accounts.joins, room)

    def _room(self, at: float) -> float:
        """Cores that nobody's turn takes. Who may not be paused just now is beside the turns, not in their way."""
        if at >= self._exempt_ends:
            self._exempt = {name: s for name, s in self._exempt.items() if at < s.exempt_until}
            self._exempt_ends = min((s.exempt_until for s in self._exempt.values()), default=inf)
        room = self.compute - self.busy
        for session in self._exempt.values():
            if session.phase is Phase.ON:
                room += session.counted
        return room

    def _count(self, session: Session) -> None:
        if session.realtime or (not session.pausable and not self._cooperates(session)):
            counted = 0.0
        elif session.demand is None:
            counted = self.compute
        else:
            counted = counted_demand(session.demand, self.compute)
        if counted < session.counted and session.phase is Phase.WAITING:
            self._nobody_fits = (-1, 0.0)
        self.load += counted - session.counted
        session.counted = counted


def counted_demand(demand: float, compute: float) -> float:
    """What a measured demand counts for: threads are whole, with 10 % tolerance above; next to nothing is nothing."""
    if demand < 0.02:  # noqa: PLR2004
        return 0.0
    whole = round(demand)
    if whole >= 1 and 0 < demand - whole <= 0.1 * whole:
        demand = float(whole)
    return min(demand, compute)
