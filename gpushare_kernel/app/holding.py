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
from gpushare_kernel.kernel_session import KernelSession
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import Announce, Slowed


class Holding:
    """A command's place at the broker.

    Parameters
    ----------
    session
        The command's session, opened by this process and bound to the command.
    """

    def __init__(self, session: KernelSession) -> None:
        self._session = _Outside(session)
        self._session.listen(_say)
        self._job: Job | None = None

    def attach(self) -> None:
        """Be there, from here on: what the broker has to say to the command comes to us."""
        self._session.wait_attached()

    def take(
        self,
        size: str,
        *,
        name: str,
        weight: float,
        wait: float | None,
        time: float | None = None,
        code: str = "",
    ) -> None:
        """Wait until the command may have `size`; nothing is taken where it is empty.

        `time` is how many seconds the command takes with the device to itself, `code` the hash of its line.

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
            session,
            size=None,
            persistent=size,
            ephemeral=None,
            name=name,
            weight=weight,
            wait=wait,
            time=time,
            code=code,
        )
        line = display.Line(session)
        waited: float | None = None
        try:
            self._job = session.submit(submit, wait=wait, on_wait=line.wait, say=line.say)
            waited = self._job.waited
        finally:
            line.done(waited)

    def end(self, *, failed: bool = False) -> None:
        """Give it back, and leave. Where the command is gone the broker knows it by then: no answer is waited for."""
        if self._job is not None:
            self._job.leave(failed=failed)
        self._session.close()


class _Outside(Session):
    """A client that holds nothing itself: what the command holds is for the broker to measure.

    So what the broker asks it to give back (`Trim`, a `Budget`) is passed over here. A command that opens a lane
    attaches by itself, and from then on it is the one who is asked; any other keeps what it has until it ends.
    """

    inside = False
    work = "command"

    def __init__(self, session: KernelSession) -> None:
        super().__init__(session.token, session.places.socket)
        self._memory = _Unmeasured(0, 0)


class _Unmeasured(HostMemory):
    """Looks at no process."""

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
