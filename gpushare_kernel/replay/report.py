"""What came of replays, to read: a table with a column for each policy, and a record for each job as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.replay.outcome import JobRecord, Outcome

_ROWS = (
    ("makespan_s", "makespan"),
    ("avg_queue_s", "average wait for memory"),
    ("avg_jct_s", "average completion"),
    ("p50_jct_s", "median completion"),
    ("p95_jct_s", "95 % complete within"),
    ("max_wait_s", "longest standstill"),
    ("parked_s", "parked, all jobs together"),
)
_SHORT = ("makespan", "wait", "average", "median", "95 %", "stood", "parked")
"""The same where each has a column."""
_COUNTS = ("turns", "parks")
_WIDE = 10_000
"""Characters of a terminal in which every table has room."""
_COLUMNS = (
    "job_id",
    "user",
    "notebook",
    "submit_time",
    "lane_at",
    "first_run",
    "end",
    "parked",
    "longest_wait",
    "turns",
)


def table(outcomes: Mapping[str, Outcome], width: int | None = None) -> Table:
    """Return the figures of each policy side by side; where that takes more than `width` characters, one below the other."""
    shown = _beside(outcomes)
    wide = Console(width=_WIDE)
    takes = Measurement.get(wide, wide.options, shown).maximum
    return _below(outcomes) if width is not None and takes > width else shown


def _below(outcomes: Mapping[str, Outcome]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for title in (*_SHORT, *_COUNTS):
        shown.add_column(title, justify="right", no_wrap=True)
    for name, outcome in outcomes.items():
        summary = outcome.summary()
        times = [readable(float(summary[key])) for key, _ in _ROWS]
        shown.add_row(name, *times, *(str(summary[key]) for key in _COUNTS))
    return shown


def _beside(outcomes: Mapping[str, Outcome]) -> Table:
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for name in outcomes:
        shown.add_column(name, justify="right")
    summaries = [outcome.summary() for outcome in outcomes.values()]
    for key, title in _ROWS:
        shown.add_row(title, *(readable(float(summary[key])) for summary in summaries))
    for key in _COUNTS:
        shown.add_row(key, *(str(summary[key]) for summary in summaries))
    return shown


def waits_text(outcomes: Mapping[str, Outcome]) -> str:
    """Return who stood still longest under each policy, by notebook: `As it was: hw2.ipynb of ann, 6.2 min.`; empty where nobody did."""
    told = []
    for name, outcome in outcomes.items():
        most = max(outcome.jobs, key=lambda job: job.longest_wait)
        if readable(most.longest_wait) == readable(0.0):
            continue
        told.append(
            f"{name}: {most.notebook or most.name} of {most.user}, {readable(most.longest_wait)}"
        )
    return f"Who stood still longest: {'; '.join(told)}." if told else ""


def readable(seconds: float) -> str:
    """Return a time in the unit in which it is easily read: `48.2 s`, `32.8 min`, `14.2 h`."""
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    if seconds < 600 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def check_can_write(option: str, path: Path, *, reads: Path) -> None:
    """Refuse, before anything is replayed, a file that cannot be written after it, and the one that it `reads`.

    Raises
    ------
    BadDeclaration
        With the option, and what stands in the way.
    """
    if path.is_dir():
        why = "it is a folder"
    elif not path.parent.is_dir():
        why = f"there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        why = "it is not yours to write"
    elif path.exists() and reads.exists() and path.samefile(reads):
        why = "it is what is replayed"
    else:
        return
    msg = f"{option} {path} cannot be written: {why}. Name a file in a folder of yours."
    raise BadDeclaration(msg)


def write_records(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write what became of each job under each policy, in seconds, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("policy", *_COLUMNS))
        for name, outcome in outcomes.items():
            rows.writerows((name, *_cells(job)) for job in outcome.jobs)


def _cells(job: JobRecord) -> Sequence[str | float | int]:
    times = (job.submitted, job.lane_at, job.first_run, job.ended, job.parked, job.longest_wait)
    return (job.name, job.user, job.notebook, *(round(value, 6) for value in times), job.turns)
