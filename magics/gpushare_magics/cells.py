"""Cells: which one runs in which thread, which lanes it entered, and how it ended.

`pre_run_cell` and `post_run_cell` also fire for cells run inside cells (`%%capture`), and at the same
time in the threads of subshells: a stack for each thread keeps them apart. Handlers of these events
must not raise: IPython would print it and run the cell anyway. So a plain cell on a GPU begins by a
statement of its own (`gpushare_magics.node`): an interrupt there stops it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from gpushare_magics.transform import arguments_of

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session

Leave = Callable[[], None]
Ended = Callable[[BaseException | None], Leave]
"""Called when a cell is over, with its error; returns what is to be done once its lanes are left."""


@dataclass(slots=True)
class _Cell:
    """One running cell; `number` is set where the broker knows it as a plain one, `awaits` where its node is still to come."""

    info: Any
    number: int | None = None
    awaits: bool = False
    leave: list[Leave] = field(default_factory=list)


class Cells:
    """The running cells of one shell."""

    def __init__(
        self, session: Callable[[], Session | None], ended: Ended = lambda _error: _nothing
    ) -> None:
        self._session = session
        self._ended = ended
        self._stacks: dict[int, list[_Cell]] = {}
        self._numbers = itertools.count(1)
        self._stray: dict[int, list[Leave]] = {}

    @property
    def running(self) -> bool:
        """Say whether any cell runs."""
        return bool(self._stacks)

    def source(self) -> str:
        """Return the text of this thread's innermost cell."""
        stack = self._stacks.get(threading.get_ident())
        return str(stack[-1].info.raw_cell) if stack else ""

    def at_end(self, leave: Leave) -> None:
        """Have `leave` called when this thread's innermost cell ends, however it ends."""
        thread = threading.get_ident()
        stack = self._stacks.get(thread)
        if stack:
            stack[-1].leave.append(leave)
        else:  # a silent execution: no cell event tells of it, only post_execute
            self._stray.setdefault(thread, []).append(leave)

    def pre_run_cell(self, info: Any) -> None:
        """A cell begins."""
        stack = self._stacks.setdefault(threading.get_ident(), [])
        cell = _Cell(info)
        if not stack and arguments_of(info.raw_cell) is None:
            session = self._session()
            cell.awaits = session is not None and session.gpu is not None
            if session is not None and not cell.awaits:
                cell.number = next(self._numbers)
                session.cell_started(cell.number)
        stack.append(cell)

    def take_node(self) -> bool:
        """Say, once, that the cell about to run in this thread begins by a statement of ours."""
        stack = self._stacks.get(threading.get_ident())
        if not stack or not stack[-1].awaits:
            return False
        stack[-1].awaits = False
        return True

    def begin(self) -> None:
        """A plain cell on a GPU begins: its statement runs. An interrupt here stops it."""
        stack, session = self._stacks.get(threading.get_ident()), self._session()
        if not stack or session is None or stack[0].number is not None:
            return
        stack[0].number = next(self._numbers)
        session.cell_started(stack[0].number)
        if session.gpu is not None:
            session.gpu.cell_event()

    def post_run_cell(self, result: Any) -> None:
        """A cell is over: well, with an error, interrupted, or cancelled (then there is no result).

        An interrupt while what it held is given back finds no line of the user's to stop any more.
        """
        with suppress(KeyboardInterrupt):
            self._over(result)

    def _over(self, result: Any) -> None:
        thread = threading.get_ident()
        stack = self._stacks.get(thread)
        if not stack:
            return
        info = None if result is None else result.info
        depth = next((n for n, cell in enumerate(stack) if cell.info is info), None)
        if depth is None:
            if info is not None and (not info.raw_cell or info.raw_cell.isspace()):
                return  # an empty cell ends without having begun
            depth = len(stack) - 1
        finish = _nothing
        try:
            # Before its lanes are left: what an error kept comes back first, and is not measured as kept.
            finish = self._ended(_error(result))
        finally:
            ended = stack[depth:]
            del stack[depth:]
            if not stack:
                del self._stacks[thread]
            _leave_all([finish, *(partial(self._end, cell) for cell in ended)])

    def post_execute(self) -> None:
        """A silent execution may be over."""
        thread = threading.get_ident()
        if thread not in self._stacks:
            with suppress(KeyboardInterrupt):
                _leave_all(self._stray.pop(thread, []))

    def _end(self, cell: _Cell) -> None:
        try:
            _leave_all(cell.leave)
        finally:
            session = self._session()
            if cell.number is not None and session is not None:
                session.cell_ended(cell.number)


def _error(result: Any) -> BaseException | None:
    """Return why a cell did not come to its end; None where it did.

    IPython compiles a cell statement by statement, while it runs: an interrupt between two of them, like one that does not
    compile, is an error "before" the execution to it.
    """
    if result is None:
        return KeyboardInterrupt()
    return result.error_in_exec or result.error_before_exec  # type: ignore[no-any-return]


def _nothing() -> None:
    return None


def _leave_all(leaves: list[Leave]) -> None:
    """Call them, the last first, and the others too where one fails or is interrupted."""
    with ExitStack() as stack:
        for leave in leaves:
            stack.callback(leave)
