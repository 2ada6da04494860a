"""What samples say about a session on a GPU: nobody measures its seconds there, only that it was seen at work."""

from __future__ import annotations

from gpushare_kernel.core.probe import QUIET_FOR, Probe, Seen
from gpushare_kernel.core.records import Session
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import Presence, Usage

LATE = 4.0
"""Seconds that a driver's word of who was at work may be late, its reading included (3.3 seen on an H200). On a device that
idles it comes when somebody works again, whenever that is: who was idle is excused once (seen there after 6.4 and more)."""
_QUIET = 5 * QUIET_FOR
"""A driver names one process at a time: who works little is seen rarely."""


class Glance(Probe):
    """Whether a plain cell, or somebody without one, uses the device."""

    def sample(self, session: Session, usage: Usage, at: float) -> Seen:
        """Take in what was seen of `session`."""
        before, since = session.progress, session.told_at
        session.progress, session.sampled_at = usage.progress, at
        steps = max(0, usage.progress - before)
        works = steps > 0 or bool(usage.active)
        resident = usage.contexts is None or usage.contexts > 0
        told = (
            usage.active is not None
        )  # else the driver was not asked again: no word of rest, nor of work
        if told:
            session.told_at = at
        if session.phase is Phase.OFF:
            return self._off(session, steps, at, works=works and resident)
        if works:
            session.quiet = 0.0
        elif told:
            session.quiet += at - max(since, session.on_since)
        return Seen(0.0, steps=steps, quiet=session.quiet >= _QUIET)

    def _off(self, session: Session, steps: int, at: float, *, works: bool) -> Seen:
        nothing = Seen(0.0, steps=steps)
        if session.cell_since is not None:
            # Whose kernel has a context most likely uses it. Where it does not, it is soon measured, and stands beside
            # the turns; its code runs on meanwhile: a GPU's pause holds up nothing but its calls.
            likely = works or session.context > 0
            if likely and at - session.cell_since >= self.config.plain_grace:
                return Seen(0.0, steps=steps, begins=True)
            self._later(session, 0.0, at)
            return nothing
        bare = session.presence is Presence.BARE
        late = not bare and at - session.idle_since < LATE
        if not works or late or session.jobs or not (bare or session.begun):
            return nothing
        if session.excused != session.idle_since:
            session.excused = session.idle_since
            return nothing
        return Seen(0.0, steps=steps, begins=True)
