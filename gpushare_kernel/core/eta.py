"""How long a job still waits, from what those before it still need with the device: their times, declared or learned.

Where one runs after the other (FIFO, SRTF) that is a sum. Where they share the device (FAIR, PACK) it is an estimate: as
if it were shared equally, and nobody else came. One unknown time in the way, and nothing is known. Computed when
somebody reads it: linear in the jobs (times a logarithm for their order).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import takewhile

from gpushare_kernel.core.records import Job, Key
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import LaneId, SessionId

Eta = tuple[float | None, bool]
"""Seconds (None: not known), and whether they are a sum rather than an estimate."""
UNKNOWN: Eta = (None, False)


def for_memory(core: Scheduler, job: Job) -> Eta:
    """Return when `job`, which waits for memory, may run."""
    if _in_sequence(core):
        return _in_turn(core, job)
    return _shared(core, job), False


def for_turn(core: Scheduler, job: Job) -> Eta:
    """Return when `job`, which has its memory, may run."""
    if _in_sequence(core):
        return _in_turn(core, job)
    return core.config.turn * max(1, len(core.turns.using)), False


def for_lane(core: Scheduler, job: Job, before: int) -> Eta:
    """Return when `job` has its lane, for which `before` others wait before it."""
    if _in_sequence(core):
        return _in_turn(core, job)
    lane = core.book.table.lanes[job.lane] if job.lane is not None else None
    if lane is None or lane.private:
        return UNKNOWN
    left = max(0.0, lane.since + core.config.lane_turn - core.at)
    return left + before * core.config.lane_turn, False


def _in_sequence(core: Scheduler) -> bool:
    policy = core.turns.accounts.policy
    return policy.preempts or not policy.rotates


def _in_turn(core: Scheduler, job: Job) -> Eta:
    """Those who rank before it run to their end; then, where its memory is not free yet, those behind it who hold some."""
    policy = core.turns.accounts.policy
    mine = policy.job_key(job, core.sessions[job.session], core.at)
    ending, seconds = _Ending(core, job), 0.0
    behind: list[tuple[Key, Job]] = []
    for one in core.jobs.values():
        key = policy.job_key(one, core.sessions[one.session], core.at)
        if key < mine and one is not job:
            left = _left(core, one)
            if left is None:
                return UNKNOWN
            seconds += left
            ending.ended(one)
        elif one.lane is not None:
            behind.append((key, one))
    if job.lane is not None or ending.fits():
        return seconds, True
    for _, one in sorted(behind, key=lambda entry: entry[0]):
        left = _left(core, one)
        if left is None:
            return UNKNOWN
        seconds += left
        ending.ended(one)
        if ending.fits():
            return seconds, True
    return UNKNOWN


def _shared(core: Scheduler, job: Job) -> float | None:
    """All who hold memory share the device equally; the shortest end first, until it is `job`'s turn to have theirs."""
    resident = [one for one in core.jobs.values() if one.lane is not None]
    known = sorted(
        (left, one.order, one) for one in resident if (left := _left(core, one)) is not None
    )
    if not known:
        return None
    ending = _Ending(core, job)
    ending.needs += sum(_needs(core, one) for one in _ahead(core, job))
    seconds = before = 0.0
    for n, (left, _, one) in enumerate(known):
        if ending.fits():
            break
        seconds += (left - before) * max(1.0, (len(resident) - n) / core.config.compute)
        before = left
        ending.ended(one)
    return seconds if ending.fits() else None


class _Ending:
    """What is free for `job` once others have ended: their lanes, and what they declared and never used."""

    def __init__(self, core: Scheduler, job: Job) -> None:
        self._core = core
        self._free = core.book.table.free
        self.needs = _needs(core, job)
        self._in_lane: Counter[LaneId] = Counter()
        self._of_session: Counter[SessionId] = Counter()

    def fits(self) -> bool:
        return self.needs <= self._free

    def ended(self, one: Job) -> None:
        session = self._core.sessions[one.session]
        if one.lane is None:
            self.needs += self._core.book.added(session, one.need)  # it keeps that when it ends
            return
        lane = self._core.book.table.lanes[one.lane]
        self._in_lane[lane.id] += 1
        self._of_session[session.id] += 1
        if self._in_lane[lane.id] == len(lane.members):
            self._free += lane.size
        if self._of_session[session.id] == len(session.jobs):
            self._free += max(0, session.declared - session.measured)


def _needs(core: Scheduler, job: Job) -> int:
    return core.book.wanted(core.sessions[job.session], job.need) + job.need.ephemeral


def _ahead(core: Scheduler, job: Job) -> Iterable[Job]:
    return takewhile(lambda one: one is not job, core.book.queue)


def _left(core: Scheduler, job: Job) -> float | None:
    """Return how long `job` still needs the device; None where nobody knows: it has no time, or has overrun it."""
    if job.time is None:
        return None
    left = job.time - job.served(core.sessions[job.session], core.at)
    return left if left > 0 else None
