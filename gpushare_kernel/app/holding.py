"""The memory of a command, held for it from outside: by whoever started it, for as long as it lives.

The command's starter attaches to the session it opened. It is not part of the command's tree, so no pause
reaches it, and it declares the size as what the session *keeps*: a lane that the command takes inside then
counts against it instead of waiting behind it.
"""

from __future__ import annotations

from gpushare_kernel.app.base import complain
from gpushare_kernel.client import display
from gpushare_kernel.client.api import submission
from gpushare_kernel.client.hostmem import HostMemory
from gpushare_kernel.client.job import Job
from gpushare_kernel.client.session import Session
from gpushare_kernel.core.errors import WaitEnded
from gpushare_kernel.core.values import Wait
from gpushare_kernel.kernel_session import KernelSession
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import Announce, Slowed


class Holding:
    """A command's place at the broker.

    Parameters
    ----------
    session
        The command's session, opened by this process and bound to the command.
    pid
        The command's process.
    """

    def __init__(self, session: KernelSession, pid: int) -> None:
        self._session = _Outside(session.token, session, pid)
        self._session.listen(_say)
        self._latest: Wait | None = None
        self._job: Job | None = None

    def attach(self) -> None:
        """Be there, from here on: what the broker has to say to the command comes to us."""
        self._session.wait_attached()

    def take(self, size: str, *, name: str, weight: float, wait: float | None) -> None:
        """Wait until the command may have `size`; nothing is taken where it is empty.

        Raises
        ------
        WaitEnded
            After `wait` seconds.
        KeyboardInterrupt
            The place is given up.
        GpushareError
            Where it can never be, or the broker is gone.
        """
        if not size:
            return
        session = self._session
        submit = submission(
            session, size=None, persistent=size, ephemeral=None, name=name, weight=weight, wait=wait
        )
        line = display.Line(session)
        waited: float | None = None
        try:
            self._job = session.submit(
                submit, wait=wait, on_wait=lambda why: self._wait(line, why), say=line.say
            )
            waited = self._job.waited
        except WaitEnded:
            said = texts.wait_ended_text(wait or 0.0, self._latest, session.noun, "command")
            raise WaitEnded(said) from None
        finally:
            line.done(waited)

    def end(self) -> None:
        """Give it back, and leave."""
        if self._job is not None:
            self._job.end()
        self._session.close()

    def _wait(self, line: display.Line, why: Wait | None) -> float | None:
        self._latest = why or self._latest
        return line.wait(why)


class _Outside(Session):
    """A client that holds nothing itself: what the command holds is for the broker to measure.

    So what the broker asks it to give back (`Trim`, a `Budget`) is passed over here. A command that opens a lane
    attaches by itself, and from then on it is the one who is asked; any other keeps what it has until it ends.
    """

    inside = False

    def __init__(self, token: str, session: KernelSession, pid: int) -> None:
        super().__init__(token, session.places.socket)
        self._memory = _Unmeasured(pid, 0)


class _Unmeasured(HostMemory):
    def now(self) -> int:
        return 0

    def start_peak(self) -> None:
        """Nothing to remember."""

    def peak(self) -> int:
        return 0

    def trim(self) -> None:
        """Nothing to give back."""


def _say(notice: Slowed | Announce) -> None:
    if isinstance(notice, Announce):
        complain(texts.for_command(notice.text))
