"""How long does the analysis take, and is the pruned search as good as the exact one? See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from benchmarks.realtime_sets import draw
from gpushare_kernel.realtime.allocation import Board, allocate
from gpushare_kernel.realtime.analysis import Analysis, analyse
from gpushare_kernel.realtime.configurations import configurations
from gpushare_kernel.realtime.search import Search
from gpushare_kernel.realtime.taskset import Taskset

QUESTION = "Analysis of 10 tasks of 20 layers on 8 cores and a GPU: how long, and how good is the pruned search?"
SETS = 20


def measure(options: Options) -> Sequence[Figure]:
    """Each set pruned and exact, in CPU seconds; beside them, what balancing loads alone would admit."""
    pruned, exact, ratios, refused, balanced = [], [], [], [], []
    for seed in range(2 if options.quick else SETS):
        taskset = _set(seed)
        few, seconds = _timed(taskset, exact=False)
        best, whole = _timed(taskset, exact=True)
        exact.append(whole)
        if few.objective is None or best.objective is None:
            refused.append(seconds)
            if few.admitted != best.admitted:
                ratios.append(float("inf"))
        else:
            pruned.append(seconds)
            ratios.append(few.objective / best.objective)
            balanced += [alone / best.objective] if (alone := _balanced(taskset)) else []
        progress(
            f"set {seed}: pruned {seconds:.2f} s, exact {whole:.1f} s, admitted {best.admitted}"
        )
    return [
        Figure("pruned", "s CPU", pruned, at_most=1.0, worst=True),
        Figure("pruned_objective", "of exact", ratios, at_most=1.05, worst=True),
        Figure("exact", "s CPU", exact, at_most=60.0, worst=True),
        Figure("admitted", "sets", [float(len(pruned))]),
        *([Figure("refused", "s CPU", refused)] if refused else []),
        Figure("balanced_only_admitted", "sets", [float(len(balanced))]),
        *([Figure("balanced_only_objective", "of exact", balanced)] if balanced else []),
    ]


def _set(seed: int) -> Taskset:
    return draw(
        seed,
        cpus=8,
        gpus=1,
        max_nodes=4,
        realtime=6,
        best_effort=4,
        depth=20,
        load=Random(seed).uniform(0.05, 0.15),
        costs=True,
    )


def _timed(taskset: Taskset, *, exact: bool) -> tuple[Analysis, float]:
    before = process_time()
    found = analyse(taskset, exact=exact)
    return found, process_time() - before


def _balanced(taskset: Taskset) -> float | None:
    """Return the least objective where each configuration's loads are balanced and nothing is moved; None where none holds."""
    search, found = Search(taskset), []
    for configuration in configurations(taskset.cpus, taskset.gpus, taskset.max_nodes):
        board = Board(configuration)
        placed = allocate(search.works, board)
        if placed is not None and (one := search.judged(board, placed)).admitted:
            found.append(one.objective)
    return min(found, default=None)


if __name__ == "__main__":
    raise SystemExit(main("realtime_analysis", QUESTION, measure))
