"""The first use of a GPU in a cell that declares nothing: it is held until there is room for it.

Held is only the thread that runs the cell. Another thread can neither show why it waits nor be
interrupted, and the cell may wait for it: it goes on, and the broker sees its context in the driver.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from gpushare_kernel.client import display
from gpushare_kernel.client.lanes import current_lane, new_job_id
from gpushare_kernel.core.errors import GpushareError, UserError
from gpushare_kernel.wire import texts
from gpushare_kernel.wire.messages import Submit

if TYPE_CHECKING:
    from gpushare_kernel.client.job import Job
    from gpushare_kernel.client.session import Session


class PlainUse:
    """The job of a plain cell that uses the device for the first time; it ends with the cell."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.forget()

    def forget(self) -> None:
        """Begin anew: in a forked child the job is the parent's."""
        self._asking = threading.Lock()
        self._job: Job | None = None
        self._cell = 0

    def hold(self) -> None:
        """Return once the broker has admitted the cell. Does nothing where nobody is to be asked.

        Raises
        ------
        UserError
            Where the broker refuses, with the numbers: the cell ends here.
        KeyboardInterrupt
            Where the user leaves the queue; shown as one line.
        """
        session = self._session
        cell = session.cell_here()
        # Inside a declared lane the room is ours already; without a broker nobody can be asked.
        if cell is None or not session.up or current_lane() is not None:
            return
        with self._asking:
            if self._job is None:
                self._job, self._cell = self._ask(), cell

    def _ask(self) -> Job | None:
        from gpushare_kernel.client.api import session_name  # noqa: PLC0415 - it imports us

        session = self._session
        shown = display.default(session, texts.first_use_text)
        waited: float | None = None
        try:
            submit = Submit(job=new_job_id(), name=session_name(), plain=True)
            job = session.submit(submit, on_wait=shown.wait, say=shown.say)
        except KeyboardInterrupt as interrupt:
            raise display.one_line(interrupt, texts.LEFT_FIRST_USE) from None
        except UserError:
            raise
        except GpushareError as problem:  # ours to mend: the cell runs, as it would without us
            shown.say(f"{problem} {texts.RUNS_UNSHARED}")
            return None
        else:
            waited = job.waited
            return job
        finally:
            shown.done(waited)

    def cell_ended(self, cell: int) -> None:
        """The cell is over, and its job with it."""
        job = self._job
        if job is not None and self._cell == cell:
            self._job = None
            job.leave()
