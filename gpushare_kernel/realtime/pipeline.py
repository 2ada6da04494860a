"""A model with a deadline: `Pipeline(model, example, period=0.033, deadline=0.03)`.

    with gpushare.realtime.Pipeline(model, frame, period="33ms", deadline="30ms") as pipe:
        for boxes in pipe.every_period(camera.read):
            ...
    pipe.report()

Its layers run in the node processes, so in this one nothing has to hurry.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from gpushare_kernel.client import display
from gpushare_kernel.client.display import Steps
from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.core.sizes import parse_time
from gpushare_kernel.realtime import host
from gpushare_kernel.realtime.chain import PLAIN, BadModel, Chain, chain
from gpushare_kernel.realtime.grid import Grid
from gpushare_kernel.realtime.measurement import measure
from gpushare_kernel.realtime.model import SHORTEST, BadTaskset, Kind, Layer, NodeType, Task
from gpushare_kernel.realtime.nodes import Nodes
from gpushare_kernel.realtime.profile import Profile
from gpushare_kernel.realtime.report import PipelineReport, report_of
from gpushare_kernel.realtime.shared_nodes import shared

_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Declared:
    """What a cell says that a pipeline in it does not, and the pipelines that it opened."""

    period: float
    deadline: float
    weight: float
    name: str | None = None
    opened: list[Pipeline] = field(default_factory=list)

    def check(self, period: float | str | None, deadline: float | str | None) -> None:
        """Refuse a second pipeline in a cell with a deadline, and one that says something else than its line.

        Raises
        ------
        BadDeclaration
            With both values.
        """
        if self.opened:
            msg = f"a cell with --class RT has one pipeline, and {self.opened[0].task.name} is open. Open the other one in another cell."
            raise BadDeclaration(msg)
        if self is USUAL:
            return
        for what, given, mine in (("period", period, self.period), ("deadline", deadline, self.deadline)):  # fmt: skip
            if given is not None and parse_time(given) != mine:
                msg = f"the cell's line says --{what} {mine:g}, and its pipeline {what}={given}. Say it in one place."
                raise BadDeclaration(msg)


_NOTHING = (Layer({NodeType(1): SHORTEST}),)
"""Layers that take no time: what is declared is looked at before anything is measured."""
USUAL = Declared(0.033, 0.03, 1.0)
_cells: list[Declared] = []


@contextlib.contextmanager
def declared(period: float, deadline: float, weight: float, name: str | None) -> Iterator[Declared]:
    """Have pipelines with a deadline that are opened meanwhile be as a cell's line says."""
    cell = Declared(period, deadline, weight, name)
    _cells.append(cell)
    try:
        yield cell
    finally:
        _cells.remove(cell)


