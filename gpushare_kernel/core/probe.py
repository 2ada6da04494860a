"""What samples say about a session: what it used, how much it could use, whether a plain cell has become a job."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from gpushare_kernel.core.config import Config
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobId, Presence, SessionId, Usage

LONGEST_LOOK = 1.0
"""A plain cell that hardly uses the device is looked at less and less often, but never later than this (seconds)."""
SHORTEST_LOOK = 0.2
"""What nobody announced is judged over this many seconds at least."""
ENOUGH_HELD, ENOUGH_BETWEEN, MOSTLY = 0.02, 0.2, 0.8
"""Seconds of turn that a demand can be measured from: where the turn was most of the time since the last sample, else."""
BUSY, QUIET = 0.25, 0.05
"""Cores wanted above which an unannounced session is working, and used below which it has fallen quiet."""
QUIET_FOR = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one sample says. `used` in device seconds since the last one, `demand` in cores where it can be told.

    `steps` are the boundaries it met since the last one. `begins`: the session works without a job (a plain cell, a background thread, a kernel without our client);
    `quiet`: it has not used its turns for a while; `cheated`: it used the device although it is paused.
    """

    used: float
    demand: float | None = None
    steps: int = 0
    begins: bool = False
    quiet: bool = False
    cheated: bool = False


def unannounced(session: SessionId) -> JobId:
    """Return what the job of `session` is called that only its use of the device told of."""
    return JobId(f"{session}/plain")


class Probe:
    """The open plain cells, and the arithmetic of samples."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._looks: list[tuple[float, SessionId]] = []
        self._due: dict[SessionId, float] = {}

    def start(self, session: Session, at: float) -> None:
        """A plain cell begins in `session`, whose use so far was just sampled."""
        if session.jobs:
            return
        session.cell_since, session.cell_used = at, session.used
        session.cell_wait = self.config.plain_grace
        self._look(session, at)

    def forget(self, session: Session) -> None:
        """The cell of `session` is over, or became a job."""
        session.cell_since = None
        self._due.pop(session.id, None)

    def due(self, at: float) -> list[SessionId]:
        """Sessions whose cell is to be looked at by `at`."""
        found, ahead = [], [0]  # down the heap, as far as it is due
        while ahead:
            n = ahead.pop()
            if n < len(self._looks) and self._looks[n][0] <= at:
                when, name = self._looks[n]
                ahead += (2 * n + 1, 2 * n + 2)
                if self._due.get(name) == when:
                    found.append(name)
        return found

    def next_look(self) -> float | None:
        """When the next open cell is to be looked at."""
        while self._looks and self._due.get(self._looks[0][1]) != self._looks[0][0]:
            heappop(self._looks)
        return self._looks[0][0] if self._looks else None

    def sample(self, session: Session, usage: Usage, at: float) -> Seen:
        """Take in cumulative `usage` of `session`."""
        if session.phase in {Phase.ON, Phase.LEAVING}:
            session.held += at - session.on_since
            session.on_since = at
        before, wanted_before, since = session.used, session.wanted, session.sampled_at
        session.used, session.wanted, session.sampled_at = usage.device_time, usage.wanted, at
        if before is None:
            session.held = session.gained = 0.0
            return Seen(0.0)
        used = max(0.0, usage.device_time - before)
        wanted = max(used, usage.wanted - wanted_before)
        session.device_time += used
        if session.phase is Phase.OFF:
            session.held = session.gained = 0.0
            return (
                self._cell(session, used, wanted, at)
                if session.cell_since is not None
                else self._idle(session, used, wanted, at - since)
            )
        session.gained += wanted
        # What it used between its turns (on its way into a boundary, out of a pause) is in the sample too.
        # Where the turn is most of the time since the last sample, that is little; else it takes a longer turn.
        enough = ENOUGH_HELD if session.held >= MOSTLY * (at - since) else ENOUGH_BETWEEN
        if session.held < enough:
            still = (
                session.stopped is not None and not session.pausing and since >= session.stopped_at
            )
            return Seen(used, cheated=still and used > ENOUGH_HELD)
        held, session.held = session.held, 0.0
        gained, session.gained = session.gained, 0.0
        session.quiet = 0.0 if gained / held > QUIET else session.quiet + held
        return Seen(used, gained / held, quiet=session.quiet >= QUIET_FOR)

    def _cell(self, session: Session, used: float, wanted: float, at: float) -> Seen:
        """An open plain cell: has it used enough to be a job?"""
        since, base = session.cell_since, session.cell_used
        if since is None or base is None or session.used is None:
            session.cell_used = session.used
            return self._later(session, used, at)
        spent = session.used - base
        if spent < self.config.plain_grace or at <= since:
            return self._later(session, used, at)
        return Seen(used, max(wanted, spent) / (at - since), begins=True)

    def _later(self, session: Session, used: float, at: float) -> Seen:
        session.cell_wait = min(LONGEST_LOOK, session.cell_wait * 1.5)
        self._look(session, at)
        return Seen(used)

    def _idle(self, session: Session, used: float, wanted: float, passed: float) -> Seen:
        """No cell, no job: a kernel without our client, or a thread that outlives its cell."""
        known = session.presence is Presence.BARE or session.begun
        if (
            not known
            or session.jobs
            or passed < SHORTEST_LOOK
            or used < self.config.plain_grace
            or used / passed < QUIET
            or wanted / passed < BUSY  # on a crowded host it may not have got what it wanted
        ):
            return Seen(used)
        return Seen(used, wanted / passed, begins=True)

    def _look(self, session: Session, at: float) -> None:
        when = self._due[session.id] = at + session.cell_wait
        heappush(self._looks, (when, session.id))
        if len(self._looks) > 64 + 4 * len(self._due):
            self._looks = [(when, name) for name, when in self._due.items()]
            heapify(self._looks)
