"""The real-time jobs of one device: what each asked for, and what was proven of all of them (I7).

Proofs are made one after the other by a process of its own (`realtime.proof`): an analysis may take a second, and turns go on
meanwhile. What is proven goes into the scheduler with the job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from msgspec import to_builtins

from gpushare_kernel.broker.ids import client_id, session_of
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.values import JobId, Promise, SessionId
from gpushare_kernel.wire.realtime import (
    RealtimeChain,
    RealtimeLayer,
    RealtimePlacement,
    RealtimeTask,
    Stages,
)

LIMIT = 60.0
"""Seconds that a proof may take: then the job is refused."""
MAX_NODES = 4
_ELSEWHERE = (
    "its deadline cannot be promised: the real-time jobs of another notebook have divided this machine's cores into nodes of their own. "
    "Begin this one before them, or put its model into that notebook."
)
_MOST_LAYERS, _MOST_COSTS, _MOST_CHAINS = 500, 10_000, 100
CANNOT, CANNOT_BESIDE = "its deadline cannot be promised", "not every deadline could be promised"
"""How a refusal begins: of a pipeline with a deadline, and of best effort beside one."""
_PROOF = (sys.executable, "-m", "gpushare_kernel.realtime.proof")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proven:
    """What came of a proof: of the new job and of those before it, or why it was refused."""

    refused: str = ""
    promises: dict[JobId, Promise] = field(default_factory=dict)


def check_task(task: RealtimeTask) -> None:
    """Raise `BadDeclaration` where what came can be no task: the proof itself says what else is wrong."""
    check_chains(task.layers, *(chain.layers for chain in task.beside))
    if not all(isfinite(one) and one > 0 for one in (task.period, task.deadline, task.weight)):
        problem = f"period, deadline and weight of a real-time job must be above 0, and {task.period}, {task.deadline} and {task.weight} came."
        raise BadDeclaration(problem)


def check_chains(*chains: Sequence[RealtimeLayer]) -> None:
    """Raise `BadDeclaration` where these can be no chains of layers, or too much to be analysed."""
    for layers in chains:
        costs = sum(len(layer.worst) + len(layer.best) for layer in layers)
        if not 1 <= len(layers) <= _MOST_LAYERS or costs > _MOST_COSTS:
            problem = f"a pipeline has 1 to {_MOST_LAYERS} layers with at most {_MOST_COSTS} costs in all, and {len(layers)} with {costs} came."
            raise BadDeclaration(problem)
    if len(chains) > _MOST_CHAINS:
        problem = (
            f"a notebook has at most {_MOST_CHAINS} pipelines at once, and {len(chains)} came."
        )
        raise BadDeclaration(problem)


@dataclass(frozen=True, slots=True)
class _Set:
    """What is to be proven together: real-time tasks, best effort by session, and who runs where already."""

    tasks: Mapping[JobId, RealtimeTask]
    beside: Mapping[SessionId, tuple[RealtimeChain, ...]]
    configuration: Sequence[str]
    stages: Mapping[str, Stages]


class Promises:
    """Proves, and keeps what was proven. `gpus` of this machine's are given to real-time jobs of this device."""

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._set = _Set({}, {}, (), {})
        #: By how much a layer of a notebook's own best effort may take longer than said (seconds).
        self._spare = 0.0
        self._lock = asyncio.Lock()
        self._proofs: dict[JobId, asyncio.Task[None]] = {}
        #: Where each admitted job runs.
        self.placements: dict[JobId, RealtimePlacement] = {}

    def tasks_of(self, sessions: Set[SessionId]) -> list[RealtimeTask]:
        """Return the tasks of `sessions` whose deadlines are promised."""
        return [task for job, task in self._set.tasks.items() if session_of(job) in sessions]

    def begin(
        self,
        job: JobId,
        task: RealtimeTask,
        drain: float,
        then: Callable[[Proven], None],
        keeps: RealtimePlacement | None = None,
    ) -> None:
        """Prove the deadline of `job`, where it runs already (`keeps`), and call `then` with what came of it."""
        self._begin(job, lambda: self.prove(job, task, drain, keeps), then)

    def begin_beside(
        self,
        session: SessionId,
        chains: tuple[RealtimeChain, ...],
        drain: float,
        then: Callable[[Proven], None],
    ) -> None:
        """Prove that the deadlines hold with this best effort in `session`, and call `then` with what came of it."""
        self._begin(JobId(session), lambda: self.prove_beside(session, chains, drain), then)

    def _begin(
        self, name: JobId, prove: Callable[[], Awaitable[Proven]], then: Callable[[Proven], None]
    ) -> None:
        if name in self._proofs:
            problem = (
                "the proof that this notebook asked for before is still being made. Wait for it."
            )
            raise BadDeclaration(problem)

        async def proof() -> None:
            try:
                proven = await prove()
            finally:
                self._proofs.pop(name, None)
            then(proven)

        def over(task: asyncio.Task[None]) -> None:
            if self._proofs.get(name) is task:  # given up before it began: nothing of it has run
                del self._proofs[name]

        self._proofs[name] = asyncio.get_running_loop().create_task(proof())
        self._proofs[name].add_done_callback(over)

    async def prove(
        self, job: JobId, task: RealtimeTask, drain: float, keeps: RealtimePlacement | None = None
    ) -> Proven:
        """Prove the deadline of `job` beside all that are promised, with a drain of others of `drain` seconds."""
        async with self._lock:
            session, known = session_of(job), self._set
            stages, configuration = self._staying(session, task.beside), known.configuration
            if keeps is not None:
                if configuration and [*keeps.configuration] != [*configuration]:
                    return Proven(refused=_ELSEWHERE)
                configuration = keeps.configuration
                there = {_beside(session, name): one for name, one in keeps.beside.items()}
                stages |= {str(job): keeps.stages, **there}
            asked = _Set(
                {**known.tasks, job: task},
                {**known.beside, session: task.beside},
                configuration,
                stages,
            )
            return await self._proven(asked, drain, session, job)

    async def prove_beside(
        self, session: SessionId, chains: tuple[RealtimeChain, ...], drain: float
    ) -> Proven:
        """Prove that all deadlines hold with this best effort in `session`; where it has none, nothing is to be proven."""
        async with self._lock:
            known = self._set
            if not any(session_of(job) == session for job in known.tasks):
                return Proven()
            stages = self._staying(session, chains)
            asked = replace(known, beside={**known.beside, session: chains}, stages=stages)
            return await self._proven(asked, drain, session)

    def _staying(self, session: SessionId, chains: tuple[RealtimeChain, ...]) -> dict[str, Stages]:
        """Return where those run who keep their nodes; of the best effort of `session`, what is as it was."""
        known = self._set
        gone = {_beside(session, one.name) for one in known.beside.get(session, ()) if one not in chains}  # fmt: skip
        return {name: stages for name, stages in known.stages.items() if name not in gone}

    async def _proven(
        self, asked: _Set, drain: float, session: SessionId, job: JobId | None = None
    ) -> Proven:
        """Prove a set, and keep it where it holds. `session` is whose notebook asks, `job` the newcomer's id if it is one."""
        several = len({session_of(job) for job in asked.tasks}) > 1
        if several and len(asked.configuration) > 1:
            return Proven(refused=_ELSEWHERE)
        found = await self._ask(asked, drain, 1 if several else MAX_NODES)
        if "refused" in found:
            return Proven(refused=_told(str(found["refused"]), asked, session, job))
        # Who left meanwhile is gone: nobody else changes what is kept while a proof is made.
        stages = {
            one: tuple((node, first, after) for node, first, after in at)
            for one, at in found["stages"].items()
        }
        asked = replace(asked, configuration=tuple(found["configuration"]), stages=stages)
        self._set = asked = _only(asked, {*self._set.tasks, *([job] if job else [])})
        # What deadlines leave beyond that drain is for best effort of their own notebooks as well, where there is any.
        spare = max(0.0, found["absorbs"] - drain) / 2 if any(asked.beside.values()) else 0.0
        promises = {
            one: Promise(
                period=task.period,
                deadline=task.deadline,
                bound=found["bounds"][str(one)],
                drain=drain,
                absorbs=found["absorbs"] - spare,
                weight=task.weight,
            )
            for one, task in asked.tasks.items()
        }
        self._spare = spare
        self.placements = {job: self._placement(job, promises) for job in promises}
        return Proven(promises=promises)

    def _placement(self, job: JobId, promises: Mapping[JobId, Promise]) -> RealtimePlacement:
        known, session, promise = self._set, session_of(job), promises[job]
        mine = {
            client_id(one): each for one, each in promises.items() if session_of(one) == session
        }
        return RealtimePlacement(
            configuration=tuple(known.configuration),
            stages=known.stages[str(job)],
            bound=promise.bound,
            absorbs=promise.absorbs,
            beside={
                chain.name: known.stages[_beside(session, chain.name)]
                for chain in known.beside.get(session, ())
            },
            bounds={one: each.bound for one, each in mine.items()},
            spare=self._spare,
        )

    def proves(self, job: JobId) -> bool:
        """Tell whether the deadline of `job` is being proven."""
        return job in self._proofs

    async def close(self) -> None:
        """Give up what is being proven."""
        running = [*self._proofs.values()]
        for proof in running:
            proof.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def forget(self, job: JobId) -> None:
        """`job` is over, or given up."""
        if job in self._proofs:
            self._proofs[job].cancel()
        self.placements.pop(job, None)
        self._set = _only(self._set, {one for one in self._set.tasks if one != job})

    async def _ask(self, asked: _Set, drain: float, nodes: int) -> dict[str, Any]:
        best_effort = [
            _plain(_beside(session, chain.name), chain)
            for session, chains in asked.beside.items()
            for chain in chains
        ]
        question = {
            "taskset": {
                "cpus": len(os.sched_getaffinity(0)),
                "gpus": self._gpus,
                "max_nodes": max(nodes, self._gpus),
                "mode": "layer",
                "drain": {"gpu": drain, "cpu": drain},
                "tasks": [*(_plain(str(job), task) for job, task in asked.tasks.items()), *best_effort],
            },
            "configuration": asked.configuration,
            "stages": asked.stages,
        }  # fmt: skip
        try:
            async with asyncio.timeout(LIMIT):
                return await _run(json.dumps(question).encode())
        except TimeoutError:
            return {
                "refused": f"its deadline cannot be promised: the proof takes longer than {LIMIT:g} s. Use fewer layers."
            }


