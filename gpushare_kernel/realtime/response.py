"""How late a job can be done: the end-to-end test of Eq. (5) of Xiang and Kim (RTSS 2019), reconstructed (docs/realtime.md, section 2).

The published equation could not be read. This is the holistic analysis (Tindell and Clark 1994): what a job may be late at one
node is jitter at the next. Each node is analysed as a non-preemptive processor with jitter and blocking (Davis, Burns, Bril
and Lukkien 2007; last pieces: Yao, Buttazzo and Bertogna). All jobs pass the nodes in one order, so one pass over the nodes, in
that order, is the fixed point. Adding up the nodes' response times without that jitter is unsafe, and is done nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpushare_kernel.realtime.allocation import Board, Placed
from gpushare_kernel.realtime.taskset import Mode, Taskset
from gpushare_kernel.realtime.work import Work, up

FAR = 100
"""Busy for so many periods of a task, a node counts as overloaded: no bound is looked for beyond."""
BEYOND = 10
"""A bound of more deadlines than this is none."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a task asks of one node: `cost` each `period`, each time late by `jitter` at most (nanoseconds).

    `longest` and `last` are of its pieces that nothing interrupts; `least` is what all of it takes at least.
    """

    cost: int
    period: int
    jitter: int
    last: int
    longest: int
    least: int = 0


def starts(me: Load, higher: Sequence[Load], blocking: int) -> Iterator[int]:
    """Yield how long after the busy window's begin the last piece of job 0, 1, ... starts at the latest, for each job in it.

    w(q) = B + (q + 1) C - F + sum over higher h of (floor((w(q) + J_h) / T_h) + 1) C_h, the least such. Nothing is
    yielded where the window would be longer than `FAR` periods.
    """
    tasks = [(load.cost, load.period, load.jitter) for load in (me, *higher)]
    if sum(cost / period for cost, period, _ in tasks) >= 1:
        return
    window = _window(tasks, blocking, FAR * me.period)
    others, at = tasks[1:], 0
    for job in range(-(-(window + me.jitter) // me.period) if window else 0):
        base = blocking + (job + 1) * me.cost - me.last
        at = max(at, base)
        while True:
            new = base
            for cost, period, jitter in others:
                new += ((at + jitter) // period + 1) * cost
            if new <= at:
                break
            at = new
        yield at


def _window(tasks: Sequence[tuple[int, int, int]], blocking: int, most: int) -> int:
    """Return L = B + sum of ceil((L + J) / T) C, the least such above 0; 0 where it is above `most`."""
    window = blocking + sum(cost for cost, _, _ in tasks)
    while window <= most:
        new = blocking
        for cost, period, jitter in tasks:
            new += -(-(window + jitter) // period) * cost
        if new <= window:
            return window
        window = new
    return 0


def delay(me: Load, higher: Sequence[Load], blocking: int, most: int | None = None) -> int | None:
    """Return the most that a node adds to how late a job is: max over q of w(q) + F - q T.

    None where there is no bound, or where it is above `most`.
    """
    found = None
    for job, start in enumerate(starts(me, higher, blocking)):
        late = start + me.last - job * me.period
        found = late if found is None else max(found, late)
        if most is not None and found > most:
            return None
    return found


_OnNode = tuple[int, int, int]
"""A stage on its node: its first layer, the layer after its last, and what it takes in all."""


class Pipeline:
    """All tasks as they are placed on one configuration, and who may hold up whom on each node."""

    def __init__(
        self,
        taskset: Taskset,
        works: Sequence[Work],
        board: Board,
        placed: Mapping[str, Placed],
    ) -> None:
        self.board, self.placed = board, placed
        self.whole = taskset.mode is Mode.STAGE
        self.realtime = [work for work in works if work.realtime]
        self._best_effort = [work for work in works if not work.realtime]
        gpu, cpu = up(taskset.drain.gpu), up(taskset.drain.cpu)
        self._drain = [gpu if on_gpu else cpu for on_gpu in board.on_gpu]
        self._on: list[list[tuple[Work, _OnNode]]] = [[] for _ in board.configuration]
        for work in self.realtime:
            stages = placed[work.name]
            for stage, cost in zip(stages, board.costs(work, stages), strict=True):
                self._on[stage[0]].append((work, (stage[1], stage[2], cost)))

    def blocking(self, node: int) -> int:
        """Return the longest piece of best effort that may be on a node.

        BE may wait where it is for a node that is busy, or go forward, and runs whatever it can where it stands: each of its
        layers may be on any node from its first one on.
        """
        return max(
            (
                work.queue + longest
                for work in self._best_effort
                if self.placed[work.name][0][0] <= node
                and (longest := self.board.tables(work)[node].longest)
            ),
            default=0,
        )

    def load(self, work: Work, stage: _OnNode, node: int, jitter: int) -> Load:
        """Return what one stage asks of its node."""
        first, after, cost = stage
        table = self.board.tables(work)[node]
        least = table.total_least[after] - table.total_least[first]
        if self.whole:
            return Load(cost, work.period, jitter, cost, cost, least)
        worst = table.worst[first:after]
        worst[0] += cost - sum(worst)  # what is brought or queued comes before the first layer
        return Load(cost, work.period, jitter, worst[-1], max(worst), least)

    def bounds(self) -> dict[str, int | None]:
        """Return for each RT task by when it is done, in nanoseconds after its nominal release; None where nothing bounds it."""
        late: dict[str, int | None] = {work.name: work.jitter for work in self.realtime}
        early = dict.fromkeys(late, 0)
        for node in range(len(self._on)):
            self._pass(node, late, early)
        return late

    def objective(self, late: Mapping[str, int | None]) -> float:
        """Return W, what Algorithm 1 makes least: the sum over RT tasks of weight / |RT| * bound / deadline."""
        parts = (
            work.weight * (late[work.name] or 0) / work.deadline / len(self.realtime)
            for work in self.realtime
        )
        return sum(parts)

    def loads(self, node: int, jitter: Mapping[str, int]) -> list[tuple[Work, Load]]:
        """Return what each RT task that is on a node asks of it, coming as late as `jitter` says."""
        return [
            (work, self.load(work, stage, node, jitter[work.name]))
            for work, stage in self._on[node]
        ]

    def held(self, node: int, work: Work, loads: Sequence[tuple[Work, Load]]) -> int:
        """Return the blocking B of a task on a node: one piece of a lesser one, and the drain of others."""
        lesser = (load.longest for other, load in loads if other.weight < work.weight)
        return max(self.blocking(node), *lesser, 0) + self._drain[node]

    def _pass(self, node: int, late: dict[str, int | None], early: dict[str, int]) -> None:
        """Let all jobs pass a node: how late, and how early, they can leave it."""
        arrived = dict(late)
        jitter = {name: (come or 0) - early[name] for name, come in arrived.items()}
        loads = self.loads(node, jitter)
        for work, me in loads:
            come, found = arrived[work.name], None
            higher = [(o, h) for o, h in loads if o is not work and o.weight >= work.weight]
            if come is not None and all(arrived[other.name] is not None for other, _ in higher):
                held, most = self.held(node, work, loads), BEYOND * work.deadline - come
                found = delay(me, [load for _, load in higher], held, most)
            late[work.name] = None if come is None or found is None else come + found
            early[work.name] += me.least
