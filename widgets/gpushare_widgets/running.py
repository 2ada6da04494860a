"""Whether a cell of this kernel runs now, as IPython tells it: the one place that asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from IPython.core.getipython import get_ipython


class Running:
    """Follows the cells of this process's shell; outside IPython something always runs.

    Cells run in several threads at once (subshells), and inside each other: a thread's is over when its outermost is.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._shell = get_ipython()
        self._depths: dict[int, int] = {}
        if self._shell is not None:
            if _in_cell(self._shell):  # its beginning is over
                self._depths[threading.get_ident()] = 1
            self._shell.events.register("pre_run_cell", self._began)
            self._shell.events.register("post_run_cell", self._ended)

    def __bool__(self) -> bool:
        return self._shell is None or bool(self._depths)

    def close(self) -> None:
        """Follow no longer."""
        if self._shell is not None:
            self._shell.events.unregister("pre_run_cell", self._began)
            self._shell.events.unregister("post_run_cell", self._ended)

    def _began(self, _info: object = None) -> None:
        here = threading.get_ident()
        self._depths[here] = self._depths.get(here, 0) + 1
        self._changed()

    def _ended(self, _result: object = None) -> None:
        here = threading.get_ident()
        left = self._depths.pop(here, 0) - 1
        if left > 0:
            self._depths[here] = left
        self._changed()


def _in_cell(shell: Any) -> bool:
    """Say whether a cell whose end will be told called us; a widget's callback is none, nor is what runs silently.

    A kernel's shell knows what it answers to. IPython's own has no such word: there only cells call.
    """
    if not hasattr(shell, "get_parent"):
        return True
    asked = shell.get_parent()
    silent = asked.get("content", {}).get("silent", False)
    return asked.get("header", {}).get("msg_type") == "execute_request" and not silent
