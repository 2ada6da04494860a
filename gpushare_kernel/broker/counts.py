"""What a device's metrics count: plain numbers that grow as events pass, beside the scheduler. Only where somebody asked for metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from gpushare_kernel.broker.families import DRAINS, SECONDS, Spread
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.records import Job, Session
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import JobId, MoveStatus, PauseReason, PauseStatus, SessionId

PARK, RESTORE = "park", "restore"
CLASSES = ("realtime", "declared", "plain", "background")


def class_of(job: Job, session: Session) -> str:
    """Return which class `job` counts as: one of `CLASSES`."""
    if job.realtime:
        return "realtime"
    if session.background:
        return "background"
    return "plain" if job.plain else "declared"


class Counts:
    """The counts of one device, since its broker's start."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.events = self.failures = self.restarts = self.overruns = 0
        self.releases = self.misses = 0
        self.waits: defaultdict[str, Spread] = defaultdict(lambda: Spread.over(SECONDS))
        self.pauses: Counter[str] = Counter(dict.fromkeys(PauseReason, 0))
        self.results: Counter[str] = Counter(dict.fromkeys(PauseStatus, 0))
        self.drains = Spread.over(DRAINS)
        self.moves: Counter[tuple[str, str]] = Counter(
            dict.fromkeys(product((PARK, RESTORE), MoveStatus), 0)
        )
        self.moved: Counter[str] = Counter()
        self.move_times = {way: Spread.over(SECONDS) for way in (PARK, RESTORE)}
        #: What comes back, while it does; releases and misses that were counted, by real-time job.
        self._sizes: dict[SessionId, int] = {}
        self._counted: dict[JobId, tuple[int, int]] = {}
        self._sees: dict[type[Any], Callable[[Any], None]] = {
            ev.Paused: self._paused,
            ev.Parked: self._parked,
            ev.Restored: self._restored,
            ev.SessionRestarted: self._restarted,
            ev.RealtimeDone: self._done,
            do.Grant: self._granted,
            do.Pause: self._pause,
            do.Restore: self._restore,
            do.Overran: self._overran,
        }

    def note(self, event: ev.Event, out: Sequence[do.Instruction]) -> None:
        """Count `event` and what followed from it. A few tenths of a microsecond."""
        self.events += 1
        sees = self._sees
        see = sees.get(type(event))
        if see is not None:
            see(event)
        for one in out:
            see = sees.get(type(one))
            if see is not None:
                see(one)

    def look_at_deadlines(self, at: float) -> None:
        """Count releases and misses of the real-time jobs that stand."""
        standing = self._scheduler.turns.gate.windows.standing
        for gone in self._counted.keys() - standing.keys():
            del self._counted[gone]
        for job in standing:
            self._count(job, at)

    def _count(self, job: JobId, at: float) -> None:
        one = self._scheduler.turns.gate.windows.standing.get(job)
        if one is not None:
            releases, misses = self._counted.get(job, (0, 0))
            now = self._counted[job] = one.releases, max(misses, one.misses(at))
            self.releases += now[0] - releases
            self.misses += now[1] - misses

    def _granted(self, grant: do.Grant) -> None:
        job = self._scheduler.jobs.get(grant.job)
        session = self._scheduler.sessions.get(grant.session)
        if job is not None and session is not None and job.turns == 1 and job.granted is not None:
            self.waits[class_of(job, session)].add(job.granted - job.submitted)

    def _pause(self, pause: do.Pause) -> None:
        self.pauses[pause.reason] += 1

    def _paused(self, paused: ev.Paused) -> None:
        self.results[paused.status] += 1
        if paused.status is PauseStatus.PAUSED:
            self.drains.add(paused.drain)

    def _parked(self, parked: ev.Parked) -> None:
        self._moved(PARK, parked.status, parked.took, parked.freed)

    def _restore(self, restore: do.Restore) -> None:
        self._sizes[restore.session] = restore.size

    def _restored(self, restored: ev.Restored) -> None:
        size = self._sizes.pop(restored.session, 0)
        self._moved(RESTORE, restored.status, restored.took, size)

    def _moved(self, way: str, status: MoveStatus, took: float, size: int) -> None:
        self.moves[way, status] += 1
        if status is MoveStatus.DONE:
            self.move_times[way].add(took)
            self.moved[way] += size

    def _restarted(self, _: ev.SessionRestarted) -> None:
        self.restarts += 1

    def _done(self, done: ev.RealtimeDone) -> None:
        self._count(done.job, done.at)

    def _overran(self, _: do.Overran) -> None:
        self.overruns += 1
