"""A task as the kernel has it on the nodes: its slots, its jobs on their way, and what became of those that are over."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from math import inf
from typing import Any

from gpushare_kernel.realtime import orders, payload
from gpushare_kernel.realtime.chain import BadModel, Chain
from gpushare_kernel.realtime.conduct import Conduct, Event, Telling
from gpushare_kernel.realtime.grid import Skipped
from gpushare_kernel.realtime.model import Kind, NodeType, Stage, Task
from gpushare_kernel.realtime.orders import Span
from gpushare_kernel.realtime.payload import Form
from gpushare_kernel.realtime.record import Record

SLOTS = 8
"""Jobs of one pipeline that are on the nodes at once. More wait in the kernel; so no socket between nodes ever fills."""
LATE = 0.001
CLOSER = 0.02
"""By how much less than a period two launches may be apart, at most: seconds, and as a part of it. So a grid is caught up with."""


@dataclass(slots=True)
class Flight:
    """A job between its release and its end.

    `released` is the moment that its response counts from, `asked` that at which it was there to be launched.
    """

    number: int
    value: Any
    released: float
    future: Future[Any]
    slot: int = -1
    rehearsal: bool = False
    on_grid: bool = False
    asked: float = 0.0
    path: Sequence[Span] = ()


class Tenant:
    """One task on the nodes. Whoever changes it holds the nodes' lock."""

    def __init__(
        self, number: int, task: Task, chain: Chain, forms: Sequence[Form], example: Any
    ) -> None:
        self.number, self.task, self.chain, self.forms = number, task, chain, forms
        self.example = example
        self.stages: tuple[Stage, ...] = ()
        self.bound: float | None = None
        #: Whether a bound was promised that is not any more.
        self.lapsed = False
        self.conduct = Conduct(task.kind)
        self.telling = Telling()
        self.record = Record(task.deadline)
        self.flights: dict[int, Flight] = {}
        self.waiting: deque[Flight] = deque()
        #: Nodes that answered a `Load`, each with what was amiss.
        self.loaded: dict[int, str] = {}
        self.released = 0
        self.apart = -inf
        self.closed = False
        self.slot_size = max(form.room for form in forms)
        self.fd = os.memfd_create("gpushare-slots", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.slot_size * SLOTS)
        self._memory = mmap.mmap(self.fd, self.slot_size * SLOTS)
        self._free = list(range(SLOTS))

    def slot(self, number: int) -> memoryview:
        """Return a slot's memory."""
        return memoryview(self._memory)[number * self.slot_size : (number + 1) * self.slot_size]

    @property
    def due(self) -> float:
        """The moment at which the next job that waits may be launched; infinite where none waits."""
        return max(self.waiting[0].released, self.apart) if self.waiting else inf

    def launched(self, at: float) -> None:
        """A job is launched: with a deadline, the next one is not before (nearly) a period after it, whatever held this one up.

        The bounds of the others count on it. Where launches are a little late there is no waiting, so a grid stays where it is.
        """
        period = self.task.period
        if period is not None and not self.conduct.demoted:
            self.apart = at + period - min(LATE, CLOSER * period)

    def drops_stale(self, at: float) -> bool:
        """Skip the job that waits first, and tell so, where it is of a grid and its deadline is not certain any more: the next one's is."""
        first, deadline = self.waiting[0], self.task.deadline
        if not first.on_grid or deadline is None:
            return False
        if at - first.asked <= deadline - (deadline / 2 if self.bound is None else self.bound):
            return False
        self.waiting.popleft()
        self.record.releases -= 1
        self.record.skip(1)
        fail(first.future, Skipped())
        return True

    @property
    def piles_up(self) -> bool:
        """Whether one more job would wait behind another that has lost its class."""
        return self.conduct.demoted and bool(self.flights or self.waiting)

    @property
    def has_slot(self) -> bool:
        """Whether one more job may be on the nodes."""
        return bool(self._free)

    def take_slot(self) -> int | None:
        """Return a slot that nobody uses; None where there is none."""
        return self._free.pop() if self._free else None

    def give_slot(self, number: int) -> None:
        """A slot is free again."""
        if number >= 0:
            self._free.append(number)

    def note(self, text: str) -> str:
        """Keep for the report what its user is told."""
        self.record.events.append(Event(time.monotonic(), text))
        return text

    def promised(self, bound: float | None) -> None:
        """Its bound is this one now; None: nothing is promised."""
        self.lapsed = bound is None and (self.lapsed or self.bound is not None)
        self.bound = bound

    def job(self, flight: Flight, form: Form) -> orders.Job:
        """Return the order to run a job whose input lies in its slot in that form."""
        return orders.Job(
            task=self.number,
            number=flight.number,
            slot=flight.slot,
            layer=0,
            kind=Kind.BE if flight.rehearsal else self.conduct.runs_as,
            form=form,
            rehearsal=flight.rehearsal,
        )

    def falls(self, flight: Flight) -> bool:
        """A job could not be sent: it is over. Tell whether it was released, and has a deadline."""
        del self.flights[flight.number]
        self.give_slot(flight.slot)
        if flight.rehearsal:
            return False
        self.record.failed += 1
        return self.task.kind is Kind.RT

    def outcome(
        self, flight: Flight, said: orders.Done | orders.Failed
    ) -> tuple[Any, BaseException | None]:
        """Return what a job that is over gave, or its error; what cannot be read here is an error, too."""
        try:
            if isinstance(said, orders.Failed):
                return None, pickle.loads(said.error)  # noqa: S301  our own node wrote it
            flight.path = said.path
            return payload.read(self.slot(flight.slot), said.form), None
        except Exception as problem:  # noqa: BLE001  unpickling runs the user's code
            problem.add_note(f"when a result of {self.task.name} was read in the notebook")
            return None, without_frames(problem)

    def account(self, flight: Flight, said: orders.Done | orders.Failed) -> tuple[str | None, bool]:
        """Count a job that is over; return what its user is told, and whether it has its class again."""
        record, now = self.record, time.monotonic()
        if isinstance(said, orders.Done):
            record.done(said.at - flight.released, now - flight.released)
            record.moved += self.strayed(said.path)
            record.waited(said.waited)
        else:
            record.failed += 1
        if not self.conduct.ended(flight.number, len(self.flights)):
            return (self.telling.overdue(now) if self.conduct.demoted else None), False
        text = self.note(f"pipeline {self.task.name} has behaved for a while: its deadline counts again.")  # fmt: skip
        return self.telling.kept(text, now), True

    def strayed(self, path: Sequence[Span]) -> bool:
        """Tell whether a job ran elsewhere than planned."""
        planned = {layer: stage.node for stage in self.stages for layer in range(stage.first, stage.last + 1)}  # fmt: skip
        return any(planned[layer] != span.node for span in path for layer in range(span.first, span.last + 1))  # fmt: skip

    def homes(self, nodes: Sequence[NodeType]) -> list[Span]:
        """Return which layers each node gets: those of its stage, and of best effort all where all can run there."""
        last = len(self.chain) - 1
        if self.task.kind is Kind.RT:
            return [Span(stage.node, stage.first, stage.last) for stage in self.stages]
        planned = {stage.node: Span(stage.node, stage.first, stage.last) for stage in self.stages}
        for node, kind in enumerate(nodes):
            if all(kind in layer.worst for layer in self.task.layers):
                planned[node] = Span(node, 0, last)
        return [planned[node] for node in sorted(planned)]

    def load(self, kind: NodeType, home: Span, homes: list[Span]) -> tuple[orders.Load, int]:
        """Return the order for one node, and a descriptor of its pieces that the caller closes."""
        blobs = list(self._pickled(home))
        order = orders.Load(
            task=self.number,
            name=self.task.name,
            kind=self.conduct.runs_as,
            weight=self.task.weight,
            slot_size=self.slot_size,
            first=home.first,
            blobs=[len(blob) for blob in blobs],
            names=[piece.name for piece in self.chain.pieces],
            stages=[Span(stage.node, stage.first, stage.last) for stage in self.stages],
            homes=homes,
            worst=[layer.worst.get(kind) for layer in self.task.layers],
            forms=list(self.forms),
            timed=self.task.kind is Kind.RT,
        )
        return order, _in_memory(blobs)

    def close(self) -> None:
        """Let go of its memory; nodes that still map it keep it until they forget the task."""
        if self.fd < 0:
            return
        with contextlib.suppress(
            BufferError
        ):  # an error's frames may still look at it; it goes with them
            self._memory.close()
        os.close(self.fd)
        self.fd = -1

    def _pickled(self, home: Span) -> Iterator[bytes]:
        for place in range(home.first, home.last + 1):
            yield pickled_piece(self.chain, place)


