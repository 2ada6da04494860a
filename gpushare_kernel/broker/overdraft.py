"""Who holds more memory than it was granted, and who holds it idle: what is done about it, step by step. No clock, no IO.

Over its grant: told at once; asked to give back what it does not use; while somebody waits for memory paused, once,
for a bounded time; ended only where an administrator wants that (I8).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from gpushare_kernel.core.values import MiB, SessionId

ASK_AFTER, PAUSE_AFTER = 10.0, 30.0
"""Seconds over its grant after which a session is asked, and paused."""
LONGEST_PAUSE = 60.0
"""Seconds for which it is paused at most; then it is left alone until it was under its grant."""
TERM_AFTER = 10.0
"""Seconds from an interrupt that did not help to the end of the process."""
LEAST_OVER, PART_OVER = 512 * MiB, 20
"""What is over by no more than this (bytes, or one part in so many) is nobody's fault: allocators round up, and contexts grow with what runs (520 to 830 MiB)."""
IDLE_AFTER, LEAST_HELD, ASK_AGAIN = 60.0, 256 * MiB, 600.0
"""Idle so long (seconds) and holding so much, one is asked to release; the same one not again within this time."""


class Over(StrEnum):
    """What becomes of those over their grant in the end."""

    TELL = "tell"
    END = "end"


class Step(StrEnum):
    """What is to be done about a session now."""

    TELL = "tell"
    ASK = "ask"
    PAUSE = "pause"
    LET_ON = "let on"
    INTERRUPT = "interrupt"
    TERMINATE = "terminate"


@dataclass(slots=True)
class _Case:
    since: float
    asked: bool = False
    #: When it was asked while somebody waited, and so told that they do.
    asked_for_others: float | None = None
    #: Since when it is paused for this, and when it first was (or was to be).
    paused_at: float | None = None
    first_paused: float | None = None
    #: It was let on: not paused for this again.
    spared: bool = False
    interrupted_at: float | None = None
    terminated: bool = False


class Overdraft:
    """The sessions over their grant, and how far it has come with each.

    Parameters
    ----------
    over
        Whether they may be ended.
    """

    def __init__(self, over: Over = Over.TELL) -> None:
        self._over = over
        self._cases: dict[SessionId, _Case] = {}

    def keep(self, sessions: Collection[SessionId]) -> None:
        """Forget all others: they are gone."""
        self._cases = {name: case for name, case in self._cases.items() if name in sessions}

    def look(
        self, session: SessionId, *, held: int, limit: int | None, people: int, at: float
    ) -> Step | None:
        """Return what is to be done about `session` now.

        Parameters
        ----------
        session
            Who holds.
        held, limit
            Bytes it holds, and what it was granted; None: nothing was, so nothing is over it.
        people
            How many people wait for memory.
        at
            Now, in seconds.
        """
        case = self._cases.get(session)
        if limit is None or held <= limit + max(LEAST_OVER, limit // PART_OVER):
            self._cases.pop(session, None)
            return Step.LET_ON if case is not None and case.paused_at is not None else None
        if case is None:
            self._cases[session] = _Case(at)
            return Step.TELL
        if case.paused_at is not None:
            return self._paused(case, case.paused_at, people, at)
        if case.interrupted_at is not None:
            return self._interrupted(case, case.interrupted_at, at)
        return self._next(case, people, at)

    def not_paused(self, session: SessionId) -> None:
        """The pause could not be begun (a signal is on its way, a profiler): it is tried again for as long as one lasts."""
        case = self._cases.get(session)
        if case is not None:
            case.paused_at = None

    def _next(self, case: _Case, people: int, at: float) -> Step | None:
        late = at - case.since
        if late >= ASK_AFTER and (case.asked_for_others is None if people else not case.asked):
            case.asked = True
            case.asked_for_others = at if people else None
            return Step.ASK
        if not people or late < PAUSE_AFTER or case.asked_for_others is None:
            return None
        if at - case.asked_for_others < ASK_AFTER:
            return None  # somebody has come only now: what it was asked for takes a moment
        if case.first_paused is None:
            case.first_paused = at
        if at - case.first_paused >= LONGEST_PAUSE:
            return self._ended(case, at)
        if not case.spared:
            case.paused_at = at
            return Step.PAUSE
        return None

    @staticmethod
    def _paused(case: _Case, since: float, people: int, at: float) -> Step | None:
        if people and at - since < LONGEST_PAUSE:
            return None
        case.paused_at, case.spared = None, True
        return Step.LET_ON

    def _ended(self, case: _Case, at: float) -> Step | None:
        """It had its pause, and still others wait for what it holds."""
        if self._over is not Over.END:
            return None
        case.interrupted_at = at
        return Step.INTERRUPT

    @staticmethod
    def _interrupted(case: _Case, since: float, at: float) -> Step | None:
        if case.terminated or at - since < TERM_AFTER:
            return None
        case.terminated = True
        return Step.TERMINATE


class IdleHolders:
    """Who is asked to release what it holds idle: once in an idle time, and rarely."""

    def __init__(self) -> None:
        self._asked: dict[SessionId, tuple[float, float]] = {}

    def keep(self, sessions: Collection[SessionId]) -> None:
        """Forget all others: they are gone."""
        self._asked = {name: when for name, when in self._asked.items() if name in sessions}

    def due(
        self, session: SessionId, *, held: int, idle_since: float, people: int, at: float
    ) -> bool:
        """Whether `session`, idle since `idle_since` with `held` bytes, is to be asked now, while `people` wait; note that it is."""
        if not people or held < LEAST_HELD or at - idle_since < IDLE_AFTER:
            return False
        asked = self._asked.get(session)
        if asked is not None and (asked[0] == idle_since or at - asked[1] < ASK_AGAIN):
            return False
        self._asked[session] = idle_since, at
        return True

    def ask(self, session: SessionId, *, idle_since: float, at: float) -> float:
        """Return in how many seconds `session` may be asked again; 0.0: a waiter asks it now, which is noted."""
        asked = self._asked.get(session)
        if asked is not None and at - asked[1] < ASK_AGAIN:
            return asked[1] + ASK_AGAIN - at
        self._asked[session] = idle_since, at
        return 0.0
