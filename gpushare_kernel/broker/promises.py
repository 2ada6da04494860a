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
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from msgspec import to_builtins

from gpushare_kernel.broker.ids import session_of
from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.core.values import JobId, Promise
from gpushare_kernel.wire.realtime import RealtimePlacement, RealtimeTask

LIMIT = 60.0
"""Seconds that a proof may take: then the job is refused."""
MAX_NODES = 4
_ELSEWHERE = (
    "its deadline cannot be promised: the real-time jobs of another notebook have divided this machine's cores into nodes of their own. "
    "Begin this one before them, or put its model into that notebook."
)
_MOST_LAYERS, _MOST_COSTS = 500, 10_000
_PROOF = (sys.executable, "-m", "gpushare_kernel.realtime.proof")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proven:
    """What came of a proof: of the new job and of those before it, or why it was refused."""

    refused: str = ""
    promises: dict[JobId, Promise] = field(default_factory=dict)


def check_task(task: RealtimeTask) -> None:
    """Raise `BadDeclaration` where what came can be no task: the proof itself says what else is wrong."""
    costs = sum(len(layer.worst) + len(layer.best) for layer in task.layers)
    if not 1 <= len(task.layers) <= _MOST_LAYERS or costs > _MOST_COSTS:
        problem = f"a real-time job has 1 to {_MOST_LAYERS} layers with at most {_MOST_COSTS} costs in all, and {len(task.layers)} with {costs} came."
        raise BadDeclaration(problem)
    if not all(isfinite(one) and one > 0 for one in (task.period, task.deadline, task.weight)):
        problem = f"period, deadline and weight of a real-time job must be above 0, and {task.period}, {task.deadline} and {task.weight} came."
        raise BadDeclaration(problem)


class Promises:
    """Proves, and keeps what was proven. `gpus` of this machine's are given to real-time jobs of this device."""

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._tasks: dict[JobId, RealtimeTask] = {}
        self._stages: dict[str, Any] = {}
        self._configuration: list[str] = []
        self._lock = asyncio.Lock()
        self._proofs: dict[JobId, asyncio.Task[None]] = {}
        #: Where each admitted job runs.
        self.placements: dict[JobId, RealtimePlacement] = {}

    def begin(
        self,
        job: JobId,
        task: RealtimeTask,
        drain: float,
        then: Callable[[Proven], None],
        keeps: RealtimePlacement | None = None,
    ) -> None:
        """Prove the deadline of `job`, where it runs already (`keeps`), and call `then` with what came of it."""

        async def proof() -> None:
            try:
                proven = await self.prove(job, task, drain, keeps)
            finally:
                self._proofs.pop(job, None)
            then(proven)

        self._proofs[job] = asyncio.get_running_loop().create_task(proof())

    async def prove(
        self, job: JobId, task: RealtimeTask, drain: float, keeps: RealtimePlacement | None = None
    ) -> Proven:
        """Prove the deadline of `job` beside all that are promised, with a drain of others of `drain` seconds."""
        async with self._lock:
            several = {session_of(one) for one in (*self._tasks, job)}
            alone = len(several) == 1
            configuration = [*keeps.configuration] if keeps else self._configuration
            if self._configuration and configuration != self._configuration:
                return Proven(refused=_ELSEWHERE)
            if not alone and len(configuration) > 1:
                return Proven(refused=_ELSEWHERE)
            found = await self._ask(job, task, drain, MAX_NODES if alone else 1, keeps)
            if "refused" in found:
                return Proven(refused=self._told(str(found["refused"]), job, task))
            self._tasks[job] = task
            self._stages = dict(found["stages"])
            self._configuration = list(found["configuration"])
            promises = {
                one: Promise(
                    period=t.period,
                    deadline=t.deadline,
                    bound=found["bounds"][str(one)],
                    drain=drain,
                    absorbs=found["absorbs"],
                    weight=t.weight,
                )
                for one, t in self._tasks.items()
            }
            placement = RealtimePlacement(
                configuration=tuple(self._configuration),
                stages=tuple((node, first, after) for node, first, after in self._stages[str(job)]),
                bound=promises[job].bound,
                absorbs=promises[job].absorbs,
            )
            self.placements[job] = placement
            return Proven(promises=promises)

    def _told(self, why: str, job: JobId, task: RealtimeTask) -> str:
        """Return why a job is refused, as its user may read it: by the name it gave, and nobody else's (I9)."""
        why = why.replace(f"task {job}", f"task {task.name}").replace(str(job), task.name)
        for other in self._tasks:
            why = why.replace(f"task {other}", str(other)).replace(
                str(other), "another real-time job"
            )
        return why

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
        if self._tasks.pop(job, None) is not None:
            self._stages.pop(str(job), None)
        if not self._tasks:
            self._configuration = []

    async def _ask(
        self,
        job: JobId,
        task: RealtimeTask,
        drain: float,
        nodes: int,
        keeps: RealtimePlacement | None,
    ) -> dict[str, Any]:
        tasks = {**self._tasks, job: task}
        question = {
            "taskset": {
                "cpus": len(os.sched_getaffinity(0)),
                "gpus": self._gpus,
                "max_nodes": max(nodes, self._gpus),
                "mode": "layer",
                "drain": {"gpu": drain, "cpu": drain},
                "tasks": [_plain(str(one), each) for one, each in tasks.items()],
            },
            "new": str(job),
            "configuration": self._configuration if keeps is None else keeps.configuration,
            "stages": self._stages,
            "keeps": None if keeps is None else keeps.stages,
        }
        try:
            async with asyncio.timeout(LIMIT):
                return await _run(json.dumps(question).encode())
        except TimeoutError:
            return {
                "refused": f"its deadline cannot be promised: the proof takes longer than {LIMIT:g} s. Use fewer layers."
            }


def _plain(name: str, task: RealtimeTask) -> dict[str, Any]:
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