def pickled_piece(chain: Chain, place: int) -> bytes:
    """Return a piece as bytes for another process; what is on a GPU goes by way of the CPU.

    Raises
    ------
    BadModel
        Where it cannot be sent.
    """
    import cloudpickle  # noqa: PLC0415  an extra

    piece = chain.pieces[place]
    try:
        return bytes(cloudpickle.dumps(_on_cpu(piece.call)))
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError) as problem:
        msg = (
            f"model {chain.name}: layer {place} ({piece.name}) must run in a process of its own, and cannot be sent there: "
            f"{problem}. Have it hold no files, locks or connections."
        )
        raise BadModel(msg) from problem


def _on_cpu(call: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(call, torch.nn.Module):
        return call
    if not any(one.is_cuda for one in (*call.parameters(), *call.buffers())):
        return call
    from copy import deepcopy  # noqa: PLC0415

    return deepcopy(call).cpu()


def _in_memory(blobs: Sequence[bytes]) -> int:
    fd = os.memfd_create("gpushare-model", os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.writelines(blobs)
    except BaseException:
        os.close(fd)
        raise
    return fd


def without_frames(problem: Exception) -> Exception:
    """Return an error that a future may keep: its frames would keep the slot's memory. They are said in a note."""
    problem.add_note("".join(traceback.format_exception(problem)))
    problem.__context__ = problem.__cause__ = None
    return problem.with_traceback(None)


def fail(future: Future[Any], problem: Exception) -> None:
    """End a job with an error."""
    with contextlib.suppress(Exception):  # cancelled by its user meanwhile: nobody waits
        future.set_exception(problem)


def cancel(future: Future[Any], name: str) -> None:
    """End a job whose pipeline is closed."""
    if not future.cancel():
        fail(future, CancelledError(f"pipeline {name} was closed before this job was done"))
