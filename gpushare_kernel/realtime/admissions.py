"""Who decides on deadlines: the broker, for all kernels of a machine; without one, this process for its own."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gpushare_kernel.client.api import get_session
from gpushare_kernel.core.errors import BrokerUnavailable, FrameTooLong, GpushareError, Refused
from gpushare_kernel.core.values import JobId
from gpushare_kernel.realtime.model import Kind, NodeType, Stage, Task
from gpushare_kernel.realtime.placement import Admission, Alone, Placement
from gpushare_kernel.realtime.proof import CANNOT, CANNOT_BESIDE, OVERHEAD, Proof, prove
from gpushare_kernel.realtime.taskset import Taskset
from gpushare_kernel.wire.messages import (
    GetSnapshot,
    RealtimeBeside,
    RealtimeDone,
    RealtimeGrid,
    RealtimePlaced,
    RealtimeReleased,
    SnapshotReply,
    Submit,
)
from gpushare_kernel.wire.realtime import (
    RealtimeChain,
    RealtimeLayer,
    RealtimePlacement,
    RealtimeTask,
)

if TYPE_CHECKING:
    from gpushare_kernel.client.job import Job
    from gpushare_kernel.client.session import Session

MAX_NODES = 4
PROOF = 90.0
"""Seconds in which the broker says whether deadlines hold beside one more pipeline: its own limit for a proof, and those before it."""
_LOOK = 2.0
"""Seconds in which the broker says what is promised now."""
_numbers = itertools.count(1)


def here() -> Admission:
    """Return who decides in this process: its session's broker where there is one."""
    session = get_session()
    if session is None:
        return Own()
    try:
        session.wait_attached()
    except BrokerUnavailable:
        return Own()
    return AtBroker(session)


