"""How a waiting job is shown. The front end's package sets how; without one, lines go to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.core.values import Wait, WaitReason
from gpushare_kernel.wire import texts

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session

_Error = TypeVar("_Error", bound=BaseException)

INTERVAL = 1.0
"""Seconds between two updates of a waiting line."""


class Interrupted(KeyboardInterrupt):
    """An interrupt that says itself what it ended, in one line."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks this before it prints a traceback."""
        return [f"gpushare: {self}"]


class Shown(Protocol):
    """One job's waiting, as the user sees it. Called on the waiting thread."""

    def wait(self, wait: Wait | None) -> float | None:
        """Show why it waits (None: the broker is away). Return when to be called again, in seconds."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def done(self, waited: float | None) -> None:
        """The waiting is over: after `waited` seconds, or in vain (None)."""


Text = Callable[[Wait, str], str]
"""Says why a job waits, with the noun of its device's memory."""
Factory = Callable[["Session", Text], Shown]
Steps = Callable[[str], None]
"""Puts a line where the one before was; empty text takes it away."""


class Line:
    """Shows the waiting as one line, at most once a second; subclasses say where it goes."""

    def __init__(self, session: Session, why: Text = texts.wait_text) -> None:
        self._session = session
        self._why = why
        self._shown: str | None = None
        self._at = 0.0
        #: What it was seen to wait for.
        self._reasons: set[WaitReason] = set()

    def wait(self, wait: Wait | None) -> float | None:
        """Show why it waits, unless the line is as fresh as a second."""
        if wait is not None:
            self._reasons.add(wait.reason)
        text = self._text(wait)
        if text == self._shown:
            return None
        now = time.monotonic()
        due = self._at + INTERVAL - now
        if self._shown is not None and due > 0:
            return due
        self._update(text)
        self._shown, self._at = text, now
        return None

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._write(text)

    def done(self, waited: float | None) -> None:
        """Replace the line by how long it took; nothing is said where nothing was shown."""
        if self._shown is None:
            return
        only_maintenance = self._reasons == {WaitReason.MAINTENANCE}
        what = "the end of a maintenance" if only_maintenance else self._session.noun
        self._update("" if waited is None else texts.waited_text(waited, what))
        self._shown = None

    def _text(self, wait: Wait | None) -> str:
        """Return why it waits."""
        return texts.BROKER_SILENT if wait is None else self._why(wait, self._session.noun)

    def _update(self, text: str) -> None:
        """Put `text` where the waiting line is; empty text takes it away."""
        if text:
            self._write(text)

    def _write(self, text: str) -> None:
        """Write a line that stays."""
        sys.stderr.write(f"gpushare: {text}\n")


def default(session: Session, why: Text = texts.wait_text) -> Shown:
    """Return the display in use, for a job that says `why` it waits."""
    return _factory(session, why)


def use(factory: Factory | None) -> None:
    """Show waiting through `factory` from now on; None goes back to lines on stderr."""
    global _factory  # noqa: PLW0603 - one front end per process
    _factory = Line if factory is None else factory


def steps() -> Steps:
    """Return where something that takes a while says how far it is: one line that changes, and goes at the end."""
    return _steps()


def use_steps(made: Callable[[], Steps] | None) -> None:
    """Say so through what `made` returns from now on; None goes back to lines on stderr."""
    global _steps  # noqa: PLW0603 - one front end per process
    _steps = _on_stderr if made is None else made


def _on_stderr() -> Steps:
    return lambda text: _write_line(text) if text else None


def _write_line(text: str) -> None:
    sys.stderr.write(f"gpushare: {text}\n")
    sys.stderr.flush()


def one_line(error: _Error, text: str) -> _Error:
    """Return an error that notebooks show as one line, without a traceback."""
    error.args = (text,)
    error.__dict__["_render_traceback_"] = lambda: [f"gpushare: {text}"]
    return error


def without_our_frames(error: _Error) -> _Error:
    """Return an error to raise again: notebooks show it up to the user's own line, and no further."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None and not isinstance(error, UserError):
        # The frame that raises it again is ours too; it can be cut off only once it is shown.
        error.__dict__["_render_traceback_"] = lambda: _rendered(shell, error)
    return error.with_traceback(None)


def _rendered(shell: Any, error: BaseException) -> object:
    del error.__dict__["_render_traceback_"]
    last, trace = None, error.__traceback__
    while trace is not None:
        if not str(trace.tb_frame.f_globals.get("__name__")).startswith(_OURS):
            last = trace
        trace = trace.tb_next
    if last is not None:
        last.tb_next = None
    return shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)


_OURS = ("gpushare_kernel.", "gpushare_magics")
_factory: Factory = Line
_steps: Callable[[], Steps] = _on_stderr
