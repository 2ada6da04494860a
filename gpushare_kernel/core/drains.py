"""Drains: how long the work of a session takes to stop, as recorded; and a pause whose target is not done within its limit: when it is tried again, with which limit, and when it is given up."""

from __future__ import annotations

from gpushare_kernel.core.deadlines import backoff
from gpushare_kernel.core.records import Session

LONGEST_DRAIN = 60.0
"""A pause whose target never drains is tried with longer and longer limits, up to this one (seconds)."""
BUSY_TRIES, BUSY_SECONDS = 8, 20.0
"""Who cannot be paused after so many tries, or so long, runs beside the others until its work ends: nobody waits for it."""
USUAL, RECENT = 0.75, 32
"""What part of so many last drains is within the usual one: who is paused ahead is paused by that. A longer one is in the bound."""
AHEAD, LATE = 1.1, 0.001
"""So many times the longest of all that are remembered, and so many seconds less, is the least that is usual: queues of 40 ms
drain in 5 to 40, by where in them the pause falls, and the next longest is longer than the longest so far."""
MARGIN, LEAST = 1.25, 0.0005
"""A recorded bound is so many times the longest drain of late, and so many seconds."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
"""Seconds between two tries, at first and at most."""


def busy_again(session: Session, usual: float, at: float) -> float | None:
    """`session` could not be paused within its limit: return when to try again (seconds), or None to give up."""
    if session.busy_tries == 0:
        session.busy_since = at
    session.busy_tries += 1
    session.pause_limit = min(2 * max(session.pause_limit, usual), LONGEST_DRAIN)
    if session.busy_tries >= BUSY_TRIES or at - session.busy_since > BUSY_SECONDS:
        session.busy_tries, session.pause_limit = 0, 0.0
        return None
    return backoff(_FIRST_PAUSE, _LONGEST_PAUSE, session.busy_tries)


def note(session: Session, drain: float) -> None:
    """A pause of `session` was carried out: its work took `drain` seconds to stop."""
    session.drains.append(drain)


def bound(session: Session) -> float | None:
    """Return how long the work of `session` takes to stop, by the longest of its last drains; None where none was seen."""
    if not session.drains:
        return None
    return MARGIN * max(session.drains) + LEAST


def usual(session: Session) -> float | None:
    """Return how long the work of `session` usually takes to stop; None where no drain was seen."""
    if not session.drains:
        return None
    recent = sorted([*session.drains][-RECENT:])
    within = recent[min(len(recent) - 1, int(USUAL * len(recent)))]
    return max(within, AHEAD * max(session.drains) - LATE)
