"""What a session may hold of a device that can cap it: what it was granted, or what is free, lent (docs/core.md)."""

from __future__ import annotations

from gpushare_kernel.core.records import Session
from gpushare_kernel.core.scheduler import Scheduler


def budget(core: Scheduler, session: Session) -> int | None:
    """Return the bytes that `session` may hold now, its contexts apart; None: whatever the device has.

    A declared job may hold what it was granted. What nobody declared is elastic: what is held, and of what is free as
    much as falls to each user who works now, and to each of that user's notebooks that work. While somebody waits for memory it is what is held and a margin. A
    session that has the device to itself meets no cap. What its group lets its user hold in all is never exceeded.
    """
    limit = _elastic(core, session)
    if session.user.cap is None:
        return limit
    own = sum(job.need.ephemeral for job in session.jobs.values() if job.lane is not None)
    capped = session.charged + own + max(0, session.user.cap - core.held_by(session.user))
    return capped if limit is None else min(limit, capped)


def _elastic(core: Scheduler, session: Session) -> int | None:
    table, margin = core.book.table, core.config.plain_ephemeral
    own_grant = granted(session)
    if own_grant is not None:
        return own_grant
    if len(core.book.queue):
        return session.charged + margin
    others = [s for s in core.sessions.values() if s is not session and (s.charged or s.jobs)]
    if not others:
        return None
    users = {s.user for s in (session, *others) if s.jobs} | {session.user}
    own = sum(job.need.ephemeral for job in session.jobs.values() if job.lane is not None)
    # A user's part is for all of that user's notebooks that work.
    sharing = 1 + sum(s.user is session.user and bool(s.jobs) for s in others)
    return session.charged + own + max(margin, max(0, table.free) // (len(users) * sharing))


def granted(session: Session) -> int | None:
    """Return the bytes that declared jobs of `session` may hold, its contexts apart; None where nothing declared runs."""
    declared = [job for job in session.jobs.values() if not job.plain and job.lane is not None]
    kept = max(session.declared, session.holds)
    return kept + sum(job.need.ephemeral for job in declared) if declared else None


def people_waiting(core: Scheduler, *, but: Session, own: bool = True) -> int:
    """Return how many people wait for memory with another session than `but`; `own`: its own user is one of them."""
    waiting = {core.sessions[job.session].user for job in core.book.queue if job.session != but.id}
    return len(waiting if own else waiting - {but.user})
