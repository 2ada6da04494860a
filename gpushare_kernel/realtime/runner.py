"""A node's loop: take the job that is next, run it layer by layer, decide again after each.

Everything that comes in (jobs, tasks, orders) is read between two layers and while there is nothing to do, by this one
thread; what must not wait for it does not come this way.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gpushare_kernel.realtime import orders, payload
from gpushare_kernel.realtime.core_wait import CoreWait
from gpushare_kernel.realtime.holding import Holding
from gpushare_kernel.realtime.load_page import LoadPage
from gpushare_kernel.realtime.measuring import measured
from gpushare_kernel.realtime.model import Kind
from gpushare_kernel.realtime.orders import Span
from gpushare_kernel.realtime.queues import Mode, Queues, Work
from gpushare_kernel.realtime.watchdog import Watchdog, Watched

_LONGEST_ERROR = 64 * 1024


@dataclass(frozen=True, slots=True)
class Ends:
    """What a node has of the others: sockets from the kernel, from the nodes before it, to those after it; and the kernel's pidfd."""

    control: socket.socket
    inbox: socket.socket
    onward: Mapping[int, socket.socket]
    page: LoadPage
    kernel: int


class Runner:
    """The work of one node."""

    def __init__(self, hello: orders.Hello, ends: Ends) -> None:
        self.index, self.device = hello.index, hello.device
        self.queues = Queues(Mode(hello.mode))
        self.held: dict[int, Holding] = {}
        self.running: Work | None = None
        self._control, self._inbox, self._onward = ends.control, ends.inbox, ends.onward
        self._page, self._kernel = ends.page, ends.kernel
        self._loading: deque[tuple[int, Iterator[None]]] = deque()
        self._measuring: deque[orders.Measure] = deque()
        self._cores = hello.cores
        self.core = CoreWait(len(hello.cores))
        # What a layer does that still runs then is for nobody.
        self._dog = Watchdog(self._late, self.core, ends.kernel, lambda: os._exit(0))
        self._stopped = False
        self._poll = select.epoll()
        for fd in (ends.control.fileno(), ends.inbox.fileno(), ends.kernel):
            self._poll.register(fd, select.EPOLLIN)
        self._does: dict[type[orders.Order], Callable[..., None]] = {
            orders.Job: self._arrive,
            orders.Load: self._load,
            orders.Forget: self._forget,
            orders.Reclass: self._reclass,
            orders.Bar: self._bar,
            orders.Measure: self._measuring.append,
            orders.Stop: self._stop,
        }

    def run(self) -> None:
        """Work until somebody says stop, or nobody is left to say anything."""
        while not self._stopped:
            work = None if self._loading and not self.queues.rt else self.queues.take()
            if work is not None:
                self._stage(work)
            elif self._loading:
                self._step()
            elif self._measuring:
                self._measure(self._measuring.popleft())
            else:
                self._dog.rest()
                self.hear(wait=True)
                self._dog.wake()
                continue
            self.hear()

    def hear(self, *, wait: bool = False) -> None:
        """Read all that has come; with `wait`, until something has."""
        while not self._stopped and (ready := self._poll.poll(-1 if wait else 0)):
            wait = False
            for fd, _ in ready:
                if fd == self._kernel:
                    self._stopped = True
                elif fd == self._control.fileno():
                    self._read(self._control)
                else:
                    self._read(self._inbox)
        self._say()

    # --- a job ------------------------------------------------------------------------------------------

    def _stage(self, work: Work) -> None:
        """Run a job here as far as it goes."""
        held = self.held[work.task]
        self.running, work.started = work, work.layer
        self._say()
        try:
            if not work.held:
                work.value = payload.read(held.slot(work.slot), work.form, self.device)
                work.held = True
            while self._layer(held, work):
                pass
        except BaseException as problem:  # noqa: BLE001  whatever a layer raises belongs to who waits for its result
            self._fail(held, work, problem)
        finally:
            self.running = None
            self._say()

    def _layer(self, held: Holding, work: Work) -> bool:
        """Run one layer; tell whether the next one is to run right now."""
        self.timed(held, work)
        payload.check(work.value, held.load.forms[work.layer + 1], held.where(work.layer))
        work.layer += 1
        self.hear()
        if self._stopped or work.task not in self.held:
            return False
        if work.layer > held.last:
            self._done(held, work)
            return False
        goes = self._goes_to(held, work)
        if goes is not None:
            self._forward(held, work, goes)
            return False
        if self.queues.before(work):
            self._make_room(held, work)
            return False
        self._spread()
        return True

    def timed(self, held: Holding, work: Work) -> float:
        """Run the layer that is next; return its seconds. One that overruns loses its job's class at once."""
        layer, limit = work.layer, None if work.rehearsal else held.limit(work)
        began, watched = self.core.mark(), None
        if limit is not None:
            watched = Watched(work.task, work.number, layer, limit, began)
        self._dog.now = watched
        try:
            work.value = held.pieces[layer](work.value)
            if self.device != "cpu":
                sys.modules["torch"].cuda.synchronize()
        finally:
            self._dog.now = None
        ended = self.core.mark()  # one moment: a stranger may take the core right after it
        took, stolen = ended.wall - began.wall, self.core.lost(began, ended)
        work.waited += stolen
        work.spent += took - stolen
        if watched is not None and took - stolen > watched.limit.seconds:
            self._overran(watched, took - stolen, running=False)
            work.kind, work.blamed = Kind.BE, True
        return took

    def _goes_to(self, held: Holding, work: Work) -> int | None:
        """Return the node that runs the next layer; None where that is here."""
        planned, here = held.planned(work.layer), work.layer in held.pieces
        if here and (work.rehearsal or planned <= self.index):
            return None
        if here and work.kind is Kind.BE and not self.queues.rt and self._page.rt(planned):
            return None  # deadlines are met there, and this node has nothing better to do
        return planned

    def _make_room(self, held: Holding, work: Work) -> None:
        """A weightier job waits: best effort goes to a node that has no deadline to meet, anybody else is put aside."""
        goes = self._freer(held, work, self._best_effort_here())
        if goes is not None:
            self._forward(held, work, goes)
            return
        self._leave(work)
        self.queues.put_back(work)

    def _spread(self) -> None:
        """Hand a best-effort job that waits to a later node that has nothing to do."""
        if not self.queues.be:
            return
        work = self.queues.give_away(lambda one: self._idle_for(one) is not None)
        if work is None:
            return
        held = self.held[work.task]
        try:
            self._send_on(held, work, self._idle_for(work))
        except Exception as problem:  # noqa: BLE001  its value's own code: not the fault of the job that runs
            self._fail(held, work, problem)

    def _idle_for(self, work: Work) -> int | None:
        return self._freer(self.held[work.task], work, 1)

    def _freer(self, held: Holding, work: Work, fewer_than: int) -> int | None:
        """Return the later node without real-time jobs that has the fewest others, if fewer than here."""
        if work.kind is Kind.RT or work.rehearsal:
            return None
        page = self._page
        free = [
            (page.be(node), node)
            for node in held.elsewhere(work.layer, self.index)
            if not page.rt(node) and page.be(node) < fewer_than
        ]
        return min(free)[1] if free else None

    def _best_effort_here(self) -> int:
        return len(self.queues.be) + 1

    def _forward(self, held: Holding, work: Work, node: int) -> None:
        self._leave(work)
        self._send_on(held, work, node)

    def _send_on(self, held: Holding, work: Work, node: int | None) -> None:
        """Hand a job to another node: its value into its slot, the rest in a message."""
        if node is None:
            self.queues.put_back(work)
            return
        form = payload.write(work.value, held.slot(work.slot)) if work.held else work.form
        job = orders.Job(
            task=work.task,
            number=work.number,
            slot=work.slot,
            layer=work.layer,
            kind=work.kind,
            form=form,
            path=work.path,
            waited=work.waited,
            rehearsal=work.rehearsal,
        )
        with contextlib.suppress(BrokenPipeError):  # it died: the kernel sees that too, and ends us
            orders.send(self._onward[node], job)

    def _done(self, held: Holding, work: Work) -> None:
        self._leave(work)
        form = payload.write(work.value, held.slot(work.slot))
        self._tell(
            orders.Done(
                task=work.task,
                number=work.number,
                form=form,
                at=time.monotonic(),
                path=work.path,
                waited=work.waited,
            )
        )

    def _leave(self, work: Work) -> None:
        """Note which layers ran here since it was last taken."""
        if work.layer > work.started:
            work.path.append(Span(self.index, work.started, work.layer - 1))
        work.started = work.layer

    def _fail(self, held: Holding, work: Work, problem: BaseException) -> None:
        layer = min(work.layer, held.last)
        problem.add_note(f"in {held.where(layer)}, on node {self.index}\n{traceback.format_exc()}")
        error = pickled(problem)
        self._tell(orders.Failed(task=work.task, number=work.number, layer=layer, error=error))

    # --- orders -----------------------------------------------------------------------------------------

    def _arrive(self, job: orders.Job) -> None:
        held = self.held.get(job.task)
        if held is None:
            return  # it was forgotten while the job was on its way
        demoted = held.kind is Kind.BE
        self.queues.add(
            Work(
                task=job.task,
                number=job.number,
                slot=job.slot,
                layer=job.layer,
                kind=Kind.BE if demoted else job.kind,
                weight=held.load.weight,
                form=job.form,
                path=list(job.path),
                waited=job.waited,
                rehearsal=job.rehearsal,
                timed=held.load.timed,
            )
        )

    def _load(self, load: orders.Load, fds: list[int]) -> None:
        held = Holding(load, fds[0], fds[1], self.device)
        held.watch(self.index, self.queues.mode)
        self.held[load.task] = held
        self._loading.append((load.task, held.steps()))

    def _step(self) -> None:
        """Load one more piece of a model: no deadline waits for more than one."""
        task, steps = self._loading[0]
        try:
            with self._on_all_cores():  # what starts threads of its own has them there
                next(steps)
        except StopIteration:
            self._loading.popleft()
            self._tell(orders.Loaded(task=task))
        except BaseException as problem:  # noqa: BLE001  unpickling runs the user's code
            self._loading.popleft()
            self._tell(orders.Loaded(task=task, problem=f"{type(problem).__name__}: {problem}"))

    @contextlib.contextmanager
    def _on_all_cores(self) -> Iterator[None]:
        """Have this thread on any of the node's cores: where OpenMP has bound it to its own."""
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, mine)

    def _forget(self, order: orders.Forget) -> None:
        self.queues.forget(order.task)
        self.queues.barred.discard(order.task)
        self.held.pop(order.task, None)

    def _reclass(self, order: orders.Reclass) -> None:
        """A task has another class from now on. Jobs that lost it do without: all at once, they would be in others' way."""
        if order.task in self.held:
            self.held[order.task].kind = order.kind
        if order.kind is Kind.RT:
            return
        self.queues.demote(order.task)
        if self.running is not None and self.running.task == order.task:
            self.running.kind = Kind.BE

    def _bar(self, order: orders.Bar) -> None:
        (self.queues.barred.add if order.on else self.queues.barred.discard)(order.task)

    def _measure(self, order: orders.Measure) -> None:
        self._tell(measured(self, self.held[order.task], order))

    def _stop(self, _: orders.Stop) -> None:
        self._stopped = True

    # --- words ------------------------------------------------------------------------------------------

    def _read(self, sock: socket.socket) -> None:
        order, fds = orders.to_node(sock)
        if order is None:
            if sock is self._control:
                self._stopped = True
            else:  # no node before us
                self._poll.unregister(sock.fileno())
            return
        if isinstance(order, orders.Load):
            self._load(order, fds)
        else:
            for fd in fds:
                os.close(fd)
            self._does[type(order)](order)

    def _say(self) -> None:
        running = self.running
        is_rt = running is not None and running.kind is Kind.RT
        is_be = running is not None and not is_rt
        self._page.say(self.index, len(self.queues.rt) + is_rt, len(self.queues.be) + is_be)

    def _late(self, watched: Watched, took: float) -> None:
        self._overran(watched, took, running=True)

    def _overran(self, watched: Watched, took: float, *, running: bool) -> None:
        limit = watched.limit
        self._tell(
            orders.Overran(
                task=watched.task,
                number=watched.number,
                first=limit.first,
                layer=watched.layer,
                node=self.index,
                took=limit.spent + took,
                worst=limit.worst,
                running=running,
            )
        )

    def _tell(self, order: orders.Order) -> None:
        with contextlib.suppress(BrokenPipeError):  # the kernel is gone: the next look says so
            orders.send(self._control, order)


def pickled(problem: BaseException) -> bytes:
    """Return an error as bytes that can be read again; where it cannot be carried, one that says the same."""
    import cloudpickle  # noqa: PLC0415  only where something failed

    try:
        content: bytes = cloudpickle.dumps(problem)
        pickle.loads(content)  # noqa: S301  what we have just written
        if len(content) <= _LONGEST_ERROR:
            return content
    except Exception:  # noqa: BLE001  an error may hold anything
        content = b""
    said = f"{type(problem).__name__}: {problem}"[: _LONGEST_ERROR // 16]
    notes = "\n".join(getattr(problem, "__notes__", ()))[-_LONGEST_ERROR // 4 :]
    replaced = RuntimeError(said)
    replaced.add_note(notes)
    return pickle.dumps(replaced)
