"""The virtual broker with a GPU: slots of time instead of cores, contexts, and memory that is parked in the middle of work."""

from __future__ import annotations

from typing import Any

from benchmarks.core_events.world import World
from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.values import GiB, MiB, SessionId, Usage

CAPACITY, CONTEXT, MARGIN = 141 * GiB, 512 * MiB, 256 * MiB
"""An H200, what a context takes, and what who declares nothing may take: some 200 sessions hold memory, however many there are."""
WINDOW = 0.2
BUSY = (0.97, 0.98, 0.99)
"""How busy the device says that it was: whoever works saturates it, so they have it in turn."""
STEPS = 100
"""Boundaries a second of those who are at work."""


class GpuWorld(World):
    """A scheduler of one GPU with `number` sessions, most of whose memory is parked or was never there."""

    def _config(self, settings: dict[str, Any]) -> Config:
        return Config(
            capacity=CAPACITY,
            compute=1.0,
            reserve=CONTEXT,
            divisible=False,
            enforce=True,
            can_park=True,
            **settings,
        ).for_gpu(MARGIN)

    def make(self, kind: str) -> bool:
        """Few run at a time: where none does that could end, somebody gives up waiting instead."""
        made = super().make(kind)
        return made or (kind == "JobEnded" and super().make("JobCancelled"))

    def _carry_out(self, instruction: do.Instruction) -> None:
        if isinstance(
            instruction, do.Park
        ):  # what is parked in the middle of its work ends when it is back
            for job in self.core.sessions[instruction.session].jobs:
                self._running.discard(job)
        super()._carry_out(instruction)

    def _usage(self, session: SessionId) -> Usage:
        used, known = self._used[session], self.core.sessions[session]
        at_work = known.id in self.core.turns.using and bool(known.jobs)
        return Usage(0.0, 0.0, progress=int(used * STEPS), active=at_work)

    def _pace(self) -> float:
        return 1.0 / max(1, len(self.core.turns.using))

    def _sample(self, used: dict[SessionId, Usage]) -> ev.Sampled:
        busy = self.random.choice(BUSY) if self.core.turns.using else 0.0
        since = self.now - 2 * WINDOW
        return ev.Sampled(at=self.now, used=used, utilization=busy, utilization_since=since)
