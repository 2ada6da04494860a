"""Why a job waits, with numbers: computed when somebody reads it, not per event."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from gpushare_kernel.core.eta import UNKNOWN, for_lane, for_memory, for_turn
from gpushare_kernel.core.records import Job
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import Holder, JobState, SessionId, Wait, WaitReason

_HOLDERS = 3
_CRUMB = 10
"""Whoever holds less than this part of what is missing (or of the largest, where that is less) stands in nobody's way."""


def why(scheduler: Scheduler, job: Job) -> Wait:
    """Return why `job` waits. Holders are named by session id; the broker knows what they may be called."""
    wait = _why(scheduler, job)
    behind = wait.reason in {WaitReason.MEMORY, WaitReason.TURN} and not wait.lost
    over = behind and scheduler.sessions[job.session].user.over_budget
    return replace(wait, over_budget=True) if over else wait


def _why(scheduler: Scheduler, job: Job) -> Wait:
    session = scheduler.sessions[job.session]
    if job.state is JobState.QUEUED:
        return _for_memory(scheduler, job)
    lane = scheduler.book.table.lanes[job.lane] if job.lane is not None else None
    if lane is not None and lane.occupant is not job:
        before = next((n for n, other in enumerate(lane.waiters) if other is job), 0)
        occupant = lane.occupant
        holders = (
            ()
            if occupant is None
            else (_holder(scheduler, job, occupant.session, occupant.need.ephemeral),)
        )
        eta, exact = for_lane(scheduler, job, before)
        return Wait(
            WaitReason.OCCUPANCY, job.need.ephemeral, 0, before, holders, eta=eta, exact=exact
        )
    if session.parked is not None:
        seconds = scheduler.speeds.back(session.parked.size)
        return Wait(WaitReason.RESTORE, session.parked.size, 0, 0, eta=seconds)
    eta, exact = for_turn(scheduler, job)
    return Wait(WaitReason.TURN, 0, 0, len(scheduler.turns.using), eta=eta, exact=exact)


def _for_memory(scheduler: Scheduler, job: Job) -> Wait:
    """Why it is in no lane yet."""
    session = scheduler.sessions[job.session]
    held = scheduler.why_held(job)
    if held is not None and not scheduler.lost:
        return _held_back(scheduler, job, held)
    book = scheduler.book
    needs = book.wanted(session, job.need) + job.need.ephemeral
    if scheduler.lost:
        free, ahead = max(0, book.table.free), book.queue.ahead(job.id)
        return Wait(WaitReason.MEMORY, needs, free, ahead, lost=scheduler.why_lost)
    if needs <= book.table.free and not scheduler.may_enter(job):
        # The policy has no more of them at once.
        eta, exact = for_memory(scheduler, job)
        return Wait(WaitReason.TURN, 0, 0, 1 + book.queue.ahead(job.id), eta=eta, exact=exact)
    until = scheduler.turns.free_until
    reason = WaitReason.GRACE if scheduler.at < until else WaitReason.MEMORY
    eta, exact = UNKNOWN if reason is WaitReason.GRACE else for_memory(scheduler, job)
    return Wait(
        reason=reason,
        needs=needs,
        free=max(0, book.table.free),
        ahead=book.queue.ahead(job.id),
        holders=()
        if reason is WaitReason.GRACE
        else _holders(scheduler, job, needs - book.table.free),
        until=until if reason is WaitReason.GRACE else None,
        eta=eta,
        exact=exact,
    )


def _held_back(scheduler: Scheduler, job: Job, reason: WaitReason) -> Wait:
    """It waits for no memory of the device: for what its own user holds, or for the end of a maintenance."""
    session, book = scheduler.sessions[job.session], scheduler.book
    needs = book.added(session, job.need) + job.need.ephemeral
    cap, user = session.user.cap, session.user
    if reason is WaitReason.MAINTENANCE or cap is None:
        return Wait(reason, needs, max(0, book.table.free), 0, note=scheduler.drain_note)
    left = max(0, cap - scheduler.held_by(user))
    before = scheduler.held_before(job)
    holders = tuple(one for one in _holders(scheduler, job, needs - left) if one.own)
    return Wait(reason, needs, left, before, holders, cap=cap, group=user.group)


def _holders(scheduler: Scheduler, job: Job, missing: int) -> tuple[Holder, ...]:
    """Who holds memory: always the largest, then the waiter's own, then by size; crumbs are nobody's reason to wait."""
    found = []
    lanes: Counter[SessionId] = Counter()
    for lane in scheduler.book.table.lanes.values():
        if lane.occupant is not None:  # a lane is held by one of its members at a time
            lanes[lane.occupant.session] += lane.size
    for session in scheduler.sessions.values():
        size = session.charged + lanes[session.id]
        if size and session.id != job.session:
            found.append(_holder(scheduler, job, session.id, size))
    found.sort(key=lambda holder: (-holder.size, not holder.own, holder.name))
    if not found:
        return ()
    largest, *others = found
    least = min(missing, largest.size) if missing > 0 else largest.size
    matter = [holder for holder in others if holder.size * _CRUMB >= least]
    named = [largest, *sorted(matter, key=lambda holder: not holder.own)[: _HOLDERS - 1]]
    return tuple(sorted(named, key=lambda holder: not holder.own))


def _holder(scheduler: Scheduler, job: Job, session: SessionId, size: int) -> Holder:
    other = scheduler.sessions[session]
    own = other.user is scheduler.sessions[job.session].user
    idle = None if other.jobs else scheduler.at - other.idle_since
    return Holder(other.id, size, idle, own)
