"""Lines in the notebook: outputs with a display id, so that one line changes instead of many piling up."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

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
        #: Called with the seconds that something waited, on the thread that waited.
        self.on_waited: Callable[[float], None] | None = None

    def show(self, text: str) -> None:
        """Show a line (or a table) that stays."""
        self.publish(text, None, update=False)

    def table(self, text: str, html: str) -> None:
        """Show a table that stays: as HTML, and as text where nothing else is shown."""
        self._shell.display_pub.publish({"text/plain": text, "text/html": html}, {})

    def publish(self, text: str, display_id: str | None, *, update: bool) -> None:
        """Show text, or put it where the text with this id is."""
        transient = {} if display_id is None else {"display_id": display_id}
        publisher = self._shell.display_pub
        publisher.publish({"text/plain": text}, {}, transient=transient, update=update)

    def publish_bundle(self, bundle: dict[str, str]) -> None:
        """Show something that front ends may choose the form of."""
        self._shell.display_pub.publish(bundle, {})

    def place(self) -> Place | None:
        """Return a place in this cell's output that changes from whatever thread; None where that is not to be had.

        Not in a terminal or console, and not where outputs are captured (`%%capture`).
        """
        if self.quiet or not self.changes:
            return None
        return None if self.in_console else Place(self._shell.display_pub)

    @property
    def in_console(self) -> bool:
        """Say whether what is shown goes to a terminal, or to a console: neither shows changes, nor widgets.

        A console that is a front end of a kernel cannot be asked. But it names no cell, as notebooks do, and unlike a
        program that runs one (nbclient) it has somebody who may be asked for input.
        """
        shell = cast("Any", self._shell)
        if not hasattr(shell, "kernel"):
            return True
        parent = shell.get_parent()
        in_cell = "cellId" in parent.get("metadata", {})
        return not in_cell and bool(parent.get("content", {}).get("allow_stdin", True))

    @property
    def changes(self) -> bool:
        """Say whether what is shown may change: not in a terminal, and not while outputs are captured."""
        return hasattr(self._shell.display_pub, "pub_socket")

    def waiting(self, session: Session, why: Text) -> WaitingLine:
        """Return the line of a job that is about to queue."""
        return WaitingLine(session, self, why)


class WaitingLine(Line):
    """The updating line of one waiting job."""

    def __init__(self, session: Session, output: Output, why: Text) -> None:
        super().__init__(session, why)
        self._output = output
        self._line = UpdatingLine(output)

    def done(self, waited: float | None) -> None:
        """Replace the line, and tell whoever asked to be told of a wait."""
        super().done(waited)
        if waited is not None and self._output.on_waited is not None:
            self._output.on_waited(waited)

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
        """Show `text` here; empty text leaves an empty line, where a line can change."""
        if self._output.quiet or not (text or self._output.changes):
            return
        update = self._id is not None
        if self._id is None:
            self._id = _new_id()
        self._output.publish(text, self._id, update=update)


class Place:
    """One output of the running cell, that changes. Shown first, and last, on the cell's own thread."""

    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._parent = publisher.parent_header
        self._id = _new_id()
        self._cleared = False
        self.shown = False

    def put(self, bundle: dict[str, str]) -> None:
        """Show this here; only on the cell's own thread, in order with what the cell prints.

        Where the cell has cleared its output meanwhile it is shown anew.
        """
        before, self.shown = self.shown, True  # first: an interrupt may come at any moment
        if before:
            self._publish(bundle, update=True)
        else:
            self._publisher.register_hook(self._hear)
        if self._cleared or not before:
            self._publish(bundle, update=False)

    def change(self, bundle: dict[str, str]) -> None:
        """Show this here instead, from another thread.

        The message is sent as the cell's own: a thread's would be taken for one of the latest cell
        (ipykernel 7), or of whatever a subshell runs (6).
        """
        if self._cleared:
            return  # what is to be seen next is the cell's
        publisher = self._publisher
        content = {"data": bundle, "metadata": {}, "transient": {"display_id": self._id}}
        publisher.session.send(
            publisher.pub_socket,
            "update_display_data",
            content,
            parent=self._parent,
            ident=publisher.topic,
        )

    def close(self) -> None:
        """Listen to the cell's outputs no longer."""
        if self.shown:
            self._publisher.unregister_hook(self._hear)

    def _publish(self, bundle: dict[str, str], *, update: bool) -> None:
        transient = {"display_id": self._id}
        self._publisher.publish(bundle, {}, transient=transient, update=update)

    def _hear(self, message: dict[str, Any]) -> dict[str, Any]:
        """Called by IPython with every display of the cell."""
        if message["header"]["msg_type"] == "clear_output":
            self._cleared = True
        return message


def _new_id() -> str:
    return f"gpushare-{os.getpid()}-{next(_numbers)}"
