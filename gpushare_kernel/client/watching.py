"""What a lane that runs is seen to do, by another thread than its own: how far its loops are, what it holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpushare_kernel.wire import cell_texts

if TYPE_CHECKING:
    from gpushare_kernel.client.lanes import Lane
    from gpushare_kernel.client.session import Session

_MEASURES = 1.0
"""Seconds between two measurements of memory."""


class Watch:
    """Looks on while a lane runs; nothing of the lane waits for it.

    On a GPU memory is what its last boundary said, as frameworks are asked on the user's thread; on a host, what the
    system says now.
    """

    def __init__(self, lane: Lane, session: Session | None) -> None:
        self._lane = lane
        self._session = session if lane.shared else None
        self._began = time.monotonic()
        self._measured = float("-inf")
        self._memory: list[tuple[str, int, int]] = []
        if self._session is not None and self._session.gpu is not None:
            self._session.gpu.watch()

    @property
    def ran(self) -> float:
        """Seconds since the lane was entered."""
        return time.monotonic() - self._began

    @property
    def steps(self) -> int:
        """How many boundaries it met."""
        return self._lane.boundaries

    @property
    def part(self) -> float | None:
        """How much of its outermost loop is done, from 0 to 1; None where there is none, or no end of it is known."""
        for loop in self._lane.loops[:1]:
            if loop.total:
                return min(1.0, loop.done / loop.total)
        return None

    def text(self) -> str:
        """Return the line of the lane as it is now."""
        now = time.monotonic()
        if now - self._measured >= _MEASURES:
            self._measured, self._memory = now, self._measure()
        loops = [(one.done, one.total, now - one.began) for one in self._lane.loops]
        return cell_texts.running_text(self.ran, loops, self._memory)

    def _measure(self) -> list[tuple[str, int, int]]:
        lane, session = self._lane, self._session
        if session is None:
            return []
        keeps, beside = lane.persistent or 0, lane.ephemeral or 0
        gpu, memory = session.gpu, session.memory
        if gpu is None:
            return [("holds", memory.known(), keeps + beside)]
        gpu.look_soon()
        if gpu.kept is None:
            return []
        if lane.in_parts:
            took = max(0, memory.highest - gpu.kept)
            return [("kept", gpu.kept, keeps), ("iteration", took, beside)]
        return [("holds", memory.last, keeps + beside)]
