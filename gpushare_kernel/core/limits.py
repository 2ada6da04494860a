"""What an administrator allows: caps on what one user holds, who yields once its budget is used, and maintenance (docs/admin).

Who waits for its own user's cap, or for the end of a maintenance, stands beside the memory queue, not in it: it passes
nobody, is passed by everybody, and no memory is taken from anybody for it. What runs already is never touched: a cap that is
lowered holds for what comes next.
"""

from __future__ import annotations

from typing import Any

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.jobs import Jobs
from gpushare_kernel.core.records import Job, Moving, Session, User
from gpushare_kernel.core.sizes import check_weight, format_size
from gpushare_kernel.core.values import JobId, JobState, WaitReason


class Limits(Jobs):
    """Who is held back, and why."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Jobs that do not compete for memory, in the order in which they came.
        self.held_back: dict[JobId, Job] = {}
        #: Whether there is a maintenance, and what whoever began it says.
        self.draining = False
        self.drain_note = ""
        #: Whether anybody has a cap: else nobody is looked for.
        self._caps = False

    # --- what is asked ----------------------------------------------------------------------------------------

    def held_by(self, user: User) -> int:
        """Return the bytes of the device that `user` holds: what its sessions keep, their contexts, and its part of lanes."""
        sessions = [self.sessions[name] for name in user.sessions]
        kept = sum(session.charged + session.context for session in sessions)
        lanes: dict[int, int] = {}
        for session in sessions:
            for job in session.jobs.values():
                if job.lane is not None:  # of lane mates one has its E on the device
                    lanes[job.lane] = max(lanes.get(job.lane, 0), job.need.ephemeral)
        return kept + sum(lanes.values())

    def why_held(self, job: Job) -> WaitReason | None:
        """Return why `job`, which has no memory, does not compete for any; None where it does."""
        session = self.sessions[job.session]
        if job.hurried:
            return None
        if self.draining and not _has_begun(job, session):
            return WaitReason.MAINTENANCE
        cap = session.user.cap
        if cap is None or job.granted is not None:
            return None  # what runs is never touched by a cap that was lowered
        if job.in_driver and self.held_by(session.user) == session.charged + session.context:
            return None  # what it kept comes back, alone
        needs = self.book.added(session, job.need) + job.need.ephemeral
        return WaitReason.CAP if self.held_by(session.user) + needs > cap else None

    def held_before(self, job: Job) -> int:
        """Return how many jobs of the same user were held back before `job`."""
        user, before = self.sessions[job.session].user, 0
        for other in self.held_back.values():
            if other is job:
                break
            before += self.sessions[other.session].user is user
        return before

    def _parks_enough(self, session: Session) -> str:
        """Return why no more of its user may be set aside; empty where it may."""
        cap = session.user.parked_cap
        if cap is None:
            return ""
        aside = 0
        for name in session.user.sessions:
            one = self.sessions[name]
            if one.parked is not None:
                aside += one.parked.size
            elif one.moving is Moving.OUT:
                aside += one.charged + one.context
        if aside + session.charged + session.context <= cap:
            return ""
        return f"each of the group {session.user.group} may have {format_size(max(0, cap))} set aside, and {format_size(aside)} are"

    # --- what changes -------------------------------------------------------------------------------------------

    def _user_limits(self, event: ev.UserLimits) -> None:
        weight = check_weight(event.weight)
        user = self.users.get(event.user)
        if user is None:
            user = self.users[event.user] = User(event.user)
        user.weight, user.group = weight, event.group
        user.cap, user.cap_ever, user.parked_cap = event.memory, event.memory_ever, event.parked
        self._caps = any(one.cap is not None for one in self.users.values())
        if user.over_budget != event.over_budget:
            user.over_budget = event.over_budget
            self.turns.accounts.ranks_anew(user)
            self.turns.choose_anew()
        self._admit(event.at)

    def _drains(self, event: ev.Draining) -> None:
        self.draining, self.drain_note = event.on, event.note
        for session in [*self.sessions.values()] if event.on else ():
            self._falls_idle(session, event.at)
        self._admit(event.at)

    # --- who competes ---------------------------------------------------------------------------------------------

    def _enqueue(self, job: Job, session: Session, at: float) -> None:
        if self.why_held(job) is not None:
            self.held_back[job.id] = job
            return
        super()._enqueue(job, session, at)

    def _over(self, session: Session, job: Job, state: JobState) -> None:
        self.held_back.pop(job.id, None)
        super()._over(session, job, state)

    def _admit(self, at: float) -> None:
        self._let_back(at)
        self._hold_back(at)
        super()._admit(at)

    def _make_room(self, at: float) -> bool:
        """Somebody was let in: others of the same user may be beyond its cap by that, and are in nobody's way then."""
        return self._hold_back(at)

    def may_enter(self, job: Job) -> bool:
        """Whether the policy has one more in the device's memory, and nothing else holds `job` back."""
        return self.why_held(job) is None and super().may_enter(job)

    def _let_back(self, at: float) -> None:
        """Whoever is not held back any more competes from now on, one after the other as they came."""
        for job in [*self.held_back.values()]:
            if self.why_held(job) is None:
                del self.held_back[job.id]
                super()._enqueue(job, self.sessions[job.session], at)
                self._be_patient(job, at)

    def _hold_back(self, at: float) -> bool:  # noqa: ARG002
        """Take those out of the queue that are not to compete; say whether there were any."""
        if not (self._caps or self.draining):
            return False
        beyond = [job for job in self.book.queue if self.why_held(job) is not None]
        for job in beyond:
            self.book.queue.remove(job)
            self.held_back[job.id] = job
        return bool(beyond)


def _has_begun(job: Job, session: Session) -> bool:
    """Whether `job` is past its first line, or inside another one that is: that one could not end without it."""
    return any(one.granted is not None for one in (job, *session.jobs.values()))
