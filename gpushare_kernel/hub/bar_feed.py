"""What status bars show, gathered once for all pages of a server: nothing is asked of the broker while no page is open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gpushare_kernel.client.line import Line, line_from_here
from gpushare_kernel.client.shown import Snapshot
from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.wire import bar_texts
from gpushare_kernel.wire.bar_texts import Bar

TICK = 1.0
"""Seconds between two looks at what runs here; only what comes of them is asked of the broker."""
EVERY: Mapping[str, float] = {"waiting": 1.0, "busy": 2.0, "paused": 2.0, "parked": 5.0, "idle": 5.0}  # fmt: skip
"""Seconds between two questions, by the liveliest of this server's notebooks."""
RARELY = 90.0
"""While no notebook here shares: longer than a user's broker stays without any, so that none is kept from its end."""
AWAY = 5.0
"""While no broker answers."""
PATIENCE = 5.0
_FAILED = "the server failed to ask; its log has the traceback. Please report it."
Hear = Callable[[str], None]
_logger = logging.getLogger(__name__)


class BarFeed:
    """Feeds pages with JSON. `kernels` says which of this server's kernels are which sessions.

    Everything runs on the server's loop, but the broker is asked in a thread: a broker that is slow holds up no notebook.
    """

    def __init__(self, kernels: Callable[[], Mapping[str, str]]) -> None:
        self._kernels = kernels
        self._pages: set[Hear] = set()
        self._task: asyncio.Task[None] | None = None
        self._last = ""
        self._pending: asyncio.Task[Snapshot] | None = None
        #: How often the broker was asked for pages.
        self.asked = 0

    def show(self, page: Hear) -> None:
        """Tell `page` what there is from now on."""
        self._pages.add(page)
        if self._last:
            page(self._last)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._feed())

    def drop(self, page: Hear) -> None:
        """It is closed; after the last one nothing more is asked."""
        self._pages.discard(page)
        if not self._pages and self._task is not None:
            self._task.cancel()
            self._task, self._last = None, ""

    async def snapshot(self) -> Snapshot:
        """Return the whole, for whoever asks for it: several that ask at a time share one answer.

        Raises
        ------
        GpushareError
            Where no broker answers.
        """
        if self._pending is None or self._pending.done():
            self._pending = asyncio.create_task(asyncio.to_thread(_whole))
        return await asyncio.shield(self._pending)

    async def _feed(self) -> None:
        loop = asyncio.get_running_loop()
        asker, due, known = Asker(), loop.time(), self._kernels()
        asking: asyncio.Future[tuple[str, float]] | None = None
        try:
            while True:
                kernels = self._kernels()
                if loop.time() >= due or kernels != known:
                    known = kernels
                    self.asked += 1
                    asking = loop.run_in_executor(None, asker.ask, dict(kernels))
                    message, pause = await asyncio.shield(asking)
                    due = loop.time() + pause
                    self._tell(message)
                await asyncio.sleep(TICK)
        finally:
            if asking is None or asking.done():
                asker.hang_up()
            else:  # the last page was closed while the broker was asked
                asking.add_done_callback(lambda _: asker.hang_up())

    def _tell(self, message: str) -> None:
        if message != self._last:
            self._last = message
            for page in [*self._pages]:
                page(message)


class Asker:
    """Asks the broker, in a thread, over one line while there is anything to ask often."""

    def __init__(self) -> None:
        self._line: Line | None = None

    def ask(self, kernels: Mapping[str, str]) -> tuple[str, float]:
        """Return what to say of `kernels`, and in how many seconds to ask again."""
        try:
            if self._line is None:
                self._line = line_from_here(PATIENCE)
            snapshot = self._line.snapshot(brief=True)
        except (GpushareError, OSError) as problem:
            self.hang_up()
            return _encoded({"device": bar_texts.away(str(problem))}), AWAY
        except Exception:  # the server serves all the same, and asks again
            _logger.exception("what status bars say could not be asked")
            self.hang_up()
            return _encoded({"device": bar_texts.away(_FAILED)}), AWAY
        bars = {
            kernel: bar
            for kernel, session in kernels.items()
            if (bar := bar_texts.bar_of_notebook(snapshot, session)) is not None
        }
        if not bars:
            self.hang_up()  # an open line would keep a broker from its end
        announced = getattr(snapshot, "announcement", None)
        said = {
            "kernels": bars,
            "device": bar_texts.bar_of_device(snapshot),
            "announcement": None if announced is None else announced.text,
        }
        return _encoded(said), min((EVERY[bar.state] for bar in bars.values()), default=RARELY)

    def hang_up(self) -> None:
        """End the line."""
        line, self._line = self._line, None
        if line is not None:
            with contextlib.suppress(OSError):
                line.close()


def _whole() -> Snapshot:
    with line_from_here(PATIENCE) as line:
        return line.snapshot()


def _encoded(said: Mapping[str, Any]) -> str:
    plain = {"kernels": {}, "announcement": None, **said}
    plain["kernels"] = {kernel: bar._asdict() for kernel, bar in plain["kernels"].items()}
    device: Bar = plain["device"]
    return msgspec.json.encode({**plain, "device": device._asdict()}).decode()
