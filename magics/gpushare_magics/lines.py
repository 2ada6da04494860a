"""Lines in the notebook: text/plain with a display id, so that one line changes instead of many piling up."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from gpushare_kernel.client.display import Line, Text

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gpushare_kernel.client.session import Session

_numbers = itertools.count(1)


class Output:
    """Where lines go. `quiet` is `%gpushare off`."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self.quiet = False

    def show(self, text: str) -> None:
        """Show a line (or a table) that stays."""
        self.publish(text, None, update=False)

    def publish(self, text: str, display_id: str | None, *, update: bool) -> None:
        """Show text, or put it where the text with this id is."""
        transient = {} if display_id is None else {"display_id": display_id}
        publisher = self._shell.display_pub
        publisher.publish({"text/plain": text}, {}, transient=transient, update=update)

    def publish_bundle(self, bundle: dict[str, str]) -> None:
        """Show something that front ends may choose the form of."""
        self._shell.display_pub.publish(bundle, {})

    def waiting(self, session: Session, why: Text) -> WaitingLine:
        """Return the line of a job that is about to queue."""
        return WaitingLine(session, self, why)


class WaitingLine(Line):
    """The updating line of one waiting job."""

    def __init__(self, session: Session, output: Output, why: Text) -> None:
        super().__init__(session, why)
        self._output = output
        self._line = UpdatingLine(output)

    def _update(self, text: str) -> None:
        self._line.put(text)

    def _write(self, text: str) -> None:
        if not self._output.quiet:
            self._output.show(text)


class UpdatingLine:
    """A line that is shown when it is first put, and changed from then on."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._id: str | None = None

    def put(self, text: str) -> None:
        """Show `text` here; empty text leaves an empty line."""
        if self._output.quiet:
            return
        update = self._id is not None
        if self._id is None:
            self._id = f"gpushare-{os.getpid()}-{next(_numbers)}"
        self._output.publish(text, self._id, update=update)
