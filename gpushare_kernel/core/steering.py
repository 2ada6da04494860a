"""All at once, and whoever falls behind its share alone until it has caught up: for mixes that gain by running together.

Progress is a session's own count over its pace alone; whose count nobody sees is taken to make the least that was
measured. Both are put against what each is owed: its share of the time that passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from gpushare_kernel.core.gauge import IDLE, SATURATES, is_light, unmeasured
from gpushare_kernel.core.pace import Pace
from gpushare_kernel.core.records import Session, User
from gpushare_kernel.core.values import SessionId

GAIN, LEAST_GAIN, NO_GAIN = 1.08, 1.03, 0.98
"""Progress of all together when they run at once, over one after the other: from here on it is worth it, until here;
and below here it is tried again only rarely."""
REMEASURE = 15.0
"""Seconds after which a session's pace alone, and what running at once gains, are measured anew."""
AGAIN, RARELY = 2.0, 60.0
"""Seconds after which all may run at once anew, where it was not seen yet what that gains; and where it gains nothing."""
SATURATING_BESIDE, LIGHT_BESIDE, MOST_BESIDE = 0.54, 0.93, 0.75
"""What those whose progress nobody sees are taken to make beside all others: the least that was measured in five mixes
(docs/turns.md). Who saturates makes so much of an equal share; of who does not, the device is taken to serve so much
of an equal share, which is more of what it asks for; at most so much of its pace alone."""
LAG, MOST_LAG = 0.5, 10
"""Turns by which a session may be behind its share before it gets a slot alone, and that are remembered at most."""
NEAR = 1.5
"""Whoever has more than so many times its share beside all others is measured alone again only rarely."""
TOGETHER = 0.1
"""Seconds after a trial's beginning in which newcomers are tried with the others."""
NEW = 1.0
"""Seconds of work before a newcomer is worth a trial of all at once: many a cell is over before."""
DRAINS = 4
"""How many times the longest drain of the others a slot for catching up lasts at least."""
LONGEST = 3
"""Turns that a slot for catching up may last at most."""


