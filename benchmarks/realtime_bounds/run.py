"""Is a bound ever exceeded, and how much does it overstate? See README.md."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from random import Random
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, percentile, progress
from benchmarks.realtime_sets import draw, scatter
from gpushare_kernel.realtime.allocation import Board
from gpushare_kernel.realtime.analysis import analyse, bounds
from gpushare_kernel.realtime.configurations import configurations
from gpushare_kernel.realtime.model import BadTaskset, NodeType, Stage
from gpushare_kernel.realtime.response import Pipeline, delay
from gpushare_kernel.realtime.simulation import simulate
from gpushare_kernel.realtime.taskset import Mode, Taskset
from gpushare_kernel.realtime.work import SECOND, works

QUESTION = "Adversarial simulations of random task sets: is a bound ever exceeded, and how much does it overstate?"
SETS, SECONDS = 500, 5.0
"""Random sets of each mode and kind of placement, and the virtual seconds that each runs."""
NOISE = 1e-12
"""Both sides are whole nanoseconds, divided: this is less than one."""


def measure(options: Options) -> Sequence[Figure]:
    """Both modes, placements as the analysis finds them and at random."""
    sets, figures = (20 if options.quick else SETS), []
    for mode in Mode:
        for kind in ("found", "random"):
            figures += _figures(f"{mode}_{kind}", mode, sets, at_random=kind == "random")
            progress(f"{mode}, placements {kind}: done")
    return figures


def _figures(name: str, mode: Mode, sets: int, *, at_random: bool) -> list[Figure]:
    ratios: list[float] = []
    exceeded = plain = 0
    for seed in range(sets):
        taskset = _set(seed, mode)
        placed = _scattered(seed, taskset) if at_random else _analysed(taskset)
        if placed is None:
            continue
        configuration, placement = placed
        promised = bounds(taskset, configuration, placement)
        sums = plain_sums(taskset, configuration, placement)
        seen = simulate(taskset, configuration, placement, seconds=SECONDS, seed=seed)
        for task, bound in promised.items():
            if bound is not None:
                exceeded += seen[task] > bound + NOISE
                plain += seen[task] > sums[task] + NOISE
                ratios.append(bound / seen[task])
    return [
        Figure(f"{name}_exceeded", "tasks", [float(exceeded)], at_most=0),
        Figure(f"{name}_overstated", "bound/seen", [median(ratios)], at_most=1.4),
        Figure(f"{name}_overstated_p95", "bound/seen", [percentile(ratios, 95)]),
        Figure(f"{name}_tasks", "tasks", [float(len(ratios))]),
        Figure(f"{name}_plain_sum_exceeded", "tasks", [float(plain)]),
    ]


def _set(seed: int, mode: Mode) -> Taskset:
    chance = Random(seed)
    return draw(
        seed,
        cpus=chance.choice((4, 6, 8)),
        gpus=chance.choice((0, 1)),
        max_nodes=chance.choice((2, 3, 4)),
        realtime=chance.randint(2, 5),
        best_effort=chance.randint(0, 2),
        depth=chance.randint(2, 6),
        load=chance.uniform(0.1, 0.6),
        mode=mode,
        least=chance.choice((0.3, 1.0)),
        costs=chance.random() < 0.5,
    )


Placed = tuple[Sequence[NodeType], Mapping[str, Sequence[Stage]]]


def _analysed(taskset: Taskset) -> Placed | None:
    try:
        found = analyse(taskset)
    except BadTaskset:  # a deadline that is too short for its task alone
        return None
    if not found.configuration:
        return None
    return found.configuration, {task.name: task.stages for task in found.tasks}


def _scattered(seed: int, taskset: Taskset) -> Placed:
    chance = Random(-1 - seed)
    known = configurations(taskset.cpus, taskset.gpus, taskset.max_nodes)
    configuration = chance.choice([one for one in known if len(one) > 1])
    return configuration, scatter(chance, taskset, len(configuration))


def plain_sums(
    taskset: Taskset, configuration: Sequence[NodeType], placement: Mapping[str, Sequence[Stage]]
) -> dict[str, float]:
    """Return what gpushare never uses: response times added up node by node, as if no job came late to the next."""
    placed = {
        name: tuple((stage.node, stage.first, stage.last + 1) for stage in stages)
        for name, stages in placement.items()
    }
    pipeline = Pipeline(taskset, works(taskset), Board(configuration), placed)
    sums = {work.name: float(work.jitter) for work in pipeline.realtime}
    for node in range(len(configuration)):
        loads = pipeline.loads(node, dict.fromkeys(sums, 0))
        for work, me in loads:
            higher = [one for o, one in loads if o is not work and o.weight >= work.weight]
            response = delay(me, higher, pipeline.held(node, work, loads))
            sums[work.name] += inf if response is None else response
    return {name: total / SECOND for name, total in sums.items()}


if __name__ == "__main__":
    raise SystemExit(main("realtime_bounds", QUESTION, measure))
