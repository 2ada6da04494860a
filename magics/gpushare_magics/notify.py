"""`%gpushare notify`: who waited for long, and looks elsewhere, is told when the cell starts and when it ends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpushare_kernel.client import api
from gpushare_kernel.core.errors import UserError
from gpushare_kernel.core.sizes import parse_time
from gpushare_kernel.wire import cell_texts, texts

if TYPE_CHECKING:
    from gpushare_magics.cells import Cells

AFTER = 30.0
"""Seconds that a cell waits before it is worth a notification."""
_HOW = "say %gpushare notify on, %gpushare notify on --after 30s, or %gpushare notify off."
_NO_WIDGETS = "notifications need anywidget, which is not installed for this kernel. Install it: pip install anywidget, and restart the kernel."
_MISSING = ("anywidget", "ipywidgets")


class Notifier:
    """Tells the front ends of this kernel, while it is switched on.

    Parameters
    ----------
    cells
        The cells of this kernel.
    fell
        Says whether this thread's cell has just ended by an error.
    """

    def __init__(self, cells: Cells, fell: Callable[[], bool]) -> None:
        self._cells = cells
        self._fell = fell
        self._after = AFTER
        self._view: Any = None
        #: Threads whose cell is to be told of at its end.
        self._awaited: set[int] = set()

    def switch(self, words: str) -> str | None:
        """Do what the magic says; returns what there is to say."""
        match words.split():
            case ["on"]:
                self._on(AFTER)
            case ["on", "--after", after]:
                self._on(parse_time(after))
            case ["off"]:
                self.close()
                return cell_texts.NOTIFY_OFF
            case _:
                raise UserError(_HOW)
        return None

    def close(self) -> None:
        """Tell nobody any more, and take the row away."""
        view, self._view = self._view, None
        if view is not None:
            view.close()

    def waited(self, seconds: float) -> None:
        """Something in a cell has waited so long and goes on (the cell's thread)."""
        thread = threading.get_ident()
        if self._view is None or seconds <= self._after:
            return
        self._tell(cell_texts.started_text(seconds))
        if thread not in self._awaited:
            self._awaited.add(thread)
            began = time.monotonic()
            self._cells.at_end(lambda: self._ended(began))

    def _ended(self, began: float) -> None:
        self._awaited.discard(threading.get_ident())
        self._tell(cell_texts.ended_text(time.monotonic() - began, failed=self._fell()))

    def _on(self, after: float) -> None:
        from IPython.display import display  # noqa: PLC0415

        try:
            from gpushare_widgets.notify import Notify  # noqa: PLC0415 - its packages are imported here only
        except ModuleNotFoundError as problem:
            if problem.name not in _MISSING:
                raise
            raise UserError(_NO_WIDGETS) from None
        self.close()
        self._after, self._view = after, Notify(after=texts.format_duration(after))
        display(self._view)  # type: ignore[no-untyped-call]

    def _tell(self, text: str) -> None:
        # The front end may have closed it; a cell does not end for a notification.
        with contextlib.suppress(Exception):
            self._view.tell(text, api.session_name())