class Pipeline:
    """A model whose layers run on this kernel's nodes, with a deadline or without.

    Parameters
    ----------
    model
        A torch module in eval mode, or callables, one for each layer.
    example
        An input: all inputs must have its form.
    period, deadline
        Seconds, or texts such as `33ms`; those of the running `%%gpulane --class RT`, else 33 and 30 ms, where none are
        given. A job is released at most once a period, and done `deadline` after its release.
    weight
        Among deadlines the larger comes first; equals in the order of their arrival.
    class_
        `RT`, or `BE`: best effort, without period and deadline, in whatever time the others leave.
    profile
        What `measure` returned; measured where none is given, which takes some seconds once.
    nodes
        Nodes of one's own; those of this kernel where none are given.
    tell
        Called with one line where the user should know something; printed to stderr where none is given.

    Raises
    ------
    Refused
        Where the deadline would not be certain, with the numbers.
    BadModel, BadDeclaration
        Where the model cannot be a pipeline, or what is asked for contradicts itself.
    """

    def __init__(
        self,
        model: Any,
        example: Any,
        *,
        period: float | str | None = None,
        deadline: float | str | None = None,
        weight: float | None = None,
        name: str | None = None,
        class_: str = "RT",
        profile: Profile | None = None,
        nodes: Nodes | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.nodes = shared() if nodes is None else nodes
        kind = _kind_of(class_)
        cell = _cells[-1] if _cells and kind is Kind.RT else USUAL
        cell.check(period, deadline)
        name = name or cell.name
        period, deadline = _times(kind, cell, period, deadline)
        weight = cell.weight if weight is None else weight
        _check(Task(name or type(model).__name__, kind, _NOTHING, period, deadline, weight))
        tell = tell or _print
        line = display.steps()
        try:
            links = chain(model, example, name=name or "")
            if links.whole not in ("", PLAIN):
                tell(f"model {links.name} is one piece, for which others wait: {links.whole}. To divide it, pass a list of its parts.")  # fmt: skip
            self._open(links, example, kind=kind, times=(period, deadline), weight=weight, name=name, profile=profile, tell=tell, line=line)  # fmt: skip
        except KeyboardInterrupt:
            said = f"Interrupted: the pipeline of {name or type(model).__name__} was opening, and is not open."
            raise display.Interrupted(said) from None
        finally:
            line("")
        if cell is not USUAL:
            cell.opened.append(self)

    def _open(
        self,
        links: Chain,
        example: Any,
        *,
        kind: Kind,
        times: tuple[float | None, float | None],
        weight: float,
        name: str | None,
        profile: Profile | None,
        tell: Callable[[str], None],
        line: Steps,
    ) -> None:
        """Measure it where nobody has, have its deadline proven, and load it; `line` says which of these."""
        period, deadline = times
        types = self.nodes.admission.types(host.cores(), host.gpus())
        if profile is None:
            profile = measure(links, example, types, beside=self.nodes.promised(), deadline=deadline, step=line)  # fmt: skip
        if profile.layers != [piece.name for piece in links.pieces]:
            msg = f"model {links.name}: the profile must be of its {len(links)} layers, and is of {profile.model} with {len(profile.layers)}. Measure this model."
            raise BadModel(msg)
        self.profile = profile
        task = profile.task(
            name or f"{links.name}-{next(_numbers)}",
            kind,
            [one for one in types if one in profile.types],
            period=period,
            deadline=deadline,
            weight=weight,
        )
        _check(task)
        self.task: Task = task
        self._earliest = 0.0
        self._on_grid = False
        self._lock = threading.Lock()
        self._last_report: PipelineReport | None = None
        self._tenant = self.nodes.open(task, links, profile.forms, example, tell=tell, step=line)

    def submit(self, x: Any) -> Future[Any]:
        """Release a job now; return the future of its result.

        With a deadline, a release that comes earlier than a period after the last one is held back until then, and counted.

        Raises
        ------
        ShapeChanged
            Where `x` is not of the form of the example.
        NodeDied, UserError
            Where a node's process has ended, or the pipeline is closed.
        """
        with self._lock:
            if self._on_grid:
                msg = f"pipeline {self.task.name}: every_period releases its jobs now. End that loop first, or open another pipeline."
                raise UserError(msg)
            now = time.monotonic()
            at = max(now, self._earliest)
            future = self.nodes.release(self._tenant, x, at)
            if self.task.period is not None:
                self._tenant.record.delayed += at > now
                self._earliest = at + self.task.period
        return future

    def __call__(self, x: Any) -> Any:
        """Release a job and wait for its result."""
        return self.submit(x).result()

    def every_period(self, source: Iterable[Any] | Callable[[], Any]) -> Iterator[Any]:
        """Release a job each period, on a grid that nothing shifts, and give the results in order.

        `source` is an iterable, or a callable that returns the next input; it is asked at each tick, in a thread of its own.
        Responses count from the tick. A reader that is behind delays nothing: its results wait for it.
        """
        if self.task.period is None:
            msg = f"pipeline {self.task.name}: best effort has no period. Use submit, or open it with class_='RT'."
            raise BadDeclaration(msg)
        return self._results(self.task.period, source)

    def report(self) -> PipelineReport:
        """Return what became of its releases so far, beside what was promised; also when it is closed."""
        if self._last_report is not None:
            return self._last_report
        self.nodes.up_to_date()
        return self.nodes.looked_at(lambda: report_of(self._tenant, self.nodes.types))

    def close(self, *, wait: bool = True) -> None:
        """Let it go: with `wait` when its jobs are done, else, or where that is interrupted, they are cancelled. The last one ends the node processes."""
        if self._last_report is None:
            types = self.nodes.types
            self.nodes.up_to_date()
            try:
                self.nodes.close(self._tenant, wait=wait)
            finally:
                self._last_report = self.nodes.looked_at(lambda: report_of(self._tenant, types))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.close(wait=kind is None)

    def _results(self, period: float, source: Iterable[Any] | Callable[[], Any]) -> Iterator[Any]:
        with self._lock:
            if self._on_grid:
                msg = f"pipeline {self.task.name}: every_period is in use. End that loop first."
                raise UserError(msg)
            self._on_grid = True
        record, admission = self._tenant.record, self.nodes.admission
        first = time.monotonic() + period  # so that others stand aside for the first as well
        grid = Grid(period, source, self._release, record.late, record.skip, first=first, may_release=self._may_release)  # fmt: skip
        admission.grid(self.task, first)
        try:
            yield from grid.results()
        finally:
            self._on_grid = False
            admission.grid(self.task, None)

    def _may_release(self) -> bool:
        """Where its deadline is not promised, jobs come one at a time: best effort is no place to pile them up."""
        return self.nodes.looked_at(lambda: not self._tenant.piles_up)

    def _release(self, value: Any, at: float) -> Future[Any]:
        return self.nodes.release(self._tenant, value, at, on_grid=True)


def _times(
    kind: Kind, cell: Declared, period: float | str | None, deadline: float | str | None
) -> tuple[float | None, float | None]:
    """Return period and deadline in seconds: best effort has none."""
    if kind is not Kind.RT:
        return None, None
    asked = [parse_time(mine if given is None else given) for given, mine in ((period, cell.period), (deadline, cell.deadline))]  # fmt: skip
    return asked[0], asked[1]


def _check(task: Task) -> None:
    """Raise `BadDeclaration` where what was declared is no task."""
    try:
        task.check()
    except BadTaskset as problem:
        msg = f"pipeline{str(problem).removeprefix('task')}."
        raise BadDeclaration(msg) from None


def _kind_of(class_: str) -> Kind:
    try:
        return Kind(class_.upper())
    except ValueError:
        msg = f"class must be RT (with a deadline) or BE (best effort), not {class_!r}."
        raise BadDeclaration(msg) from None


def _print(text: str) -> None:
    print(f"gpushare: {text}", file=sys.stderr, flush=True)  # noqa: T201  what the user is told
