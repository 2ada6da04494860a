"""Keys of a terminal as they are pressed, without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from contextlib import ExitStack
from types import TracebackType
from typing import Self

_NAMED = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[5~": "page up", b"\x1b[6~": "page down", b"k": "up", b"j": "down", b" ": "page down", b"q": "quit", b"Q": "quit"}  # fmt: skip


class Keys:
    """The terminal's keys while this is open; where standard input is none, nothing is ever pressed."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        if sys.stdin is not None and sys.stdin.isatty():
            self._fd = sys.stdin.fileno()
            before = termios.tcgetattr(self._fd)
            self._undo.callback(termios.tcsetattr, self._fd, termios.TCSADRAIN, before)
            tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def pressed(self, seconds: float) -> str | None:
        """Return the key that is pressed within `seconds`; empty where it means nothing here, None where none is."""
        ready, _, _ = select.select([] if self._fd is None else [self._fd], [], [], seconds)
        if not ready or self._fd is None:
            return None
        read = os.read(self._fd, 16)
        return _NAMED.get(read, "") if read else "quit"  # nothing to read: the terminal is gone
