"""The warm tier as the broker sees it: a notebook's client is asked to set its tensors aside, and to put them back. docs/warm.md has its side.

It is asked while its process runs, and answers in its own time. Where that is not soon enough it is asked to put back whatever
it has begun, and until it has said so the driver parks nothing of it: its main thread would stand in a call to the driver with
nobody to ask for its memory. What is set aside later after all is put back at once.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import count

from gpushare_kernel.broker.kernels import Kernel
from gpushare_kernel.core.values import SessionId
from gpushare_kernel.wire.aside import CameBack, PutBack, SetAside, WentAside

LEAST = 2.0
"""Seconds that a client has for a move whatever its size: a cell's end, a collection of garbage."""
SLOWEST = 0.5e9
"""Bytes a second that it must copy at least; the first time the host's memory is taken for them too (1.6e9 to 2.5e9)."""
_logger = logging.getLogger(__name__)


def limit(size: int) -> float:
    """Return how long a client may take to move `size` bytes (seconds)."""
    return LEAST + size / SLOWEST


class Warm:
    """Asks clients, and takes their answers."""

    def __init__(self) -> None:
        self._tickets = count(1)
        self._asked: dict[tuple[SessionId, int], asyncio.Future[WentAside | CameBack]] = {}
        #: Bytes of those who are asked now: the host takes memory for all of them, one lease after the other.
        self._sizes: dict[SessionId, int] = {}

    async def set_aside(self, kernel: Kernel, size: int) -> int | None:
        """Return how many of its `size` bytes its client has given back now; None where it may still be at it, or cannot be asked now."""
        if not kernel.lines:
            return None
        ask = SetAside(next(self._tickets))
        if not kernel.lines[0].hears(ask):
            return 0  # its version knows nothing of this, and begins nothing
        before = kernel.aside
        self._sizes[kernel.id] = size
        try:
            seconds = limit(sum(self._sizes.values()))
            answer = await self._ask(kernel, ask, seconds)
            if answer is None:
                answer = await self._ask(kernel, PutBack(next(self._tickets)), seconds)
        finally:
            del self._sizes[kernel.id]
        if isinstance(answer, WentAside):
            kernel.aside = answer.size
            _note("set aside", kernel, answer.size, answer)
            return max(0, answer.size - before)
        if answer is None or answer.why:
            return None
        kernel.aside = 0
        return 0

    async def put_back(self, kernel: Kernel, seconds: float) -> str:
        """Have its client copy it back; return "", or why it has not yet."""
        if not kernel.aside:
            return ""
        answer = await self._ask(kernel, PutBack(next(self._tickets)), seconds)
        if not isinstance(answer, CameBack):
            return "its kernel does not answer"
        _note("put back", kernel, kernel.aside, answer)
        if not answer.why:
            kernel.aside = 0
        return answer.why

    def heard(self, kernel: Kernel, answer: WentAside | CameBack) -> None:
        """A client has answered."""
        asked = self._asked.get((kernel.id, answer.ticket))
        if asked is not None and not asked.done():
            asked.set_result(answer)
        elif isinstance(answer, WentAside) and answer.size:
            kernel.aside = answer.size
            kernel.notify(PutBack(next(self._tickets)))
        elif isinstance(answer, CameBack) and not answer.why:
            kernel.aside = 0

    async def _ask(
        self, kernel: Kernel, notice: SetAside | PutBack, seconds: float
    ) -> WentAside | CameBack | None:
        if not kernel.lines:
            return None
        key = kernel.id, notice.ticket
        self._asked[key] = asyncio.get_running_loop().create_future()
        kernel.notify(notice)
        try:
            async with asyncio.timeout(seconds):
                return await self._asked[key]
        except TimeoutError:
            return None
        finally:
            del self._asked[key]


def _note(what: str, kernel: Kernel, size: int, answer: WentAside | CameBack) -> None:
    told = {"session": kernel.id, "size": size, "copied": answer.copied}
    if answer.why:
        _logger.info("not %s by its client: %s", what, answer.why, extra=told)
    else:
        _logger.info("%s by its client", what, extra=told)
