"""`jupyter gpushare top`: the live view in a terminal, until q or Ctrl+C."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, Protocol

from gpushare_widgets import plain
from gpushare_widgets.scene import Scene, scene
from rich.console import Console
from rich.live import Live
from rich.text import Text
from traitlets import Float

from gpushare_kernel.app.base import Command, console, say
from gpushare_kernel.app.keys import Keys
from gpushare_kernel.app.top_view import Window, view
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.errors import BadDeclaration, BrokerUnavailable
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire.snapshot import Snapshot

_SHORTEST, _LONGEST = 0.1, 3600.0
_HELP = "q ends it, ↑ ↓ move."
AWAY = "The gpushare broker is away: this is how it was. It shows again when the broker is back. "
"""What stands below the last scene then."""


class TopApp(Command):
    """Shows what goes on while it happens."""

    name = "jupyter-gpushare-top"
    description = (
        "Who holds which memory, who ran when, and who waits why, again and again; once where the output is no terminal. "
        "Starts no broker; exit status 3 where none runs."
    )
    interval = Float(1.0, config=True, help="Seconds between two looks (1).")
    aliases = {  # noqa: RUF012  traitlets reads it from the class
        **Command.aliases,
        "interval": "TopApp.interval",
    }

    def start(self) -> None:
        """Look once, and again until somebody ends it."""
        if not _SHORTEST <= self.interval <= _LONGEST:
            msg = f"--interval is a number of seconds from {_SHORTEST} to {_LONGEST:.0f}, and {self.interval:g} is not."
            raise BadDeclaration(msg)
        out = console()
        with Looker() as looker:
            first = looker.look()
            if not out.file.isatty() or out.is_dumb_terminal:
                say(plain.text(first))
                return
            with contextlib.suppress(KeyboardInterrupt), _ended_by_signals(), Keys() as keys:
                watch(looker.look, keys, out, self.interval, first)


class Looker:
    """Asks the broker, on a line that is made anew where it broke."""

    def __init__(self) -> None:
        self._line: Line | None = None

    def look(self) -> Scene:
        """Return what goes on now; `BrokerUnavailable` where nobody answers."""
        return scene(self._ask(), now=time.time())

    def _ask(self) -> Snapshot:
        try:
            if self._line is None:
                self._line = Line(places())
            return self._line.snapshot()
        except (BrokerUnavailable, OSError):
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def __enter__(self) -> Looker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pressed(Protocol):
    """Whoever tells which key was pressed."""

    def pressed(self, seconds: float) -> str | None:
        """Return the key that is pressed within `seconds`, or None."""


def watch(look: Callable[[], Scene], keys: Pressed, out: Console, interval: float, first: Scene) -> None:  # fmt: skip
    """Show scenes until `q`.

    Parameters
    ----------
    look
        Returns what goes on now.
    keys
        What is pressed meanwhile.
    out
        The terminal.
    interval
        Seconds between two looks.
    first
        What is shown at once.
    """
    shown, away = first, False
    window = Window(view(shown, out.width), 0, Text())
    with Live(window, console=out, screen=True, auto_refresh=False, vertical_overflow="crop") as live:  # fmt: skip
        due = time.monotonic() + interval
        while True:
            bottom = f"{AWAY if away else ''}{_HELP}"
            style = "yellow" if away else "dim"
            window = Window(view(shown, out.width), window.top, Text(bottom, style=style))
            live.update(window, refresh=True)
            key = keys.pressed(max(0.0, due - time.monotonic()))
            if key == "quit":
                return
            if key is not None:
                window.top += _steps(key, out.height)
                continue
            due = time.monotonic() + interval
            try:
                shown, away = look(), False
            except (BrokerUnavailable, OSError):
                away = True


def _steps(key: str, height: int) -> int:
    """Return how many lines a key moves."""
    page = max(1, height - 2)
    return {"up": -1, "down": 1, "page up": -page, "page down": page}.get(key, 0)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End like Ctrl+C where the terminal goes or somebody asks for it: the screen is to be left as it was."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
