"""Who comes first, for the memory and for turns, as small pure objects: FIFO, SRTF, PACK, FAIR (Salus, section 4).

Smaller keys come first. The same key orders the memory queue and the turns; real-time jobs rank above all.

What each promises about waiting (docs/scheduling.md; property-tested): FIFO: nobody who came later goes first. SRTF: a job
that still needs r seconds is passed only by jobs submitted within r / `AGEING` seconds after it. PACK: a job that needs
the part f of the device is passed only by those submitted within (1 - f) x `PATIENT` seconds after it. FAIR: users are
equal (I6), and after `PATIENT` seconds in the memory queue nobody passes who came later, but the few that may pass whoever is
first (`Policy.passes`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from difflib import get_close_matches
from enum import StrEnum
from math import inf

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.records import Job, Key, Session, User

AGEING = 0.02
"""Seconds of remaining time that a second of waiting makes up for, under SRTF."""
UNKNOWN_TIME = 60.0
"""Seconds that a job nobody knows the time of is taken to need at least: the median of Salus' trace is 58."""
OVERRUN = 0.1
"""The part of its time that a job which overran it is taken to need still, at least."""
KNOWN_TURN, SERVED_TURN = 10.0, 0.125
"""Usual turns in one of SRTF's for a job whose time is known (a better one preempts it anyway), and in one of PACK's; the part of
what it had in one of SRTF's for another job."""
BEHIND = 1e12
"""What puts a key behind all others: seconds that nobody comes to."""
PATIENT = 3600.0
"""Seconds by which a job is passed by later ones at most, where nothing else bounds that."""


class Together(StrEnum):
    """Who has the memory, and runs, at the same time."""

    ONE = "one"
    USEFUL = "useful"  # as many as keep the device busy, and whoever would run before all of them
    FITTING = (
        "fitting"  # all that fit the memory; while their demand fits the device all run, else turns
    )


class Policy(ABC):
    """Ranks users, sessions and jobs that wait; says how long a turn is and who runs together."""

    name: str
    together = Together.FITTING
    #: How many may take memory that does not suffice for whoever comes before them.
    passes = 8
    #: Whether a turn ends while others wait (else the first keeps the device).
    rotates = True
    #: Whether somebody better takes the turn at once, not at its end.
    preempts = False
    #: Whether everybody is to make progress all the time, each its share.
    shares = False
    #: Whether all may run at once although they saturate the device, where that makes more in total.
    co_runs = False
    #: Whether who comes first may have the memory of others that rank behind it.
    displaces = False
    #: Seconds after which a job in the memory queue comes before all who were submitted later; None: its key sees to that.
    patience: float | None = None

    @abstractmethod
    def job_key(self, job: Job, session: Session, at: float) -> Key:
        """Rank among the jobs of one user."""

    def session_key(self, session: Session, at: float) -> Key:
        """Rank among the sessions of one user: that of its best job."""
        keys = [self.job_key(job, session, at) for job in session.jobs.values()]
        return min(keys, default=(0.0, session.order))

    def turn_key(self, session: Session, at: float) -> Key:
        """Rank as `session_key` does, for turns: what runs in the background comes behind all that does not, so that nobody looks for that among many."""
        key = self.session_key(session, at)
        return (key[0] + BEHIND, key[1]) if session.background else key

    def user_key(self, user: User, best: Key, ahead: float) -> Key:  # noqa: ARG002
        """Rank among users: `best` is the key of the user's next, `ahead` what the user was already given just now."""
        return best

    def rank(self, user: User, best: Key, ahead: float) -> Key:
        """Rank among users as `user_key` does; who is over its budget, or has nothing but background work, comes behind all others, unless a job of its own ranks above all."""
        key = self.user_key(user, best, ahead)
        behind = best[0] >= BEHIND or (user.over_budget and best[0] >= 0)
        return (key[0] + BEHIND, key[1]) if behind else key

    def turn(self, session: Session, usual: float, at: float) -> float:  # noqa: ARG002
        """Return how long a turn of `session` lasts while others wait (seconds)."""
        return usual


