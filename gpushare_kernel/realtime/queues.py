"""The two queues of a node: real-time jobs by weight (equals in the order of their arrival), best-effort jobs in
that order, those of a task that has lost its class before the others.

Pure: what runs next is decided here, and tested without a process. A job that is put aside keeps its place in the order.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any

from gpushare_kernel.realtime.model import Kind
from gpushare_kernel.realtime.orders import Span


class Mode(StrEnum):
    """Where a real-time job makes room for a weightier one. A best-effort job does at every layer's end, in both."""

    LAYER = "layer"
    STAGE = "stage"


@dataclass(slots=True)
class Work:
    """A job on this node. `value` is what its next layer works on, where it is not in its slot any more."""

    task: int
    number: int
    slot: int
    layer: int
    kind: Kind
    weight: float
    form: Any
    path: list[Span] = field(default_factory=list)
    waited: float = 0.0
    rehearsal: bool = False
    timed: bool = False
    """It is of a task with a deadline, whatever its class is now."""
    spent: float = 0.0
    """What its layers took here, without what strangers took."""
    blamed: bool = False
    """It has taken too long here already."""
    value: Any = None
    held: bool = False
    """Its value is here, and no more in its slot."""
    started: int = 0
    """The layer at which this node began it."""
    arrival: int = 0

    @property
    def rank(self) -> tuple[float, int]:
        """What real-time jobs are sorted by."""
        return (-self.weight, self.arrival)

    @property
    def turn(self) -> tuple[bool, int]:
        """What best-effort jobs are sorted by: those of a task that has lost its class first, so that it has it again soon."""
        return (not self.timed, self.arrival)


class Queues:
    """What waits on a node, and the rule who is next."""

    def __init__(self, mode: Mode = Mode.LAYER) -> None:
        self.mode = mode
        self.rt: list[Work] = []
        self.be: list[Work] = []
        #: Tasks whose best-effort jobs wait, whatever else there is; rehearsals do not.
        self.barred: set[int] = set()
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self.rt) + len(self.be)

    def add(self, work: Work) -> None:
        """A job arrives."""
        work.arrival = next(self._arrivals)
        self.put_back(work)

    def put_back(self, work: Work) -> None:
        """A job is put aside: its place among its equals is where it was."""
        if work.kind is Kind.RT:
            insort(self.rt, work, key=lambda one: one.rank)
        else:
            insort(self.be, work, key=lambda one: one.turn)

    def take(self) -> Work | None:
        """Return the job that runs now; best effort only where no real-time job waits."""
        if self.rt:
            return self.rt.pop(0)
        return self.give_away(lambda _: True)

    def before(self, running: Work) -> bool:
        """Tell whether somebody who waits goes before `running` at the end of a layer within its stage."""
        if self._waits(running):
            return True
        if not self.rt:
            return False
        if running.kind is not Kind.RT:
            return True
        return self.mode is Mode.LAYER and self.rt[0].rank < running.rank

    def demote(self, task: int) -> None:
        """A task has lost its class: so have its waiting jobs."""
        changed = [one for one in self.rt if one.task == task]
        self.rt = [one for one in self.rt if one.task != task]
        for work in changed:
            work.kind = Kind.BE
            self.put_back(work)

    def forget(self, task: int) -> None:
        """A task's waiting jobs are gone."""
        self._keep(lambda one: one.task != task)

    def give_away(self, may: Callable[[Work], bool]) -> Work | None:
        """Take out the best-effort job that has waited longest of those that `may` go elsewhere."""
        found = next((one for one in self.be if may(one) and not self._waits(one)), None)
        if found is not None:
            self.be.remove(found)
        return found

    def _waits(self, work: Work) -> bool:
        return work.kind is Kind.BE and not work.rehearsal and work.task in self.barred

    def _keep(self, wanted: Callable[[Work], bool]) -> None:
        self.rt = [one for one in self.rt if wanted(one)]
        self.be = [one for one in self.be if wanted(one)]
