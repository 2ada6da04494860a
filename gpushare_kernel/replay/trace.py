"""Traces: jobs with their times, sizes and demand, from a CSV file. A bad row is one error that names it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gpushare_kernel.core.errors import BadSize, UserError
from gpushare_kernel.core.sizes import format_size, parse_size

CLASSES = ("BE", "RT")
ITERATION = 0.1
"""Seconds between boundaries where a trace does not say: a training step of a mid-sized network."""
REQUIRED = ("job_id", "submit_time", "duration")


class BadTrace(UserError):
    """A trace that cannot be replayed; the message has the row, the rule, the value seen and what to do."""


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a trace. Times in seconds, sizes in bytes.

    `submitted` counts from the beginning of the trace; `duration` is what the job takes alone on the device, and
    `iteration` what one of its steps takes then. `demand` is the part of the device's time that it needs while it
    runs alone (over 0, at most 1). `declared` is the duration that it tells the scheduler (None: nothing), `kind` what it
    is called where a trace was made from workloads.
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
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(_jobs(csv.DictReader(file, skipinitialspace=True), path))
    except FileNotFoundError:
        msg = f"{path}: there is no such file."
        raise BadTrace(msg) from None
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        msg = f"{path} cannot be read as CSV: {problem}."
        raise BadTrace(msg) from problem


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
                f"job {job.name} never fits: it needs {format_size(needs)} (persistent + ephemeral), and the device has "
                f"{format_size(capacity)}. Replay with a larger --capacity, or take the job out."
            )
            raise BadTrace(msg)


def _jobs(rows: csv.DictReader[str], path: Path) -> Iterator[TraceJob]:
    missing = [name for name in REQUIRED if name not in (rows.fieldnames or ())]
    if missing:
        msg = f"{path}, row 1: the header must name {', '.join(REQUIRED)}, and {', '.join(missing)} is missing. Write the names in the first row."
        raise BadTrace(msg)
    seen: dict[str, int] = {}
    last = 0.0
    for row in rows:
        number = rows.line_num
        if None in row.values() or None in row:
            msg = f"{path}, row {number}: every row has as many cells as the header, {len(rows.fieldnames or ())}. Mend or remove the row."
            raise BadTrace(msg)
        job = _Row(row, f"{path}, row {number}").job()
        if job.name in seen:
            msg = f"{path}, row {number}: job_id {job.name!r} is there twice (first in row {seen[job.name]}). Give each job an id of its own."
            raise BadTrace(msg)
        if job.submitted < last:
            msg = f"{path}, row {number}: submit_time {job.submitted:g} comes after {last:g}. Sort the file by submit_time."
            raise BadTrace(msg)
        seen[job.name], last = number, job.submitted
        yield job
    if not seen:
        msg = f"{path}: there is no job in it. Write one row for each job."
        raise BadTrace(msg)


@dataclass(frozen=True, slots=True)
class _Row:
    """The cells of one row, and where it is, for errors."""

    cells: Mapping[str, str]
    where: str

    def job(self) -> TraceJob:
        duration = self.number("duration", "above 0", lambda value: value > 0)
        iteration = self.number("iteration_time", "above 0", lambda value: value > 0, ITERATION)
        sort = (self.cell("class") or CLASSES[0]).upper()
        if sort not in CLASSES:
            self.refuse("class", sort, f"must be one of {', '.join(CLASSES)}", "Write BE or RT")
        if not self.cell("job_id"):
            self.refuse("job_id", "", "must not be empty", "Give the job an id")
        return TraceJob(
            name=self.cell("job_id"),
            submitted=self.number("submit_time", "0 or more", lambda value: value >= 0),
            duration=duration,
            user=self.cell("user"),
            persistent=self.size("persistent"),
            ephemeral=self.size("ephemeral"),
            iteration=min(iteration, duration),
            realtime=sort == "RT",
            demand=self.number(
                "demand", "above 0 and at most 1", lambda value: 0 < value <= 1, 1.0
            ),
            declared=duration,
        )

    def cell(self, name: str) -> str:
        return (self.cells.get(name) or "").strip()

    def number(
        self, name: str, rule: str, holds: Callable[[float], bool], default: float | None = None
    ) -> float:
        """Return a number that keeps `rule`; `default` where the cell is empty or missing (None: it must be there)."""
        text = self.cell(name)
        if not text:
            if default is None:
                self.refuse(name, "", "must not be empty", f"Write a number {rule}")
            return default
        value = _float(text)
        if value is None:
            self.refuse(name, text, "must be a number", f"Write a number {rule}")
        if not math.isfinite(value) or not holds(value):
            self.refuse(name, text, f"must be {rule}", "Mend or remove the row")
        return value

    def size(self, name: str) -> int:
        """Return bytes, written as a number or as a size with its unit."""
        text = self.cell(name)
        value = _float(text or "0")
        if value is None:
            try:
                return parse_size(text)
            except BadSize as problem:
                msg = f"{self.where}: {name}: {problem}"
                raise BadTrace(msg) from None
        if not math.isfinite(value) or value < 0:
            self.refuse(
                name, text, "must be 0 or more bytes", "Write bytes, or a size such as 6GiB"
            )
        return round(value)

    def refuse(self, name: str, value: str, rule: str, fix: str) -> NoReturn:
        """Say which rule the cell `name` breaks."""
        msg = f"{self.where}: {name} {rule}, and it is {repr(value) if value else 'empty'}. {fix}."
        raise BadTrace(msg)


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
