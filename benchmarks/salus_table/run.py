"""Salus' Table 1 replayed: as Salus ran it, each published cell beside our range; then ours. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options, main, progress
from benchmarks.salus_table.arms import CELLS, OURS, PUBLISHED, SALUS
from gpushare_kernel.replay.outcome import percentile
from gpushare_kernel.replay.salus import is_salus

QUESTION = "Salus' Table 1: what do its policies, and ours, make of its trace over 20 draws of memory (minutes)?"
DATA = Path(__file__).parent / "data"
SEEDS = 20
Draws = Mapping[str, Sequence[float]]
"""Cell -> a value for each seed."""


def measure(options: Options) -> Sequence[Figure]:
    """All arms over all seeds, on all cores."""
    if not is_salus(DATA):
        msg = f"{DATA} lacks the trace. It is part of the repository: git checkout -- {DATA}"
        raise NotMeasured(msg)
    seeds = range(4 if options.quick else SEEDS)
    salus = {(policy, name): arm for policy, arms in SALUS.items() for name, arm in arms.items()}
    ours = {("ours", name): arm for name, arm in OURS.items()}
    tasks = [(key, seed) for seed in seeds for key in (*salus, *ours)]
    draws: dict[tuple[str, str], dict[str, list[float]]] = {}
    with get_context("spawn").Pool() as pool:
        for done, (key, found) in enumerate(pool.imap(_one, tasks), 1):
            for cell, value in found.items():
                draws.setdefault(key, {}).setdefault(cell, []).append(value)
            if done % (len(tasks) // len(seeds)) == 0:
                progress(f"seed {done * len(seeds) // len(tasks)} of {len(seeds)}")
    return [*_check(draws[("fifo", "as run")]), *_cells(draws), *_ours(draws)]


def _one(task: tuple[tuple[str, str], int]) -> tuple[tuple[str, str], dict[str, float]]:
    (group, name), seed = task
    arm = OURS[name] if group == "ours" else SALUS[group][name]
    return (group, name), arm.figures(DATA, seed)


def _check(fifo: Draws) -> list[Figure]:
    """The trace was fitted to these: within one percent, whatever the memory."""
    return [
        Figure(f"fifo_{cell}", "min", fifo[cell], 0.99 * published, 1.01 * published, worst=True)
        for cell, published in zip(CELLS, PUBLISHED["fifo"], strict=True)
    ]


def _cells(draws: Mapping[tuple[str, str], Draws]) -> list[Figure]:
    """Each published cell beside what is replayed; how many lie in the range of the run, or of one that is otherwise."""
    figures, inside, explained = [], 0, 0
    for policy in ("srtf", "pack", "fair"):
        for cell, published in zip(CELLS, PUBLISHED[policy], strict=True):
            holding = []
            for name in SALUS[policy]:
                values = draws[(policy, name)][cell]
                low, high = percentile(sorted(values), 5), percentile(sorted(values), 95)
                holds = low <= published <= high
                holding += [name] if holds else []
                progress(
                    f"{policy} {cell:<9} published {published:6.1f}  {median(values):6.1f} [{low:6.1f} .. {high:6.1f}] "
                    f"{'inside ' if holds else 'outside'}  {name}"
                )
                figures.append(Figure(f"{policy}_{cell} ({name})", "min", values))
            inside += "as run" in holding
            explained += bool(holding)
    cells = 3 * len(CELLS)
    return [
        Figure("cells_inside_as_run", f"of {cells}", [inside]),
        Figure("cells_inside_or_explained", f"of {cells}", [explained], at_least=cells),
        *figures,
    ]


def _ours(draws: Mapping[tuple[str, str], Draws]) -> list[Figure]:
    fifo = draws[("fifo", "as run")]["makespan"]
    mine = {name: draws[("ours", name)] for name in OURS}
    over = [a / b for a, b in zip(mine["srtf"]["makespan"], fifo, strict=True)]
    must = {  # the table says "parking on" for FAIR only: the others have to do without, and are judged with it too
        ("srtf", "avg_jct"): 36.0,
        ("srtf", "p95_jct"): 180.0,
        ("srtf_parking", "avg_jct"): 36.0,
        ("srtf_parking", "p95_jct"): 180.0,
        ("fair_parking", "avg_jct"): 83.0,
        ("fair_parking", "p95_jct"): 235.0,
        ("unknown", "avg_jct"): 80.0,
        ("unknown_parking", "avg_jct"): 80.0,
        ("srtf", "part_of_bound"): 1.0,
        ("srtf_parking", "part_of_bound"): 1.0,
    }
    return [
        Figure("our_srtf_makespan_over_fifo", "times", over, at_most=1.01),
        *(
            Figure(
                f"our_{name}_{cell}",
                "times" if cell == "part_of_bound" else "min",
                values,
                at_most=must.get((name, cell)),
                worst=cell == "part_of_bound",
            )
            for name, found in mine.items()
            for cell, values in found.items()
            if cell != "part_of_bound" or name in ("srtf", "srtf_parking")
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(main("salus_table", QUESTION, measure))
