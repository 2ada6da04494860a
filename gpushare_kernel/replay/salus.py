"""The trace of Salus' Table 1, as far as it is known: arrivals and durations rebuilt, memory drawn from its workloads.

Source: Yu & Chowdhury, Salus (MLSys 2020), section 5.1 and Table 2: 100 training jobs on one P100 with 16 GB. The trace itself
was not published. Three files stand for it:

- `trace_reconstructed_estimate.csv`: submission and duration of each job, read out of figures 7 and 8a.
- `workloads_derived.csv`: the 33 workloads (11 CNNs, three batch sizes each) of the authors' own table, measured in 2017
  (SymbioticLab/Salus, tests/workloads.csv): peak memory, seconds an iteration.
- `fig1_fig14_memory_digitized.csv`: peak memory of each model at its largest batch, read out of figure 1 (TF 1.5, as in the
  evaluation). The table says how smaller batches compare with the largest.

**What is unknown**: which job was which workload, and how often the four models of Table 2 were drawn that the authors' table
lacks (seq2seq, speech, superres, vae: left out here). So every job draws one of the 33 by the seed, uniformly and whatever its
duration is: were long jobs large ones, fewer would fit beside each other than here.

**Persistent memory** was published for the two ends only (section 2.1): 110.9 MB for googlenet_25, 822.2 MB for resnet152_75.
Between them it is taken to grow as a power of the peak that leads through both ends; it stays within them, and the ephemeral
rest is peak - persistent.

**Demand**: two alexnet_25 share the device by figure 13 at 0.687 of their speed alone, so one of them needs 0.73 of it: of its
21.3 ms an iteration 5.8 ms are spent elsewhere. Every workload is taken to spend that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path
from random import Random

from gpushare_kernel.core.values import MiB
from gpushare_kernel.replay.rows import BadTrace, Row, read_rows
from gpushare_kernel.replay.trace import TraceJob, in_order

TRACE = "trace_reconstructed_estimate.csv"
WORKLOADS, MEMORY = "workloads_derived.csv", "fig1_fig14_memory_digitized.csv"
CAPACITY = 16276 * MiB - 300 * 10**6
"""A P100 with 16 GB, less the 300 MB that the server leaves (lanemgr.cpp), in bytes."""
SMALLEST_P, LARGEST_P = 110.9e6, 822.2e6
"""Bytes of persistent memory of googlenet_25 and of resnet152_75 (section 2.1)."""
_SUBMITTED, _DURATION = "est_submit_s", "est_duration_s"
_ENDS = ("googlenet_25", "resnet152_75")
MOST = 1e9
"""Of MB, GB and ms in the tables: beyond that it is a typing error, and products overflow."""
ELSEWHERE = 5.8e-3
"""Seconds of an iteration that are not the device's."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the table: bytes at the peak and kept between iterations, seconds an iteration, what it needs of the device."""

    name: str
    peak: int
    persistent: int
    iteration: float
    demand: float


def read_workloads(folder: Path) -> list[Workload]:
    """Return the 33 workloads, from the files in `folder`.

    Raises
    ------
    BadTrace
        Where a file is missing, or a row breaks a rule.
    """
    largest = {
        row.text("model", "Name the model"): _above(row, "tf_peak_GB", 0.0) * 1e9
        for row in _rows(folder / MEMORY, "model", "tf_peak_GB")
    }
    table: dict[str, tuple[float, float]] = {}
    most: dict[str, float] = {}
    for row in _rows(folder / WORKLOADS, "workload", "peak_mb", "iter_ms_slope"):
        name = row.text("workload", "Name the workload")
        if _model(name) not in largest:
            rule = f"must be a model of {MEMORY} and its batch size"
            row.refuse("workload", name, rule, "Add the model there, or remove the row")
        peak = _above(row, "peak_mb", 0.0)
        table[name] = peak, _above(row, "iter_ms_slope", ELSEWHERE * 1e3) / 1e3
        most[_model(name)] = max(peak, most.get(_model(name), 0.0))
    missing = [name for name in _ENDS if name not in table]
    if missing:
        msg = f"{folder / WORKLOADS}: persistent memory is known for {' and '.join(_ENDS)}, and {', '.join(missing)} is missing. Add the row."
        raise BadTrace(msg)
    peaks = {
        name: largest[_model(name)] * peak / most[_model(name)] for name, (peak, _) in table.items()
    }
    low, high = (peaks[end] for end in _ENDS)
    if low >= high:
        msg = f"{folder / MEMORY}: {_ENDS[1]} takes more memory than {_ENDS[0]}, and here it does not. Mend tf_peak_GB."
        raise BadTrace(msg)
    power = log(LARGEST_P / SMALLEST_P) / log(high / low)
    return [
        Workload(
            name,
            round(peaks[name]),
            round(_persistent(peaks[name], low, power)),
            step,
            1.0 - ELSEWHERE / step,
        )
        for name, (_, step) in table.items()
    ]


def _model(workload: str) -> str:
    return workload.rpartition("_")[0]


def _persistent(peak: float, low: float, power: float) -> float:
    grown: float = SMALLEST_P * (peak / low) ** power
    return min(peak, LARGEST_P, max(SMALLEST_P, grown))


def read_salus(folder: Path, seed: int) -> list[TraceJob]:
    """Return the 100 jobs with the workloads that `seed` draws; they declare their durations.

    `folder` may be the path of the trace file itself; the workloads are looked for beside it.

    Raises
    ------
    BadTrace
        Where a file is missing, or a row breaks a rule.
    """
    folder = folder.parent if folder.name == TRACE else folder
    chance, workloads = Random(seed), read_workloads(folder)  # noqa: S311  no secret: a draw that can be repeated
    rows = _rows(folder / TRACE, "job_id", _SUBMITTED, _DURATION)
    read = ((row, _job(row, chance.choice(workloads))) for row in rows)
    return in_order(folder / TRACE, read, _SUBMITTED)


def _job(row: Row, drawn: Workload) -> TraceJob:
    duration = row.seconds(_DURATION, "above 0", lambda value: value > 0)
    return TraceJob(
        name=row.text("job_id", "Give the job an id"),
        submitted=row.seconds(_SUBMITTED, "0 or more", lambda value: value >= 0),
        duration=duration,
        persistent=drawn.persistent,
        ephemeral=drawn.peak - drawn.persistent,
        iteration=drawn.iteration,
        demand=drawn.demand,
        declared=duration,
        kind=drawn.name,
    )


def _above(row: Row, name: str, least: float) -> float:
    value = row.number_of(name, f"above {least:g}", lambda value: value > least)
    if value > MOST:
        row.refuse(name, row.cell(name), f"must be at most {MOST:g}", "Mend or remove the row")
    return value


def is_salus(path: Path) -> bool:
    """Whether `path` is the rebuilt trace, or the folder in which it lies."""
    try:
        return path.name == TRACE or (path / TRACE).is_file()
    except OSError:  # too long a name, a folder of somebody else's: who reads it says so
        return False


def _rows(path: Path, *required: str) -> Iterator[Row]:
    if not path.exists():
        msg = f"{path} is missing. The folder must hold {TRACE}, {WORKLOADS} and {MEMORY}: benchmarks/salus_table/data does."
        raise BadTrace(msg)
    return read_rows(path, required)
