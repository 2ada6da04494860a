"""The nodes of this kernel: one row of processes, started with the first pipeline and ended with the last.

One lock holds everything here. One thread reads what the nodes say; it never waits for them, so they never wait for it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import Any, TypeVar

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.realtime import node, orders, payload
from gpushare_kernel.realtime.chain import BadModel, Chain, on_example
from gpushare_kernel.realtime.discipline import Discipline
from gpushare_kernel.realtime.listening import listen
from gpushare_kernel.realtime.load_page import LoadPage
from gpushare_kernel.realtime.model import Kind, NodeType, Task
from gpushare_kernel.realtime.node import Node, NodeDied
from gpushare_kernel.realtime.placement import Admission, Placement, cores_of
from gpushare_kernel.realtime.queues import Mode
from gpushare_kernel.realtime.steps import loading_text, proving_text
from gpushare_kernel.realtime.tenant import Flight, Tenant, cancel, fail, without_frames

_START = 120.0
"""Seconds in which a node must be up and a model loaded: importing torch from a cold disk takes its time."""
CLEARED = 60.0
"""Seconds in which jobs must end before nodes change: releases wait meanwhile, and a layer that hangs would hold them for ever."""
REHEARSALS = 3
"""Runs of a new pipeline's layers on each node before it is open: the first ones take longer and count for nothing."""

Seen = TypeVar("Seen")