class Steering:
    """Whether all run at once, who is behind, and who gets a slot alone for it."""

    def __init__(self, turn: float, pace: Callable[[Session], Pace]) -> None:
        self._turn, self._pace = turn, pace
        #: Whether running at once is worth it, or hopeless, as far as is known.
        self.at_once = self._hopeless = False
        #: The set of sessions that were last tried all at once, and when.
        self._tried: frozenset[SessionId] = frozenset()
        self._tried_at = 0.0
        self._at = 0.0

    def try_soon(self) -> None:
        """Somebody goes at another pace: what running at once gains is to be seen anew."""
        self._tried_at = -REMEASURE

    def wants_trial(self, rivals: list[Session], at: float) -> bool:
        """Whether to let all run for a moment: somebody is new, and it may be that nobody saturates; or to see what it gains."""
        paces = [self._pace(s) for s in rivals]
        seen = any(p.met for p in paces) and all(p.seen or not p.met for p in paces)
        names = frozenset(s.id for s in rivals)
        if names != self._tried:
            saturated = any((s.demand or 0.0) >= SATURATES for s in rivals)
            stays = all(at - p.began_at >= NEW for p in paces)
            wanted = (seen and stays) or (not saturated and any(s.demand is None for s in rivals))
        else:
            untold = any(self.beside(s, len(rivals)) is None for s in rivals)
            pause = AGAIN if untold else RARELY if self._hopeless else REMEASURE
            wanted = seen and not self.at_once and at - self._tried_at >= pause
        if wanted:
            self._tried, self._tried_at, self.at_once = names, at, False
            for pace in paces:
                pace.beside.forget()
        return wanted

    def comes_too(self, newcomer: SessionId, at: float) -> None:
        """Somebody comes while a trial has hardly begun: it is tried with the others."""
        if at - self._tried_at < TOGETHER:
            self._tried |= {newcomer}

    def judge(self, rivals: list[Session], at: float) -> bool:
        """Decide whether running at once is worth it, where all is known that it takes. What the trial took from whom is owed."""
        ratios = [self.beside(s, len(rivals)) for s in rivals]
        gain = sum(ratio for ratio in ratios if ratio is not None)
        known, before = all(ratio is not None for ratio in ratios), self.at_once
        self.at_once = known and gain >= (LEAST_GAIN if before else GAIN)
        self._hopeless = known and gain < NO_GAIN
        if self.at_once and not before:
            tried = min(max(0.0, at - self._tried_at), MOST_LAG * self._turn)
            for (session, share), ratio in zip(shares(rivals), ratios, strict=True):
                self._pace(session).lag = max(0.0, share - (ratio or 0.0)) * tried
        return self.at_once

    def beside(self, session: Session, rivals: int) -> float | None:
        """What `session` makes beside all others over its pace alone: seen, else assumed; None where not known yet."""
        pace = self._pace(session)
        if pace.met:
            return pace.ratio
        if unmeasured(session, pace):
            return None
        if not is_light(session, pace):
            return SATURATING_BESIDE / rivals
        return min(MOST_BESIDE, LIGHT_BESIDE / rivals / max(session.demand or 1.0, IDLE))

    def stepped(self, pace: Pace, steps: int) -> None:
        """A session has met `steps` boundaries."""
        if steps and pace.solo.known:
            pace.lag -= steps / pace.solo.value

    def owe(
        self,
        rivals: list[Session],
        running: Collection[SessionId],
        at: float,
        *,
        alone: bool,
        steers: bool,
    ) -> None:
        """Everybody is owed its share of the time since the last call; whose steps nobody sees made what is assumed."""
        passed, self._at = at - self._at, at
        if not steers or not rivals:
            return
        owed = shares(rivals)
        for session, share in owed:
            pace = self._pace(session)
            pace.lag += passed * share
            if not pace.met and session.id in running:
                made = 1.0 if alone else self.beside(session, len(rivals)) or 0.0
                pace.lag -= passed * made
            # What one was ahead is not held against it: it took nobody's share.
            pace.lag = min(max(pace.lag, -self._turn), MOST_LAG * self._turn)
        # Where all are behind, the device makes less than was thought: that is nobody's to catch up.
        common = min(self._pace(session).lag / share for session, share in owed)
        if common > 0:
            for session, share in owed:
                self._pace(session).lag -= common * share

    def alone_next(
        self, rivals: list[Session], at: float, measuring: float
    ) -> tuple[Session, float] | None:
        """Return who gets the next slot alone, and for how long: who is behind its share, or was not seen alone for long."""
        turn, own = self._turn, dict(shares(rivals))
        # Who makes more than its share beside the others catches up there.
        needy = [s for s in rivals if (self.beside(s, len(rivals)) or 0.0) < own[s]]
        last = max(needy or rivals, key=lambda s: (self._pace(s).lag, s.order))
        # In a slot alone it gains on its share by what the others lose. Where their work is long in draining,
        # a longer one is due later: nobody has the device alone meanwhile.
        gains = max(0.1, 1.0 - own[last])
        drain = max((self._pace(s).drain for s in rivals if s is not last), default=0.0)
        shortest = min(max(LAG * turn / gains, DRAINS * drain), LONGEST * turn)
        lag = self._pace(last).lag
        if lag >= shortest * gains:
            return last, min(lag / gains, LONGEST * turn)
        for session in rivals:
            pace = self._pace(session)
            near = (pace.ratio or 0.0) < NEAR * own[session]
            if pace.met and at - pace.solo_at > (REMEASURE if near else RARELY):
                return session, measuring if unmeasured(session, pace) else 2 * turn
            if not pace.met and at - pace.measured_at > REMEASURE:
                return session, measuring
        return None


def shares(sessions: list[Session]) -> list[tuple[Session, float]]:
    """What each of `sessions` is entitled to among them: by user, then by session, weighted. Adds up to 1."""
    own: dict[User, float] = {}
    for session in sessions:
        own[session.user] = own.get(session.user, 0.0) + session.weight
    users = sum(user.weight for user in own)
    return [(s, s.user.weight / users * s.weight / own[s.user]) for s in sessions]
