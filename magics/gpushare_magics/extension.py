"""The extension in one shell: what is registered, and what `%%gpulane` does."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from gpushare_kernel.client import api, display, roots
from gpushare_kernel.client.shown import Announce, Slowed
from gpushare_kernel.core.errors import GpushareError, UserError
from gpushare_kernel.wire import cell_texts, texts
from gpushare_magics import own_line, records, transform
from gpushare_magics.cells import Cells
from gpushare_magics.entries import Entries
from gpushare_magics.lines import Output, UpdatingLine
from gpushare_magics.node import PlainNode
from gpushare_magics.row import Row

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gpushare_kernel.client.copying import Copier
    from gpushare_kernel.client.lanes import Lane
    from gpushare_kernel.client.session import Session
    from gpushare_kernel.client.shown import Submit
    from gpushare_kernel.client.warm.warm import Warm
    from gpushare_magics.args import Declaration
    from gpushare_magics.notify import Notifier
    from gpushare_magics.pack_cell import PackCell
    from gpushare_magics.pack_options import Packing

_active: Extension | None = None
_STEPS = re.compile(r"\bcurrent_lane\b|\bgpushare\w*\.step\(")
"""A cell that asks for its lane, or steps, meets boundaries."""
_SHOWN = 40
"""Characters of a cell's first line that are shown in a table."""
_ATTACH = 0.3
"""Seconds in which a kernel that has just started has a broker, or none for now."""