class Nodes:
    """A row of nodes and the tasks on them."""

    def __init__(self, admission: Admission | None = None, mode: Mode = Mode.LAYER) -> None:
        self._admission = admission
        self.mode = mode
        self.row: list[Node] = []
        self.tenants: dict[int, Tenant] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._clock = threading.Condition(self._lock)
        self._opening = threading.RLock()
        self._up: set[int] = set()
        self._held = False
        self._broken: Exception | None = None
        self._page: LoadPage | None = None
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()
        self._wake = -1
        self._next = 0
        self._tells: dict[int, Callable[[str], None]] = {}
        self._discipline = Discipline()
        #: Jobs that could not be sent to a node, whose futures are not told yet.
        self._fallen: list[tuple[Future[Any], Exception]] = []

    @property
    def admission(self) -> Admission:
        """Who decides whether a task comes in: whoever was given, else the broker where there is one."""
        if self._admission is None:
            from gpushare_kernel.realtime.admissions import here  # noqa: PLC0415 - asks for the broker

            self._admission = here()
        return self._admission

    @property
    def types(self) -> tuple[NodeType, ...]:
        """The types of the nodes that run now, in pipeline order."""
        return tuple(one.type for one in self.row)

    # --- tasks ------------------------------------------------------------------------------------------

    def open(
        self,
        task: Task,
        chain: Chain,
        forms: list[payload.Form],
        example: Any,
        *,
        tell: Callable[[str], None] = lambda _text: None,
        step: Callable[[str], None] = lambda _text: None,
    ) -> Tenant:
        """Admit a task, have the nodes load it and run it in; `step` is told which of these.

        Raises
        ------
        Refused
            Where it is not admitted, with the numbers.
        BadModel
            Where its model cannot be loaded.
        NodeDied
            Where a node ends meanwhile.
        """
        with self._opening:
            others = list(self.tenants.values())
            if any(one.task.name == task.name for one in others):
                msg = f"task {task.name}: a pipeline of that name is open. Give this one another name."
                raise UserError(msg)
            step(proving_text(task, len(others)))
            placement = self.admission.admit(task, [one.task for one in others])
            step(loading_text(task, placement.nodes))
            try:
                tenant = Tenant(self._next, task, chain, forms, example)
            except BaseException:
                self.admission.leaves(task)
                raise
            self._next += 1
            try:
                self._arrange(placement, others)
                self._tells[tenant.number] = tell
                self._settle(tenant, placement)
            except BaseException:
                self._forget(tenant)
                raise
            return tenant

    def close(self, tenant: Tenant, *, wait: bool = True) -> None:
        """Let a task go; with `wait` when its jobs are done, else, or where that is interrupted, they are cancelled. The last one ends the nodes."""
        wait = wait and threading.current_thread() not in self._threads  # a callback of a result
        try:
            with self._lock:
                tenant.closed = True
                while wait and self._broken is None and (tenant.flights or tenant.waiting):
                    if tenant.number in self._discipline.until:
                        break  # it waits for deadlines: nobody knows how long
                    self._changed.wait()
        finally:
            with self._opening:
                self._forget(tenant)

    def shut(self) -> None:
        """End everything at once. A forked child's is not ours to end."""
        if os.getpid() != self._pid:
            return
        with self._opening:
            for tenant in list(self.tenants.values()):
                self._forget(tenant)
            self._stop_row()

    def promised(self) -> list[str]:
        """Return the names of the tasks with deadlines."""
        with self._lock:
            return sorted(
                one.task.name for one in self.tenants.values() if one.task.kind is Kind.RT
            )

    def up_to_date(self) -> None:
        """Know what is promised now, where somebody else may have changed it."""
        bounds = self.admission.promised()
        with self._lock:
            for one in self.tenants.values():
                if one.task.name in bounds:
                    one.promised(bounds[one.task.name])

    def looked_at(self, look: Callable[[], Seen]) -> Seen:
        """Return what `look` returns while nothing changes."""
        with self._lock:
            return look()

    # --- jobs -------------------------------------------------------------------------------------------

    def release(
        self, tenant: Tenant, value: Any, at: float, *, on_grid: bool = False
    ) -> Future[Any]:
        """Release a job of `tenant`; its response counts from `at`. One of a grid may end with `Skipped`.

        Raises
        ------
        ShapeChanged
            Where `value` is not of the form of the example.
        NodeDied, UserError
            Where there are no nodes any more, or the pipeline is closed.
        """
        payload.check(value, tenant.forms[0], f"the input of {tenant.task.name}")
        with self._lock:
            future = self._release(tenant, value, at, on_grid=on_grid).future
        self._tell_fallen(future)
        return future

    def _release(self, tenant: Tenant, value: Any, at: float, *, on_grid: bool) -> Flight:
        if self._broken is not None:
            raise self._broken
        if tenant.closed:
            msg = f"pipeline {tenant.task.name} is closed. Open it again."
            raise UserError(msg)
        now = time.monotonic()
        flight = Flight(tenant.released, value, at, Future(), on_grid=on_grid, asked=now)
        tenant.released += 1
        tenant.record.releases += 1
        at_once = not self._held and not tenant.waiting and max(at, tenant.apart) <= now
        if not (at_once and self._launch(tenant, flight)):
            flight.value = payload.copied(value)  # the user may fill the same array again meanwhile
            tenant.waiting.append(flight)
            self._clock.notify()
        return flight

    def _launch(self, tenant: Tenant, flight: Flight, first: int | None = None) -> bool:
        """Send a job to its first node; tell whether there was a slot for it."""
        slot = tenant.take_slot()
        if slot is None:
            return False
        flight.slot = slot
        if not flight.rehearsal and not flight.future.set_running_or_notify_cancel():
            tenant.give_slot(slot)
            return True
        tenant.flights[flight.number] = flight
        if tenant.task.kind is Kind.RT and not flight.rehearsal:
            tenant.launched(time.monotonic())
            self.admission.released(tenant.task)
        try:
            form = payload.write(flight.value, tenant.slot(slot))
        except Exception as problem:  # noqa: BLE001  it may be pickled by its own code
            self._falls(tenant, flight, problem)
            return True
        flight.value = None
        goes = tenant.stages[0].node if first is None else first
        with contextlib.suppress(NodeDied):  # the reader sees it too, and tells everybody
            self.row[goes].tell(tenant.job(flight, form))
        return True

    def _falls(self, tenant: Tenant, flight: Flight, problem: Exception) -> None:
        """A job cannot be sent: it is over. Who waits for it is told without the lock, for what it does then is its own."""
        if tenant.falls(flight):
            self.admission.done(tenant.task, len(tenant.flights))
        self._fallen.append((flight.future, without_frames(problem)))
        self._changed.notify_all()

    def _tell_fallen(self, only: Future[Any] | None = None) -> None:
        """Fail the futures of jobs that could not be sent; `only` this one where the caller has locks of its own."""
        with self._lock:
            fallen = [one for one in self._fallen if only is None or one[0] is only]
            self._fallen = [one for one in self._fallen if one not in fallen]
        for future, problem in fallen:
            fail(future, problem)

    def _launch_waiting(self, tenant: Tenant) -> None:
        while not self._held and (now := time.monotonic()) >= tenant.due:
            if tenant.drops_stale(now):
                continue
            if not self._launch(tenant, tenant.waiting[0]):
                return
            tenant.waiting.popleft()

    def _keep_time(self, row: list[Node]) -> None:
        """Launch at their time the jobs that were released for later."""
        while True:
            with self._lock:
                if self.row is not row:
                    return
                for tenant in self.tenants.values():
                    self._launch_waiting(tenant)
                self._tell_nodes(*self._discipline.over(time.monotonic()))
                due = min(
                    (
                        *(one.due for one in self.tenants.values() if one.has_slot),
                        *self._discipline.until.values(),
                    ),
                    default=inf,
                )
                ahead = max(0.0, due - time.monotonic())
                if not self._fallen:
                    self._clock.wait(None if due == inf or self._held else ahead)
            self._tell_fallen()

    # --- coming and going -------------------------------------------------------------------------------

    def _arrange(self, placement: Placement, others: list[Tenant]) -> None:
        """Have the nodes that `placement` says, with the tasks that are there already. Where they change, jobs are let end first."""
        self._discipline.spare = placement.spare
        moved = any(placement.stages[one.task.name] != one.stages for one in others)
        if self.row and self._broken is None and placement.nodes == self.types and not moved:
            for one in others:
                one.promised(placement.bounds.get(one.task.name))
            return
        try:
            self._clear_out(others)
            self._start_anew(placement, others)
        finally:
            with self._lock:
                self._held = False
                for one in others:
                    self._launch_waiting(one)
            self._tell_fallen()

    def _clear_out(self, others: list[Tenant]) -> None:
        """Hold releases back, and wait until no job is on the nodes. Nothing is changed where that is given up."""
        with self._lock:
            self._held = True
            self._tell_nodes(*self._discipline.clear())  # else nobody would wait for the same
            end = time.monotonic() + CLEARED
            while self._broken is None and any(one.flights for one in others):
                if not self._changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    at_work = ", ".join(sorted(one.task.name for one in others if one.flights))
                    msg = f"the nodes must change for it, and jobs of {at_work} have not ended in {CLEARED:g} s. Wait for them, or close that pipeline, and open this one again."
                    raise UserError(msg)
            if self._broken is not None and others:
                raise self._broken

    def _start_anew(self, placement: Placement, others: list[Tenant]) -> None:
        """Have other nodes, with the tasks that were there; where that fails there are none, and everybody is told."""
        try:
            self._stop_row()
            self._discipline.clear()
            self._start_row(placement.nodes)
            for one in others:
                self._settle(one, placement)
        except BaseException as problem:
            self._break(NodeDied(f"the nodes could not be set up anew: {problem}"))
            raise

    def _settle(self, tenant: Tenant, placement: Placement) -> None:
        """Load a task where it belongs, and run it in."""
        with self._lock:
            tenant.stages = placement.stages[tenant.task.name]
            tenant.promised(placement.bounds.get(tenant.task.name))
            tenant.loaded.clear()
            self.tenants[tenant.number] = tenant
        homes = tenant.homes(self.types)
        for home in homes:
            order, blob = tenant.load(self.types[home.node], home, homes)
            try:
                self.row[home.node].tell(order, (tenant.fd, blob))
            finally:
                os.close(blob)
        self._await(lambda: len(tenant.loaded) == len(homes), f"loading {tenant.task.name}")
        problems = sorted(filter(None, tenant.loaded.values()))
        if problems:
            msg = f"model {tenant.task.name} cannot be loaded in a node's process: {problems[0]}. What it imports must be installed for this Python."
            raise BadModel(msg)
        self._rehearse(tenant, homes)

    def _rehearse(self, tenant: Tenant, homes: list[orders.Span]) -> None:
        """Run its layers on every node that has them."""
        starts = [home.node for home in homes if home.first == 0]
        for start in starts * REHEARSALS:
            with self._lock:
                flight = Flight(tenant.released, tenant.example, time.monotonic(), Future(), rehearsal=True)  # fmt: skip
                tenant.released += 1
                self._launch(tenant, flight, start)
            self._tell_fallen()
            problem = flight.future.exception()
            if problem is not None:
                raise problem if isinstance(problem, NodeDied) else on_example(tenant.task.name, problem)  # fmt: skip

    def _forget(self, tenant: Tenant) -> None:
        with self._lock:
            known = self.tenants.pop(tenant.number, None)
            self._tells.pop(tenant.number, None)
            flights = [*tenant.flights.values(), *tenant.waiting]
            tenant.flights.clear()
            tenant.waiting.clear()
            tenant.closed = True
            last = not self.tenants
            self._discipline.forget(tenant.number)
            if not self._is_promised():
                self._tell_nodes(*self._discipline.clear())
        for flight in flights:
            cancel(flight.future, tenant.task.name)
        if known is not None:
            self._tell_nodes(orders.Forget(tenant.number))
        if last:
            self._stop_row()
        tenant.close()
        self.admission.leaves(tenant.task)

    # --- processes --------------------------------------------------------------------------------------

    def _start_row(self, types: tuple[NodeType, ...]) -> None:
        cores = cores_of(types)
        self._page = LoadPage.create(len(types))
        self._broken = None
        self._up.clear()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self.row = node.start(types, cores, self._page, self.mode)
        self._threads = [
            threading.Thread(target=listen, args=(self.row, self._wake, self._hear, self._break), name="gpushare-nodes", daemon=True),
            threading.Thread(target=self._keep_time, args=(self.row,), name="gpushare-clock", daemon=True),
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()
        self._await(lambda: len(self._up) == len(types), "starting the nodes")

    def _stop_row(self) -> None:
        threads = self._threads
        if threading.current_thread() in threads:  # a callback of a result closed the last pipeline
            threading.Thread(target=self._stop_row, name="gpushare-end").start()
            return
        with self._lock:
            row, self.row, self._threads = self.row, [], []
            self._clock.notify_all()
        if threads:
            os.eventfd_write(self._wake, 1)
            for thread in threads:
                thread.join()
            os.close(self._wake)
        node.stop(row)
        if self._page is not None:
            self._page.close()
            self._page = None

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        with self._lock:
            end = time.monotonic() + _START
            while not condition():
                if self._broken is not None:
                    raise self._broken
                if not self._changed.wait(end - time.monotonic()):
                    msg = f"{what} takes over {_START:g} s. Is the machine overloaded? Close the pipelines and try again."
                    raise NodeDied(msg)

    def _break(self, problem: Exception) -> None:
        """Nobody works any more: everybody who waits is told."""
        with self._lock:
            self._broken = problem
            tenants = list(self.tenants.values())
            flights = [one for tenant in tenants for one in (*tenant.flights.values(), *tenant.waiting)]  # fmt: skip
            for tenant in tenants:
                tenant.flights.clear()
                tenant.waiting.clear()
            self._changed.notify_all()
        for flight in flights:
            fail(flight.future, problem)

    # --- what nodes say ---------------------------------------------------------------------------------

    def _hear(self, one: Node, said: orders.FromNode) -> None:
        finish: Callable[[], None] | None = None
        with self._lock:
            if isinstance(said, orders.Up):
                self._up.add(one.index)
            elif isinstance(said, orders.Loaded):
                if said.task in self.tenants:
                    self.tenants[said.task].loaded[one.index] = said.problem
            elif isinstance(said, orders.Overran):
                finish = self._overran(said)
            elif isinstance(said, orders.Done | orders.Failed):
                finish = self._ended(said)
            self._changed.notify_all()
        if finish is not None:
            finish()
        self._tell_fallen()

    def _ended(self, said: orders.Done | orders.Failed) -> Callable[[], None] | None:
        tenant = self.tenants.get(said.task)
        flight = None if tenant is None else tenant.flights.pop(said.number, None)
        if tenant is None or flight is None:
            return None  # it was cancelled meanwhile
        value, error = tenant.outcome(flight, said)
        tenant.give_slot(flight.slot)
        told, again = (None, False) if flight.rehearsal else tenant.account(flight, said)
        if again:
            self._tell_nodes(orders.Reclass(tenant.number, Kind.RT))
        self._launch_waiting(tenant)
        future, tell = flight.future, self._tells.get(tenant.number)

        if tenant.task.kind is Kind.RT and not flight.rehearsal:
            self.admission.done(tenant.task, len(tenant.flights))

        def finish() -> None:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
            if told is not None and tell is not None:
                tell(told)

        return finish

    def _overran(self, said: orders.Overran) -> Callable[[], None] | None:
        tenant = self.tenants.get(said.task)
        if tenant is None:
            return None
        others = (one for one in self.tenants.values() if one is not tenant)
        # While nodes change everybody's end is waited for, and no deadline is kept.
        promised = not self._held and any(one.bound is not None for one in others)
        now = time.monotonic()
        told, order = self._discipline.overran(tenant, said, now, promised=promised)
        if order is not None:
            self._tell_nodes(order)
            self._clock.notify()
        tell = self._tells.get(tenant.number)
        return None if tell is None or told is None else lambda: tell(told)

    def _is_promised(self) -> bool:
        return any(one.bound is not None for one in self.tenants.values())

    def _tell_nodes(self, *told: orders.Order) -> None:
        for order in told:
            for one in self.row:
                with contextlib.suppress(NodeDied):
                    one.tell(order)
