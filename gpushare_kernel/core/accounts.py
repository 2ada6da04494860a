"""Who wants a turn, in the order in which they deserve it (I6): max-min by user, then by session, weighted.

Start-time fair queueing with measured use: everyone has a virtual time (device seconds used in competition, divided by
weight) and the smallest comes next. Credit is bounded both ways: whoever slept, arrived late or used less than its share
starts at most one turn ahead of those who compete. All operations are O(log n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from gpushare_kernel.core.policies import Policy
from gpushare_kernel.core.ranking import SCAN, Ranking
from gpushare_kernel.core.records import Key, Session, User
from gpushare_kernel.core.states import Phase

BACKGROUND = 30.0
"""Seconds after which a session that yields has a turn although others want the device: even that has a bound (I3)."""


class Accounts:
    """The waiting sessions of every user, and the virtual times."""

    def __init__(self, policy: Policy, credit: float) -> None:
        self.policy = policy
        #: Device seconds of one turn: how far a newcomer or sleeper may be ahead of those who compete.
        self.credit = credit
        #: The present, for policies that rank by it.
        self.at = 0.0
        #: The least virtual time of those who compete (never falls), and what one turn is worth to that user.
        self.now = 0.0
        self.now_turn = 0.0
        #: How often anybody has joined.
        self.joins = 0
        #: By how much somebody must rank before who has a turn to take it from there (seconds of a usual turn).
        self.margin = 0.0
        #: Told whenever a user's virtual time has changed.
        self.charged: Callable[[User], None] = _nothing
        #: Who comes first of those that wait for memory, and those who have a turn.
        self.queued: Callable[[], Session | None] = _nobody
        self.running: Callable[[], Iterable[Session]] = tuple
        #: Whether somebody who waits may be one that yields: else nobody is looked for.
        self._yielding = False
        self._waiting: Ranking[Session] = Ranking(policy.rank)

    @property
    def users(self) -> int:
        """How many users have a session that waits."""
        return self._waiting.users

    def sessions(self) -> Iterator[Session]:
        """Every session that waits, in no order."""
        return iter(self._waiting)

    def join(self, session: Session) -> None:
        """`session` wants a turn and has none. An account further behind than credit allows is lifted to the bound."""
        self.joins += 1
        self.competes(session)
        self._add(session)

    def competes(self, session: Session) -> None:
        """`session` does from now on, for a turn or for memory: what it and its user are behind is bounded by their credit."""
        user = session.user
        if self.contended and not self.users:  # no frame says how far those are who have turns
            self._is_present(min(islice(self.running(), SCAN), key=_use_of, default=None))
        self.lift(user)
        least = user.floor - user.floor_turn - self.credit / session.weight
        session.vtime = max(session.vtime, least)

    def lift(self, user: User) -> None:
        """`user` competes from now on: what it is behind is bounded by its credit."""
        least = self.now - self.now_turn - self.credit / user.weight
        if user.vtime < least:
            user.vtime = least
            self._waiting.rerank(user)
            self.charged(user)

    def rerank(self, session: Session) -> None:
        """What ranks `session` has changed."""
        if self.waits(session):
            self.leave(session)
            self._add(session)

    def leave(self, session: Session) -> None:
        """`session` got its turn, or wants none."""
        self._waiting.remove(session.user, session)

    @property
    def contended(self) -> bool:
        """Whether somebody waits for the memory that others have: what these use meanwhile is charged."""
        return self.policy.shares and self.queued() is not None

    def waits(self, session: Session) -> bool:
        """Whether `session` waits for a turn."""
        return self._waiting.waits(session.user, session)

    def has_waiting(self, user: User) -> bool:
        """Whether a session of `user` waits for a turn."""
        return self._waiting.has(user)

    def charge(self, session: Session, seconds: float) -> None:
        """`session` used `seconds` of the device in competition."""
        session.vtime += seconds / session.weight
        session.user.vtime += seconds / session.user.weight
        if self._waiting.has(session.user):
            key = self.policy.turn_key(session, self.at)
            if not self._waiting.move(session.user, session, key):
                self._waiting.rerank(session.user)
        self.charged(session.user)

    def ranked(self, cost: Callable[[Session], float]) -> Iterator[Session]:
        """Yield waiting sessions, best first. Each that the caller takes (by `leave`) puts its user `cost` device seconds ahead."""
        return self._waiting.ranked(cost)

    def better_waits(self, running: Iterable[Session]) -> bool:
        """Whether somebody who waits ranks before one of `running`."""
        best = self._waiting.best()
        if best is None:
            return False
        (rank, order), margin = best[0], self.margin
        return any((rank + margin, order) < self._key_in_turn(session) for session in running)

    def _key_in_turn(self, session: Session) -> Key:
        """Return what ranks `session` while it has its turn: what it is served in it makes it no worse before it ends."""
        since = self.at if session.served_since is None else session.served_since
        keys = (self.policy.turn_key(session, at) for at in (since, self.at))
        return self.policy.rank(session.user, min(keys), 0.0)

    def waited_long(self) -> Session | None:
        """Return a session that yields and has stood still for long; None where there is none."""
        if not self._yielding:
            return None
        waiting = [s for s in self.sessions() if s.yields]
        self._yielding = bool(waiting)
        still = (s for s in waiting if s.phase is Phase.WAITING and s.counted > 0)
        oldest = min(still, key=lambda s: (s.waiting_since, s.order), default=None)
        waited = 0.0 if oldest is None else self.at - oldest.waiting_since
        return oldest if waited > BACKGROUND else None

    def ranks_anew(self, user: User) -> None:
        """What ranks `user` has changed, for turns and for memory."""
        self._yielding |= user.over_budget
        self._waiting.rerank(user)
        self.charged(user)

    def advance(self, squeezed: Session | None = None) -> None:
        """A frame was filled: those still waiting compete, and their virtual time is the present.

        `squeezed` competes too: it is in the frame with less than it can use.
        """
        first = self._waiting.best()
        both = [one for one in (squeezed, None if first is None else first[2]) if one is not None]
        self._is_present(min(both, key=_use_of, default=None))

    def _is_present(self, best: Session | None) -> None:
        """`best` is behind all others who compete: its virtual time is the present.

        Who waits for memory is none of them. Its time stands still, and whoever came later would be lifted to that only,
        and have the device until it has used as much as the others did meanwhile.
        """
        if best is None:
            return
        user = best.user
        if user.vtime >= self.now:
            self.now, self.now_turn = user.vtime, self.credit / user.weight
        if best.vtime >= user.floor:
            user.floor, user.floor_turn = best.vtime, self.credit / best.weight

    def follow(self, policy: Policy, users: Iterable[User], sessions: Iterable[Session]) -> None:
        """Rank everybody by another policy, from equal accounts: what the former one gave is not paid back."""
        self.policy = policy
        self.now = self.now_turn = 0.0
        waiting = [*self.sessions()]
        self._waiting = Ranking(policy.rank)
        for user in users:
            user.vtime = user.floor = user.floor_turn = 0.0
        for session in sessions:
            session.vtime = 0.0
        for session in waiting:
            self._add(session)

    def _add(self, session: Session) -> None:
        self._yielding |= session.yields
        session.rank = self.policy.turn_key(session, self.at)
        self._waiting.add(session.user, session)


def _use_of(session: Session) -> float:
    return session.user.vtime


def _nothing(user: User) -> None:
    """Nobody listens."""


def _nobody() -> None:
    """Nobody waits for memory."""