class Extension:
    """Everything of ours in one shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.output = Output(shell)
        self.session: Session | None = api.get_session()
        # Only the kernel itself speaks of its cells: an IPython started in it has lanes, no cells.
        is_kernel = self.session is not None and roots.claim()
        self.cells = Cells(lambda: self.session if is_kernel else None, self.ended)
        self.node = PlainNode(self.cells)
        self.keep_frames = False
        self._failed: set[int] = set()
        #: Threads whose cell has just ended by an error.
        self._fell: set[int] = set()
        #: The first line of each cell that declared something here, by its hash.
        self.first_lines: dict[str, str] = {}
        self._slowed = UpdatingLine(self.output)
        why = os.environ.pop(
            "GPUSHARE_BEFORE", ""
        )  # `kernel_session.BEFORE`, which a kernel need not load
        #: What the next cell begins with, by what it is about.
        self._before = {"restart": why} if why else {}
        #: What the broker said last, since the last cell began.
        self._said = ""
        self.notifier: Notifier | None = None
        kernel = getattr(shell, "kernel", None)
        self.entries = Entries(kernel, self.session) if is_kernel and self.session else None

    def notify(self, words: str) -> None:
        """Tell of cells that waited, or no longer."""
        from gpushare_magics.notify import Notifier  # noqa: PLC0415 - only where somebody asks for it

        if self.output.in_console and words != "off":
            raise UserError(cell_texts.NOBODY_TO_NOTIFY)
        if self.notifier is None:
            self.notifier = Notifier(self.cells, lambda: threading.get_ident() in self._fell)
            self.output.on_waited = self.notifier.waited
        told = self.notifier.switch(words)
        if told is not None:
            self.output.show(told)

    def enter(self, arguments: str) -> None:
        """Enter a lane for the rest of the running cell."""
        own_line.show(self.shell.user_global_ns, arguments)
        with plain_interrupt():
            self.entered(arguments)

    def entered(self, arguments: str) -> Entered:
        """Parse, queue and enter. What is not left before its cell ends is left then."""
        from gpushare_magics.args import parse  # noqa: PLC0415

        declaration = parse(arguments)
        if declaration.realtime is not None:
            self._check_realtime(declaration)
        packs = None
        if declaration.pack is not None:
            self._submission(
                declaration
            )  # what is wrong with the line is said before anything is packed
            packs = self._packed(declaration.pack, declaration)
            declaration = packs.declared(declaration)
        cooperative = self._meets_boundaries()
        row = Row(self.output)
        lane = api.make_lane(
            size=declaration.size,
            persistent=declaration.persistent,
            ephemeral=declaration.ephemeral,
            name=declaration.name,
            # Among deadlines a weight is who goes first, not a share.
            weight=1.0 if declaration.realtime else declaration.weight,
            wait=declaration.wait,
            time=declaration.time,
            cooperative=cooperative,
            code=self._code(),
            show=row.waiting,
        )
        if self.session is None and not self.output.quiet:
            self.output.show(texts.NO_BROKER)
        entered = Entered(declaration, lane, row)
        self.cells.at_end(lambda: self.leave(entered))  # first: an interrupt may come at any moment
        try:
            lane.__enter__()
            row.run(lane, self.session)
            if declaration.realtime is not None:
                self._enter_realtime(declaration)
            if packs is not None:
                packs.open()
        except BaseException:
            try:
                lane.close(failed=True)
            finally:
                row.end(None)
            raise
        return entered

    def _check_realtime(self, declaration: Declaration) -> None:
        from gpushare_magics import realtime_cell  # noqa: PLC0415 - hardly ever

        realtime_cell.check(declaration, self.shell.user_ns, transform.body_of(self.cells.source()))

    def _enter_realtime(self, declaration: Declaration) -> None:
        """Give the cell its deadline; it ends before the lane does."""
        from gpushare_magics.realtime_cell import RealTimeCell  # noqa: PLC0415 - hardly ever

        cell = RealTimeCell(declaration, self.shell, self.output)
        self.cells.at_end(lambda: cell.leave(failed=threading.get_ident() in self._fell))
        cell.enter()

    def _packed(self, packing: Packing, declaration: Declaration) -> PackCell:
        """Pack what the line names, in a lane of its own: what that takes is over before the cell declares what it keeps."""
        from gpushare_kernel.client.fingerprint import of_cell  # noqa: PLC0415 - hardly ever
        from gpushare_magics.pack_cell import PackCell  # noqa: PLC0415

        cell = PackCell(packing, self.shell, self.output)
        row = Row(self.output)
        lane = api.make_lane(
            ephemeral=cell.ephemeral, name=cell.name, weight=declaration.weight, wait=declaration.wait, code=of_cell(cell.code), show=row.waiting
        )  # fmt: skip
        failed = True
        try:
            lane.__enter__()
            row.run(lane, self.session)
            cell.pack()
            failed = False
        finally:
            try:
                lane.close(failed=failed)
            finally:
                row.end(None)
        return cell

    def _code(self) -> str:
        """Return the hash of the running cell, and remember its first line: the broker knows the hash only."""
        from gpushare_kernel.client.fingerprint import of_cell  # noqa: PLC0415

        body = transform.body_of(self.cells.source())
        if not body.strip():
            return ""
        python = body
        with contextlib.suppress(Exception):  # somebody's transformer: the text as it is will do
            python = self.shell.transform_cell(body)  # type: ignore[no-untyped-call]
        code = of_cell(python)
        lines = (line.strip() for line in body.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        self.first_lines[code] = first[:_SHOWN]
        return code

    def _meets_boundaries(self) -> bool:
        """Say whether the running cell meets boundaries: it asks for its lane, or a framework does it unasked."""
        source, session = self.cells.source(), self.session
        if session is not None and session.attached is None:
            with contextlib.suppress(GpushareError):
                session.wait_attached(_ATTACH)
        gpu = None if session is None else session.gpu
        if gpu is not None:
            gpu.cell_event()
            if gpu.adapters.meets_boundaries(source):
                return True
        return bool(_STEPS.search(source))

    def ended(self, error: BaseException | None) -> Callable[[], None]:
        """A cell is over: give back what its error kept. Returns what says so, as the last line of the output."""
        session, thread = self.session, threading.get_ident()
        line = None
        if error is not None:
            self._fell.add(thread)
        if error is not None and session is not None and session.gpu is not None:
            from gpushare_kernel.client.aftermath import recover  # noqa: PLC0415 - hardly ever

            # A line that cannot be said must not end what comes after it: the lanes are still to be left.
            with contextlib.suppress(Exception):
                line = recover(session, error, keep_frames=self.keep_frames)
        if line is None:
            return lambda: self._fell.discard(thread)
        text = line
        self._failed.add(thread)  # what it used is no advice for next time

        def say() -> None:
            self._fell.discard(thread)
            self._failed.discard(thread)
            if not self.output.quiet:
                self.output.show(text)

        return say

    def leave(self, entered: Entered, *, failed: bool = False) -> None:
        """Leave the lane, and say what it took and what to declare next time."""
        from gpushare_magics.args import next_line  # noqa: PLC0415

        lane, text, line = entered.lane, None, ""
        try:
            lane.close(failed=failed or threading.get_ident() in self._fell)
            told = self.output.quiet or threading.get_ident() in self._failed
            if lane.report is not None and not told:
                line = next_line(entered.declaration, lane.report)
                text = cell_texts.used_text(lane.report, line)
        finally:
            entered.row.end(text, line)

    def dry_run(self, arguments: str) -> None:
        """Say what the cell would do now."""
        from gpushare_magics.args import parse  # noqa: PLC0415

        with plain_interrupt():
            submit = self._submission(parse(arguments), dry_run=True, code=self._code())
            if self.session is None:
                self.output.show(texts.NO_BROKER)
                return
            self.output.show(texts.dry_run_text(self.session.dry_run(submit), self.session.noun))

    def _submission(
        self, declared: Declaration, *, dry_run: bool = False, code: str = ""
    ) -> Submit:
        """Return a line as the broker would be told it.

        Raises
        ------
        BadSize, BadTime, BadDeclaration
            Where it makes no sense.
        """
        return api.submission(
            self.session,
            size=declared.size,
            persistent=declared.persistent,
            ephemeral=declared.ephemeral,
            name=declared.name,
            weight=declared.weight,
            wait=declared.wait,
            time=declared.time,
            dry_run=dry_run,
            code=code,
        )

    def hear(self, notice: Slowed | Announce) -> None:
        """Show what the broker says unasked (reader thread)."""
        if self.output.quiet:
            return
        if isinstance(notice, Announce):
            if notice.text == self._said:
                return  # said again before the next cell: once is enough
            self._said = notice.text
            if notice.keep and not self.cells.running:
                self._before[notice.about or notice.text] = notice.text
            else:
                self.output.show(notice.text)
        elif self.cells.running:
            self._slowed.put(texts.slowed_text(notice))

    def when_idle(self, call: Callable[[], None]) -> bool:
        """Have `call` run on the kernel's main thread once no cell is in its way (any thread); False where there is no such loop."""
        loop = getattr(getattr(self.shell, "kernel", None), "io_loop", None)
        if loop is not None:
            loop.add_callback(call)
        return loop is not None

    def mover(self) -> tuple[Warm, Copier] | None:
        """Return what sets this kernel's tensors aside, and what copies them; None where nothing can."""
        from gpushare_magics.warm import mover  # noqa: PLC0415 - only where somebody wants that

        return mover(self)

    def new_slowed_line(self, _info: object) -> None:
        """Each cell has a line of its own about being slowed; the first one says why the kernel before this one ended."""
        before, self._before, self._said = "\n".join(self._before.values()), {}, ""
        if before:
            self.output.show(before)
        if not self.cells.running:
            self._slowed = UpdatingLine(self.output)