def node_types(cores: int, gpus: int) -> Sequence[NodeType]:
    """Return the few types worth measuring, each takes seconds: all cores, half of them, one; with the GPU, all and half."""
    half = max(1, cores // 2)
    if gpus:
        return tuple(sorted({NodeType(cores, 1), NodeType(half, 1), NodeType(half)}))
    return tuple(sorted({NodeType(cores), NodeType(half), NodeType(1)}))


class Own(Alone):
    """Proves by itself: deadlines hold as far as nobody else works on these cores. Nobody stands aside for them."""

    def types(self, cores: int, gpus: int) -> Sequence[NodeType]:
        """Return the node types that may be used on such a machine."""
        return node_types(cores, gpus)

    def admit(self, task: Task, others: Sequence[Task]) -> Placement:
        """Return where all run, placed anew; Refused where a deadline would not be certain, with the numbers."""
        tasks = (*others, task)
        if not any(one.kind is Kind.RT for one in tasks):
            return _whole_machine(tasks)
        found = prove(_taskset(tasks), (), {})
        if isinstance(found, str):
            raise Refused(_refused_text(task, found))
        return _placement(found)


class AtBroker:
    """Asks the broker, which proves, and has everybody else stand aside while a job is released and not done."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, Task] = {}
        self._chains: dict[str, RealtimeChain] = {}
        self._lock = threading.Lock()
        self._placements: dict[str, RealtimePlacement] = {}
        #: Where all run by the latest placement: who is promised nothing any more runs on there.
        self._stages: Mapping[str, Sequence[Stage]] = {}

    def types(self, cores: int, gpus: int) -> Sequence[NodeType]:
        """Return the node types that may be used on such a machine; a GPU is the session's own only."""
        attached = self._session.attached
        return node_types(cores, gpus if attached is not None and attached.kind == "cuda" else 0)

    def admit(self, task: Task, others: Sequence[Task]) -> Placement:
        """Return where all run: those before keep their nodes. Best effort goes wherever its layers run.

        Raises
        ------
        Refused
            Where a deadline would not be certain, with the numbers.
        """
        tasks = (*others, task)
        chains = {one.name: _chain(one) for one in tasks if one.kind is Kind.BE}
        try:
            if task.kind is Kind.RT:
                self._promise(task, tuple(chains.values()))
            elif self._jobs:
                self._ask_beside(task, tuple(chains.values()))
        except FrameTooLong:
            msg = f"pipeline {task.name}: the pipelines of this notebook have more layers than can be proven together. Have it be one piece: [model] instead of its layers."
            raise Refused(msg) from None
        with self._lock:
            self._chains = chains
        try:
            placement = self._placed(tasks)
        except BaseException:
            self.leaves(task)  # else it would stay promised, with nobody to end that
            raise
        self._stages = placement.stages
        return placement

    def leaves(self, task: Task) -> None:
        """Its deadline is promised no more; or it holds up nobody's any more."""
        with self._lock:
            job = self._jobs.pop(task.name, None)
            self._placements.pop(task.name, None)
            self._tasks.pop(task.name, None)
            was_beside = self._chains.pop(task.name, None) is not None
            left = tuple(self._chains.values())
            still = bool(self._jobs)
        if was_beside and still:
            self._session.post(RealtimeBeside(left))
        if job is not None:
            job.leave()

    def promised(self) -> Mapping[str, float | None]:
        """Return what is promised now: other notebooks' deadlines change it, and a broker that came back may promise no more.

        Nothing where no broker answers: what it promised before is as good as ever.
        """
        with self._lock:
            names = {str(job.id): name for name, job in self._jobs.items()}
        if not names:
            return {}
        try:
            standing = self._session.request(GetSnapshot(), SnapshotReply, _LOOK).snapshot.rt
        except GpushareError:
            return {}
        mine = self._session.attached
        there = [one for one in standing if mine is not None and one.session == mine.session]
        bounds = {one.job.rpartition("/")[2]: one.bound for one in there}
        return {name: bounds.get(job) for job, name in names.items()}

    def grid(self, task: Task, first: float | None) -> None:
        """Its jobs are released at `first` and every period from then on (None: nobody knows when)."""
        job = self._jobs.get(task.name)
        if job is not None:
            job.first = first
            self._session.note(RealtimeGrid(job.id, first))

    def released(self, task: Task) -> None:
        """A job is released now."""
        job = self._jobs.get(task.name)
        if job is not None:
            self._session.note(RealtimeReleased(job.id))

    def done(self, task: Task, left: int) -> None:
        """One is done, and `left` that were released are not."""
        job = self._jobs.get(task.name)
        if job is not None:
            self._session.note(RealtimeDone(job.id, left))

    def _ask_beside(self, task: Task, chains: tuple[RealtimeChain, ...]) -> None:
        """Have the deadlines proven with one more best-effort pipeline."""
        try:
            placed = self._session.request(RealtimeBeside(chains), RealtimePlaced, timeout=PROOF)
        except Refused as problem:
            msg = f"pipeline {task.name}: beside it {problem}"
            raise Refused(msg) from None
        with self._lock:
            for name, job in self._jobs.items():
                job.placement = placed.placements.get(job.id)
                job.realtime = _told(self._tasks[name], chains)
                if job.placement is None:  # a broker that came back could not promise it again
                    self._placements.pop(name, None)
                else:
                    self._placements[name] = job.placement

    def _promise(self, task: Task, chains: tuple[RealtimeChain, ...]) -> None:
        submit = Submit(
            JobId(f"rt-{os.getpid()}-{next(_numbers)}"),
            task.name,
            persistent=0,
            ephemeral=0,
            realtime=_told(task, chains),
        )
        job = self._session.submit(submit)
        placement = job.placement
        if placement is None:
            job.leave(failed=True)
            msg = f"pipeline {task.name}: the broker is of a version that promises no deadlines. Update it, or end it: jupyter gpushare stop."
            raise Refused(msg)
        job.realtime = submit.realtime
        with self._lock:
            self._jobs[task.name], self._tasks[task.name] = job, task
            self._placements[task.name] = placement

    def _placed(self, tasks: Iterable[Task]) -> Placement:
        with self._lock:
            known, jobs = dict(self._placements), dict(self._jobs)
        tasks = tuple(tasks)
        if not known:
            return _whole_machine(tasks)
        latest = [*known.values()][-1]
        nodes = tuple(NodeType.parse(one) for one in latest.configuration)
        stages = {name: _stages(one.stages) for name, one in known.items()}
        stages |= {name: _stages(one) for name, one in latest.beside.items()}
        bounds = {name: latest.bounds[job.id] for name, job in jobs.items() if job.id in latest.bounds}  # fmt: skip
        there = {task.name: stages.get(task.name) or self._stays(task, nodes) for task in tasks}
        return Placement(nodes, there, bounds, latest.spare)

    def _stays(self, task: Task, nodes: Sequence[NodeType]) -> tuple[Stage, ...]:
        """Return where a task runs whose deadline a broker that came back could not promise again."""
        known = tuple(self._stages.get(task.name, ()))
        layers = [(one, task.layers[n]) for one in known for n in range(one.first, one.last + 1)]
        if not known or any(one.node >= len(nodes) or nodes[one.node] not in layer.worst for one, layer in layers):  # fmt: skip
            msg = f"pipeline {task.name} is promised no deadline since the broker has restarted, and has no place on the nodes of the others. Close it, and open it again."
            raise Refused(msg)
        return known


def _taskset(tasks: Sequence[Task]) -> Taskset:
    from gpushare_kernel.realtime import host  # noqa: PLC0415 - where torch is asked

    return Taskset(
        cpus=host.cores(),
        gpus=min(1, host.gpus()),
        max_nodes=MAX_NODES,
        tasks=tuple(tasks),
        overhead=OVERHEAD,
    )


def _refused_text(task: Task, why: str) -> str:
    """Return why `task` is refused by a proof of this notebook's pipelines alone: best effort is, for the sake of the others."""
    why = why.replace("task ", "pipeline ")
    if task.kind is Kind.RT:
        return f"pipeline {task.name}: {why}"
    return f"pipeline {task.name}: beside it {why.replace(CANNOT, CANNOT_BESIDE, 1)}"


def _placement(found: Proof) -> Placement:
    nodes = tuple(NodeType.parse(one) for one in found.configuration)
    stages = {name: _stages(placed) for name, placed in found.stages.items()}
    return Placement(nodes, stages, found.bounds, found.absorbs)


def _stages(placed: Iterable[Sequence[int]]) -> tuple[Stage, ...]:
    return tuple(Stage(node, first, after - 1) for node, first, after in placed)


def _whole_machine(tasks: Sequence[Task]) -> Placement:
    """Return one node that can run all layers of all: the largest that was measured."""
    kinds = set.intersection(*(set(layer.worst) for task in tasks for layer in task.layers))
    if not kinds:
        msg = "there is no node type on which all layers were measured. Measure them again."
        raise Refused(msg)
    kind = max(kinds, key=lambda one: (one.gpus, one.cpus))
    return Placement((kind,), {one.name: (Stage(0, 0, len(one.layers) - 1),) for one in tasks})


def _told(task: Task, chains: tuple[RealtimeChain, ...]) -> RealtimeTask:
    """Return a task as the broker reads it."""
    return RealtimeTask(
        name=task.name,
        period=task.period or 0.0,
        deadline=task.deadline or 0.0,
        layers=_layers(task),
        weight=task.weight,
        jitter=task.jitter,
        beside=chains,
    )


def _chain(task: Task) -> RealtimeChain:
    return RealtimeChain(task.name, _layers(task))


def _layers(task: Task) -> tuple[RealtimeLayer, ...]:
    return tuple(
        RealtimeLayer(
            worst={str(kind): seconds for kind, seconds in layer.worst.items()},
            best={str(kind): seconds for kind, seconds in layer.best.items()},
            transfer=layer.transfer,
            name=layer.name,
        )
        for layer in task.layers
    )
