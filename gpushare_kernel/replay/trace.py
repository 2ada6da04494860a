"""Traces: jobs with their times, sizes and demand, from a CSV file. A bad row is one error that names it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.replay.rows import BadTrace, Row, read_rows

CLASSES = ("BE", "RT")
ITERATION = 0.1
"""Seconds between boundaries where a trace does not say: a training step of a mid-sized network."""
REQUIRED = ("job_id", "submit_time", "duration")
OPTIONAL = ("user", "persistent", "ephemeral", "iteration_time", "class", "demand")


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a trace. Times in seconds, sizes in bytes.

    `submitted` counts from the beginning of the trace; `duration` is what the job takes alone on the device, and
    `iteration` what one of its steps takes then. `demand` is the part of the device's time that it needs while it
    runs alone (over 0, at most 1). `declared` is the duration that it tells the scheduler (None: nothing), `kind` what it
    is called where a trace was made from workloads. `weight` counts among its user's own, `user_weight` among users.
    """

    name: str
    submitted: float
    duration: float
    user: str = ""
    persistent: int = 0
    ephemeral: int = 0
    iteration: float = ITERATION
    realtime: bool = False
    demand: float = 1.0
    declared: float | None = None
    kind: str = ""
    weight: float = 1.0
    user_weight: float = 1.0
    #: Of which notebook it was, and where it was read: the file and its row. Neither makes it another job.
    notebook: str = field(default="", compare=False)
    where: str = field(default="", compare=False, repr=False)

    @property
    def owner(self) -> str:
        """Whose job it is; a user of its own where the trace names none."""
        return self.user or f"user of {self.name}"


def read_trace(path: Path) -> list[TraceJob]:
    """Return the jobs of the CSV file at `path`, in the order of their arrival.

    Columns: `job_id`, `submit_time` and `duration` must be there. Others, with what holds where a column is missing or
    a cell is empty: `user` (each job has a user of its own), `persistent` and `ephemeral` (0; bytes, or `6GiB`),
    `iteration_time` (0.1 s, or the duration where that is less), `class` (BE; or RT), `demand` (1). Any further column is ignored.
    Every job declares its duration to the scheduler.

    Raises
    ------
    BadTrace
        At the first row that breaks a rule, with its number as a spreadsheet shows it (the header is row 1).
    """
    rows = read_rows(path, REQUIRED, OPTIONAL)
    return in_order(path, ((row, _job(row)) for row in rows))


def in_order(
    path: Path, read: Iterable[tuple[Row, TraceJob]], time: str = "submit_time"
) -> list[TraceJob]:
    """Return the jobs of `path`; each id is there once, and none comes before the one above it (column `time`).

    Raises
    ------
    BadTrace
        At the first row where that does not hold, and where there is no job.
    """
    seen: dict[str, int] = {}
    jobs: list[TraceJob] = []
    for row, job in read:
        if job.name in seen:
            msg = f"{row.where}: job_id {job.name!r} is there twice (first in row {seen[job.name]}). Give each job an id of its own."
            raise BadTrace(msg)
        if jobs and job.submitted < jobs[-1].submitted:
            msg = f"{row.where}: {time} {job.submitted:g} comes after {jobs[-1].submitted:g}. Sort the file by {time}."
            raise BadTrace(msg)
        seen[job.name] = row.number
        jobs.append(replace(job, where=row.where))
    if not jobs:
        msg = f"{path}: there is no job in it. Write one row for each job."
        raise BadTrace(msg)
    return jobs


def check_fits(jobs: Sequence[TraceJob], capacity: int) -> None:
    """Refuse jobs that could never run.

    Raises
    ------
    BadTrace
        Where a job needs more than `capacity` bytes by itself.
    """
    for job in jobs:
        needs = job.persistent + job.ephemeral
        if needs > capacity:
            msg = (
                f"{f'{job.where}: ' if job.where else ''}job {job.name} never fits: it needs {format_size(needs)} (persistent + ephemeral), and the device has "
                f"{format_size(capacity)}. Replay with a larger --capacity, or take the job out."
            )
            raise BadTrace(msg)


def _job(row: Row) -> TraceJob:
    duration = row.seconds("duration", "above 0", lambda value: value > 0)
    iteration = row.number_of("iteration_time", "above 0", lambda value: value > 0, ITERATION)
    sort = (row.cell("class") or CLASSES[0]).upper()
    if sort not in CLASSES:
        row.refuse("class", sort, f"must be one of {', '.join(CLASSES)}", "Write BE or RT")
    return TraceJob(
        name=row.text("job_id", "Give the job an id"),
        submitted=row.seconds("submit_time", "0 or more", lambda value: value >= 0),
        duration=duration,
        user=row.word("user"),
        persistent=row.size("persistent"),
        ephemeral=row.size("ephemeral"),
        iteration=min(iteration, duration),
        realtime=sort == "RT",
        demand=row.number_of("demand", "above 0 and at most 1", lambda value: 0 < value <= 1, 1.0),
        declared=duration,
    )