class Fifo(Policy):
    """Arrival order, one job at a time: the oldest keeps the device until it ends."""

    name = "fifo"
    together = Together.ONE
    rotates = False

    def job_key(self, job: Job, session: Session, at: float) -> Key:  # noqa: ARG002
        """Oldest first."""
        return (_first(job), job.order)


class Srtf(Policy):
    """Shortest remaining time first, preemptive, with ageing; without a time, who was served least."""

    name = "srtf"
    together = Together.USEFUL
    passes = 0  # a longer one would hold its memory for long
    preempts = displaces = True

    def job_key(self, job: Job, session: Session, at: float) -> Key:
        """Least remaining first; waiting makes up for it."""
        return (_first(job) or remaining(job, session, at) + AGEING * job.submitted, job.order)

    def session_key(self, session: Session, at: float) -> Key:
        """Rank of its best job, or of who waits for a lane that one has: else whoever is in between would hold up both."""
        own = super().session_key(session, at)
        lent = [rank for job in session.jobs.values() if (rank := job.lent_rank) is not None]
        return min([own, *lent])

    def turn(self, session: Session, usual: float, at: float) -> float:
        """Long where the time is known; else a part of what it had, so that equals alternate rarely."""
        turns = [usual]
        for job in session.jobs.values():
            served = job.served(session, at)
            known = job.time is not None and served < job.time
            turns.append(KNOWN_TURN * usual if known else SERVED_TURN * served)
        return max(turns)


class Pack(Policy):
    """As many as memory and demand allow, for the makespan: the largest first, small ones fill what is left; turns by rote."""

    name = "pack"
    co_runs = True

    def job_key(self, job: Job, session: Session, at: float) -> Key:  # noqa: ARG002
        """Largest first, by the part of the device it needs; waiting makes up for it."""
        return (_first(job) or PATIENT * (1.0 - job.part) + job.submitted, job.order)

    def session_key(self, session: Session, at: float) -> Key:
        """Whose last turn is longest ago."""
        first = min((_first(job) for job in session.jobs.values()), default=0.0)
        last = session.waiting_since if session.served_since is None else at
        return (first or last, session.order)

    def turn(self, session: Session, usual: float, at: float) -> float:  # noqa: ARG002
        """Long: each change costs."""
        return KNOWN_TURN * usual


class Fair(Policy):
    """Equal progress of users, then of sessions: least virtual time first (I6)."""

    name = "fair"
    shares = displaces = co_runs = True
    patience = PATIENT

    def job_key(self, job: Job, session: Session, at: float) -> Key:  # noqa: ARG002
        """Jobs of the session that was served least, then the oldest."""
        return (_first(job) or session.vtime, job.order)

    def session_key(self, session: Session, at: float) -> Key:  # noqa: ARG002
        """Least weighted use among the user's own."""
        first = min((_first(job) for job in session.jobs.values()), default=0.0)
        return (first or session.vtime, session.order)

    def user_key(self, user: User, best: Key, ahead: float) -> Key:
        """Least weighted use among users; who ranks above all by a job of its own stays there."""
        return best if best[0] < 0 else (user.vtime + ahead, best[1])


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Fair, Fifo, Pack, Srtf)}


def policy_named(name: str) -> Policy:
    """Return the policy called `name`, in any case.

    Raises
    ------
    BadDeclaration
        With the name that may be meant, and all there are.
    """
    known = POLICIES.get(name.lower())
    if known is not None:
        return known()
    near = get_close_matches(name.lower(), POLICIES, 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    msg = f"policy {name!r} is not known.{meant} There are: {', '.join(sorted(POLICIES))}."
    raise BadDeclaration(msg)


def remaining(job: Job, session: Session, at: float) -> float:
    """Return how many seconds `job` still needs with the device, as far as is known; never nothing.

    Its time, declared or learned, less what it had. After an overrun as much as it overran. Where no time is known, as
    much as it had (least attained service), and never so little that it wins for want of a declaration.
    """
    served = job.served(session, at)
    if job.time is None:
        return UNKNOWN_TIME + served
    left = job.time - served
    return left if left > 0 else max(OVERRUN * job.time, -left)


def _first(job: Job) -> float:
    """Return what puts a job before all others; 0 for most."""
    return -inf if job.realtime else -1.0 if job.promoted else 0.0
