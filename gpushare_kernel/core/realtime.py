"""Jobs with a proven deadline, on one device: admission by what others' work takes to stop, and their releases (I7)."""

from __future__ import annotations

from gpushare_kernel.core import drains
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.records import Job, Session
from gpushare_kernel.core.suspension import Suspensions


class Realtime(Suspensions):
    """What becomes of promises. The proof itself is the broker's: it comes with the job."""

    def longest_drain(self) -> float:
        """Return how long the work of others takes to stop, as proofs are made with it.

        Seconds: the largest bound of those sessions that have jobs and none with a deadline (`drains.bound`: of what pausing
        each of them took so far, with a margin). Where none is known yet, or none is left, the limit of a trial turn
        (`Config.trial_drain`).
        """
        known = (drains.bound(s) for s in self.sessions.values() if s.jobs and not s.realtime)
        return max((d for d in known if d is not None), default=0.0) or self.config.trial_drain

    def _unproven(self, event: ev.JobSubmitted) -> str | None:
        promise = event.promise
        if promise is None:
            return None
        for session in self.sessions.values():
            if session.realtime or not session.jobs or session.id == event.session:
                continue
            if not session.pausable:
                return "its deadline cannot be promised: somebody's GPU work beside it cannot be paused. Run it when that has ended."
            drain = drains.bound(session)
            if drain is not None and drain > promise.absorbs:
                return (
                    f"its deadline cannot be promised: somebody's work beside it takes up to {1000 * drain:.3g} ms to stop, and the "
                    f"deadline leaves {1000 * promise.absorbs:.3g} ms for that. Lengthen the deadline by {1000 * (drain - promise.absorbs):.3g} ms."
                )
        return None

    def _promised_anew(self, event: ev.Promised) -> None:
        """Jobs that run have other bounds, or a deadline from now on: then their session is in nobody's turn any more."""
        self._promised(event)
        for name, promise in event.promises.items():
            job = self.jobs.get(name)
            if job is None or job.promise is not None:
                continue
            session = self.sessions[job.session]
            self.turns.unwant(session, event.at)
            job.promise, job.realtime, session.realtime = promise, True, True
            self._first_line(job)
            self._wants(session, event.at)
        self._admit(event.at)

    def _promised(self, event: ev.JobSubmitted | ev.Promised) -> None:
        for job, promise in event.promises.items():
            standing = self.turns.gate.windows.standing.get(job)
            if standing is not None:
                standing.promise = promise

    def _first_line(self, job: Job) -> None:
        if job.promise is not None:
            self.turns.gate.windows.begin(job.id, job.session, job.promise)

    def _last_line(self, job: Job, session: Session) -> None:
        if job.promise is None:
            return
        self.turns.gate.windows.end(job.id)
        session.realtime = any(other.promise is not None for other in session.jobs.values())

    def _on_grid(self, event: ev.RealtimeGrid) -> None:
        if event.first is None:
            self.turns.gate.windows.sporadic(event.job)
        else:
            self.turns.gate.windows.grid(event.job, event.first)

    def _is_released(self, event: ev.RealtimeReleased) -> None:
        self.turns.gate.windows.released(event.job, event.at)

    def _is_done(self, event: ev.RealtimeDone) -> None:
        used = self.turns.gate.windows.done(event.job, event.at, event.left)
        job = self.jobs.get(event.job)
        if job is not None and not self.config.divisible:
            session = self.sessions[job.session]
            session.device_time += used
            session.user.device_time += used