class Entered(NamedTuple):
    """A declared cell that runs."""

    declaration: Declaration
    lane: Lane
    row: Row


class plain_interrupt:  # noqa: N801 - reads as a statement
    """Let an interrupt in the queue be shown as one line without our frames."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, display.Interrupted):
            display.one_line(error, texts.LEFT_QUEUE)


def active() -> Extension:
    """Return the loaded extension; cells rewritten before an unload still find it."""
    if _active is None:
        msg = "gpushare's magics are not loaded here. Run: %load_ext gpushare_magics"
        raise UserError(msg)
    return _active


def load(shell: InteractiveShell) -> None:
    """Register everything."""
    global _active  # noqa: PLW0603 - one shell per process
    from gpushare_magics.completion import complete  # noqa: PLC0415
    from gpushare_magics.magics import GpuShareMagics  # noqa: PLC0415

    extension = Extension(shell)
    shell.input_transformers_cleanup.append(transform.rewrite)
    shell.register_magics(GpuShareMagics(shell, extension))
    events = shell.events
    events.register("pre_run_cell", extension.new_slowed_line)
    events.register("pre_run_cell", extension.cells.pre_run_cell)
    events.register("post_run_cell", extension.cells.post_run_cell)
    events.register("post_execute", extension.cells.post_execute)
    shell.ast_transformers.append(extension.node)
    if shell.Completer is not None:
        shell.Completer.custom_matchers.append(complete)
    display.use(extension.output.waiting)
    display.use_steps(lambda: UpdatingLine(extension.output).put)
    records.register(shell)
    if extension.session is not None:
        extension.session.listen(extension.hear)
        extension.session.when_idle = extension.when_idle
    if extension.entries is not None:
        extension.entries.watch()
    if extension.session is not None:
        extension.session.mover = extension.mover
    _active = extension


def unload(shell: InteractiveShell) -> None:
    """Undo `load`. What is shared stays shared."""
    global _active
    from gpushare_magics.completion import complete  # noqa: PLC0415

    if _active is None:
        return
    extension, _active = _active, None
    shell.input_transformers_cleanup.remove(transform.rewrite)
    shell.ast_transformers.remove(extension.node)
    events = shell.events
    events.unregister("pre_run_cell", extension.new_slowed_line)
    events.unregister("pre_run_cell", extension.cells.pre_run_cell)
    events.unregister("post_run_cell", extension.cells.post_run_cell)
    events.unregister("post_execute", extension.cells.post_execute)
    if shell.Completer is not None:
        shell.Completer.custom_matchers.remove(complete)
    shell.magics_manager.magics["cell"].pop("gpulane", None)
    shell.magics_manager.magics["line"].pop("gpushare", None)
    if extension.notifier is not None:
        extension.notifier.close()
    if extension.entries is not None:
        extension.entries.leave()
    display.use(None)
    display.use_steps(None)
    records.unregister(shell)
    if extension.session is not None:
        extension.session.unlisten(extension.hear)
        extension.session.when_idle = extension.session.mover = None
