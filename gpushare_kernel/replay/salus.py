"""The trace of Salus' Table 1, as far as it is known: arrivals and durations rebuilt, memory drawn from its workload table.

Source: Yu & Chowdhury, Salus (MLSys 2020), section 5.1 and Table 2: 100 training jobs drawn from 45 workloads (15 models,
three batch sizes each), on one P100 with 16 GB. The trace itself was not published. Two files stand for it:

- `trace_reconstructed_estimate.csv`: submission and duration of each job, read out of figures 7 and 8a.
- `workloads_derived.csv`: peak memory and seconds an iteration of 33 of the workloads, measured by the authors
  (SymbioticLab/Salus, tests/workloads.csv). The other twelve are those of `OTHERS`.

**What is unknown**: which job was which workload. So every job draws its workload by the seed, uniformly and whatever its
duration is: were long jobs large ones, fewer would fit beside each other than here.

**Persistent memory** was published for the two ends only (section 2.1): 110.9 MB for googlenet_25, 822.2 MB for resnet152_75.
Between them it is taken to grow as a power of the peak, which leads through both ends (exponent 0.71); it stays within
them, and the ephemeral rest is peak - persistent.

**Demand**: two alexnet_25 share the device by figure 13 at 0.687 of their speed alone, so one of them needs 0.73 of it: of its
21.3 ms an iteration 5.8 ms are spent elsewhere. Every workload is taken to spend that.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from math import log
from pathlib import Path
from random import Random

from gpushare_kernel.core.values import MiB
from gpushare_kernel.replay.trace import BadTrace, TraceJob

TRACE, WORKLOADS = "trace_reconstructed_estimate.csv", "workloads_derived.csv"
CAPACITY = 16276 * MiB - 300 * 10**6
"""A P100 with 16 GB, less the 300 MB that the server leaves (lanemgr.cpp), in bytes."""
SMALLEST_P, LARGEST_P = 110.9e6, 822.2e6
"""Bytes of persistent memory of googlenet_25 and of resnet152_75 (section 2.1)."""
_ENDS = ("googlenet_25", "resnet152_75")
ELSEWHERE = 5.8e-3
"""Seconds of an iteration that are not the device's."""
OTHERS = {
    "seq2seq": (5.0e9, 0.94),
    "speech": (5.6e9, 0.94),
    "superres": (1.03e9, 0.42),
    "vae": (0.035e9, 0.42),
}
"""Models that the table lacks: peak bytes at the largest batch (figure 1, TF 1.5), a half and a quarter at the smaller ones
(assumed), and demand: 1 / 2.38 for superres, from figure 11; the others' are assumed, and so is `OTHER_ITERATION`."""
OTHER_ITERATION = 0.1
"""Seconds."""
_SMALLER = (1.0, 0.5, 0.25)


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of Table 2: bytes at the peak and kept between iterations, seconds an iteration, what it needs of the device."""

    name: str
    peak: int
    persistent: int
    iteration: float
    demand: float


def read_workloads(folder: Path) -> list[Workload]:
    """Return the 45 workloads, from `workloads_derived.csv` in `folder` and from `OTHERS`."""
    known = {
        row["workload"]: (float(row["peak_mb"]) * 1e6, float(row["iter_ms_slope"]) / 1e3)
        for row in _rows(folder / WORKLOADS)
    }
    low, high = (known[name][0] for name in _ENDS)
    power = log(LARGEST_P / SMALLEST_P) / log(high / low)

    def workload(name: str, peak: float, iteration: float, demand: float) -> Workload:
        persistent = min(peak, LARGEST_P, max(SMALLEST_P, SMALLEST_P * (peak / low) ** power))
        return Workload(name, round(peak), round(persistent), iteration, demand)

    return [
        *(workload(name, peak, step, 1 - ELSEWHERE / step) for name, (peak, step) in known.items()),
        *(
            workload(f"{name}, {part:g} of its batch", peak * part, OTHER_ITERATION, demand)
            for name, (peak, demand) in OTHERS.items()
            for part in _SMALLER
        ),
    ]


def read_salus(folder: Path, seed: int) -> list[TraceJob]:
    """Return the 100 jobs with the workloads that `seed` draws; they declare their durations.

    `folder` may be the path of the trace file itself; the workloads are looked for beside it.

    Raises
    ------
    BadTrace
        Where a file is missing.
    """
    folder = folder.parent if folder.name == TRACE else folder
    chance, workloads = Random(seed), read_workloads(folder)  # noqa: S311  no secret: a draw that can be repeated
    jobs = []
    for row in _rows(folder / TRACE):
        drawn, duration = chance.choice(workloads), float(row["est_duration_s"])
        jobs.append(
            TraceJob(
                name=row["job_id"],
                submitted=float(row["est_submit_s"]),
                duration=duration,
                persistent=drawn.persistent,
                ephemeral=drawn.peak - drawn.persistent,
                iteration=drawn.iteration,
                demand=drawn.demand,
                declared=duration,
            )
        )
    return jobs


def is_salus(path: Path) -> bool:
    """Whether `path` is the rebuilt trace, or the folder in which it lies."""
    return path.name == TRACE or (path / TRACE).is_file()


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as problem:
        msg = f"{path} cannot be read ({problem.strerror}). The folder must hold {TRACE} and {WORKLOADS}; benchmarks/salus_table/data has both."
        raise BadTrace(msg) from None