def _only(known: _Set, jobs: Set[JobId]) -> _Set:
    """Return what is left with these jobs alone."""
    tasks = {one: task for one, task in known.tasks.items() if one in jobs}
    if not tasks:
        return _Set({}, {}, (), {})
    sessions = {session_of(one) for one in tasks}
    beside = {one: chains for one, chains in known.beside.items() if one in sessions}
    names = {str(one) for one in tasks} | {
        _beside(session, chain.name) for session, chains in beside.items() for chain in chains
    }
    stages = {name: at for name, at in known.stages.items() if name in names}
    return _Set(tasks, beside, known.configuration, stages)


def _beside(session: SessionId, name: str) -> str:
    """Return what a best-effort chain is called in a proof."""
    return f"{session}|{name}"


def _told(why: str, asked: _Set, session: SessionId, job: JobId | None) -> str:
    """Return why something is refused, as its user may read it: by the names in that notebook, and nobody else's (I9).

    Without a newcomer that has a deadline (`job`) it is best effort that is refused, for the sake of others' deadlines.
    """
    names = {str(one): (session_of(one), task.name) for one, task in asked.tasks.items()}
    for other, chains in asked.beside.items():
        names |= {_beside(other, chain.name): (other, chain.name) for chain in chains}
    for one in sorted(names, key=len, reverse=True):  # one may begin as another does
        whose, name = names[one]
        said = f"pipeline {name}" if whose == session else "a pipeline of another notebook"
        why = why.replace(f"task {one}", said).replace(one, said)
    return why if job is not None else why.replace(CANNOT, CANNOT_BESIDE, 1)


def _plain(name: str, task: RealtimeTask | RealtimeChain) -> dict[str, Any]:
    """Return a task as the analysis reads it; names are ours, people's need not be unique."""
    layers = [
        {
            **layer.worst,
            **({"min": layer.best} if layer.best else {}),
            "transfer": layer.transfer,
            "name": layer.name,
        }
        for layer in task.layers
    ]
    if isinstance(task, RealtimeChain):
        return {"name": name, "class": "BE", "layers": layers}
    told = to_builtins(task)
    times = {key: told[key] for key in ("period", "deadline")}
    return {
        "name": name,
        "class": "RT",
        **times,
        "weight": task.weight,
        "jitter": task.jitter,
        "layers": layers,
    }


async def _run(question: bytes) -> dict[str, Any]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*_PROOF, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        said, problem = await process.communicate(question)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        _logger.exception("a proof failed", extra={"said": problem.decode(errors="replace")})
        return {
            "refused": "its deadline cannot be promised: the proof failed; the broker's log says how. Please report it."
        }
    return found
