"""The pipeline on a virtual clock, with everything that may go wrong going wrong: what bounds are held against (docs/realtime.md, section 4).

Nodes with a queue for RT, by weight, and one for BE, first come first served; sporadic releases, aligned at random so that jobs
meet on a node; times between least and worst; BE that always has a job and moves forward to nodes without RT; drains of others.
What it observes is never above a bound, and how close it comes says how much a bound overstates. Only the seed is random.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from gpushare_kernel.realtime.allocation import Placed
from gpushare_kernel.realtime.model import NodeType, Stage
from gpushare_kernel.realtime.releases import Episode, plan
from gpushare_kernel.realtime.taskset import Mode, Taskset
from gpushare_kernel.realtime.work import SECOND, Work, up, works

IN_FLIGHT = 2
"""Jobs that each BE task has under way at all times."""


@dataclass(slots=True)
class Job:
    """One job: what it has done, and how it behaves (`part` of each layer's time between least and worst)."""

    work: Work
    released: int
    route: Sequence[int]
    part: Callable[[], float]
    layer: int = 0
    node: int = -1
    order: int = 0
    fresh: bool = True


@dataclass(slots=True)
class Node:
    """One node: who runs, who waits."""

    gpu: bool
    drain: int
    running: Job | None = None
    realtime: list[tuple[float, int, Job]] = field(default_factory=list)
    best_effort: deque[Job] = field(default_factory=deque)
    #: Whether others may be on it: RT was not the last to run.
    taken: bool = True


class Simulation:
    """One run."""

    def __init__(
        self,
        taskset: Taskset,
        configuration: Sequence[NodeType],
        placed: Mapping[str, Placed],
        seed: int,
    ) -> None:
        self.chance = Random(seed)  # noqa: S311  a seed makes the run, nothing is secret
        self.configuration = configuration
        self.works = works(taskset)
        self.whole = taskset.mode is Mode.STAGE
        gpu, cpu = up(taskset.drain.gpu), up(taskset.drain.cpu)
        self.nodes = [Node(kind.gpus > 0, gpu if kind.gpus else cpu) for kind in configuration]
        self.routes = {work.name: _route(placed[work.name]) for work in self.works}
        self.observed = {work.name: 0 for work in self.works if work.realtime}
        self.done = dict.fromkeys(self.routes, 0)
        self.moved = self.stayed = 0
        self.now = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._free = {work.name: 0 for work in self.works if work.realtime}

    def run(self, seconds: float) -> None:
        """Let so much virtual time pass; jobs that were released are done."""
        end = int(seconds * SECOND)
        for work in self.works:
            if not work.realtime:
                for _ in range(IN_FLIGHT):
                    self._release(work, self.now, lambda: 1.0)
        self._episode()
        while self._queue and (self.now < end or self._pending):
            self.now, _, then = heappop(self._queue)
            then()
            if self.now < end and not self._pending:
                self._episode()

    @property
    def _pending(self) -> bool:
        return any(count > 0 for count in self._free.values())

    def _at(self, when: int, then: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._queue, (when, self._order, then))

    def _episode(self) -> None:
        """Release a few jobs of each task, by one of the plans; the next episode comes when all are done."""
        realtime = [work for work in self.works if work.realtime]
        episode: Episode = plan(self.chance, realtime, self.routes, self.configuration, self.now)
        for work, releases in zip(realtime, episode.releases, strict=True):
            self._free[work.name] += len(releases)
            for release in releases:
                part = episode.parts(self.chance)
                late = self.chance.choice((0, work.jitter, self.chance.randint(0, work.jitter)))
                self._at(release + late, _bind(self._release, work, release, part))

    def _release(self, work: Work, released: int, part: Callable[[], float]) -> None:
        job = Job(work, released, self.routes[work.name], part)
        self._arrive(job, job.route[0])

    def _arrive(self, job: Job, node: int) -> None:
        self._order += 1
        job.order, job.node, job.fresh = self._order, node, True
        self._wait(job)
        self._go_on(node)

    def _wait(self, job: Job) -> None:
        """Queue it by weight, then by when it came to the node; a BE job that was interrupted comes first again."""
        node = self.nodes[job.node]
        if job.work.realtime:
            heappush(node.realtime, (-job.work.weight, job.order, job))
        elif job.fresh:
            node.best_effort.append(job)
        else:
            node.best_effort.appendleft(job)

    def _go_on(self, place: int) -> None:
        node = self.nodes[place]
        if node.running is not None:
            return
        if node.realtime:
            job = heappop(node.realtime)[2]
            # Others are off the node before RT runs: once, as they come back only when RT has nothing to do.
            hold = self._within(node.drain) if node.taken else 0
            node.taken = False
        elif node.best_effort:
            job, hold = node.best_effort.popleft(), 0
            node.taken = True
        else:
            node.taken = True
            return
        node.running = job
        self._at(self.now + hold + self._cost(job), lambda: self._end(place))

    def _within(self, most: int) -> int:
        return self.chance.choice((most, most, self.chance.randint(0, most)))

    def _cost(self, job: Job) -> int:
        """What its next piece takes: a layer, or in mode `stage` all of an RT job's layers here."""
        kind = self.configuration[job.node]
        table = job.work.on(kind)
        after = self._stage_end(job) if self.whole and job.work.realtime else job.layer + 1
        least = table.total_least[after] - table.total_least[job.layer]
        worst = table.total[after] - table.total[job.layer]
        if job.fresh:
            worst += job.work.queue + (job.work.transfer[job.layer] if self._crosses(job) else 0)
            job.fresh = False
        return least + round(job.part() * (worst - least))

    def _stage_end(self, job: Job) -> int:
        after = job.layer
        while after < job.work.layers and job.route[after] == job.node:
            after += 1
        return after

    def _crosses(self, job: Job) -> bool:
        if not job.work.realtime:
            return True
        before = job.layer > 0 and self.nodes[job.route[job.layer - 1]].gpu
        return self.nodes[job.node].gpu or before

    def _end(self, place: int) -> None:
        node = self.nodes[place]
        job = node.running
        assert job is not None  # noqa: S101  it was set when this end was
        node.running = None
        whole = self.whole and job.work.realtime
        job.layer = self._stage_end(job) if whole else job.layer + 1
        if job.layer == job.work.layers:
            self._done(job)
        else:
            to = self._next_node(job)
            if to == place:
                self._wait(job)
            else:
                self._arrive(job, to)
        self._go_on(place)

    def _next_node(self, job: Job) -> int:
        """RT goes where it is placed. BE never goes back; it may stay instead, or go forward to a node that has no RT."""
        if job.work.realtime:
            return job.route[job.layer]
        planned = max(job.node, job.route[job.layer])
        choices = [planned] if self._can_end(job, planned) else []
        if self._can_end(job, job.node):
            choices.append(job.node)
        ahead = [n for n in range(job.node + 1, len(self.nodes)) if not self.nodes[n].realtime]
        choices += [n for n in ahead if self._can_end(job, n)]
        chosen = self.chance.choice(choices)
        self.moved += chosen > planned
        self.stayed += chosen < planned
        return chosen

    def _can_end(self, job: Job, node: int) -> bool:
        """Whether it can be done from `node` on, going only where it is placed or later."""
        for layer in range(job.layer, job.work.layers):
            if layer > job.layer:
                node = max(node, job.route[layer])
            if job.work.on(self.configuration[node]).start[layer + 1] > layer:
                return False
        return True

    def _done(self, job: Job) -> None:
        name = job.work.name
        self.done[name] += 1
        if job.work.realtime:
            self.observed[name] = max(self.observed[name], self.now - job.released)
            self._free[name] -= 1
        else:
            self._release(job.work, self.now, job.part)


def simulate(
    taskset: Taskset,
    configuration: Sequence[NodeType],
    placement: Mapping[str, Sequence[Stage]],
    *,
    seconds: float,
    seed: int = 0,
) -> dict[str, float]:
    """Return for each RT task the longest time from nominal release to end that was observed (seconds)."""
    placed = {
        name: tuple((stage.node, stage.first, stage.last + 1) for stage in where)
        for name, where in placement.items()
    }
    run = Simulation(taskset, configuration, placed, seed)
    run.run(seconds)
    return {name: longest / SECOND for name, longest in run.observed.items()}


def _route(placed: Placed) -> list[int]:
    return [node for node, first, after in placed for _ in range(first, after)]


def _bind(
    release: Callable[[Work, int, Callable[[], float]], None],
    work: Work,
    released: int,
    part: Callable[[], float],
) -> Callable[[], None]:
    return lambda: release(work, released, part)
