"""The line of a declared cell: why it waits, then how far it is, and at the end what it took, in one place.

It is the first of the cell's outputs, so that what the cell prints stays together. Where outputs cannot change (terminals,
consoles, `%%capture`) lines are written instead: why it waits, and what it took.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from gpushare_kernel.client.watching import Watch
from gpushare_kernel.wire import cell_texts
from gpushare_magics.lines import Output, Place, WaitingLine

if TYPE_CHECKING:
    from gpushare_kernel.client.display import Shown, Text
    from gpushare_kernel.client.lanes import Lane
    from gpushare_kernel.client.session import Session
    from gpushare_kernel.client.shown import Wait

EVERY = 0.25
"""Seconds between two looks at a cell that runs."""
AGAIN = 1.0
"""Seconds between two looks at the clock while it waits."""


class Row:
    """The line of one declared cell. Made, started and ended on the cell's thread."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._place: Place | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._said = ""
        self._watch: Watch | None = None
        self._pid = os.getpid()

    def waiting(self, session: Session, why: Text) -> Shown:
        """Return what shows the waiting: the lane asks for it before it queues."""
        self._place = self._output.place()
        if self._place is None:
            return self._output.waiting(session, why)
        return _Waiting(session, self._output, why, self)

    def run(self, lane: Lane, session: Session | None) -> None:
        """Show how far the cell is from now on, from a thread of its own."""
        if self._place is None or not lane.shared:
            return
        self._watch = Watch(lane, session)
        if not self._place.shown:
            self.put(self._watch.text())
        threading.Thread(target=self._follow, name="gpushare-row", daemon=True).start()

    @property
    def shown(self) -> bool:
        """Say whether there is a line to be replaced."""
        return self._place is not None and self._place.shown

    def put(self, text: str, code: str = "") -> None:
        """Show `text` (cell's thread); `code` is the end of it that is there to be copied."""
        from gpushare_widgets.cell_line import bundle  # noqa: PLC0415 - only where a cell declares something

        with self._lock:
            if self._place is not None and text != self._said:
                self._place.put(bundle(text, code=code))
                self._said = text

    def end(self, text: str | None, code: str = "") -> None:
        """Replace the line by what stays of it, once. None: there is nothing to say, unless something is to be replaced."""
        if self._over.is_set():
            return
        self._over.set()
        place, watch = self._place, self._watch
        if self._pid != os.getpid():
            return  # a forked child; the lock may be its parent's
        if place is None:
            if text is not None:
                self._output.show(text)
            return
        if text is None and place.shown and watch is not None:
            text = cell_texts.ran_text(watch.ran, watch.steps)
        if text is not None:
            self.put(text, code)
        with self._lock:
            self._place = None
            place.close()

    def _follow(self) -> None:
        while not self._over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        from gpushare_widgets.cell_line import bundle  # noqa: PLC0415

        watch = self._watch
        text = "" if watch is None else watch.text()
        with self._lock:
            place = self._place
            if watch is None or place is None or self._over.is_set() or text == self._said:
                return
            place.change(bundle(text, part=watch.part))
            self._said = text


class _Waiting(WaitingLine):
    """The waiting of a cell that has a row."""

    def __init__(self, session: Session, output: Output, why: Text, row: Row) -> None:
        super().__init__(session, output, why)
        self._row = row
        self._began = time.monotonic()

    def wait(self, wait: Wait | None) -> float | None:
        """Show why it waits, and for how long it has."""
        due = super().wait(wait)
        return AGAIN if due is None else due

    def done(self, waited: float | None) -> None:
        """Replace the line, also where an interrupt came while it was being shown."""
        if waited is not None:
            super().done(waited)
        elif self._row.shown:
            self._row.put(cell_texts.gave_up_text(time.monotonic() - self._began))

    def _text(self, wait: Wait | None) -> str:
        return cell_texts.waited_so_far_text(super()._text(wait), time.monotonic() - self._began)

    def _update(self, text: str) -> None:
        self._row.put(text)
