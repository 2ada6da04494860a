"""Windows: notebooks of one arm work at the same time and are counted, while those of the other arms have no cell.

Counts come from the workloads, device seconds from the broker's own account of each session; pauses come from the
workloads too, and the lines that may explain them from what the cells showed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.common import Figure, Stage
from benchmarks.gpu.pauses import LONG, Pause, unexplained
from benchmarks.gpu.pauses import Line as Shown
from benchmarks.kernels import Counters, Rates
from gpushare_kernel.client.line import Line

_LAP = 0.2
_END_LIMIT = 120.0


class Worker(Protocol):
    """Whatever does counted work: a notebook of ours, one of another user, a program in a terminal.

    `shared` says whether its cells are a session's; `lines` are what they showed.
    """

    shared: bool
    lines: list[Shown]

    @property
    def pid(self) -> int:
        """Its process."""

    def begin(self, code: str, value: str = "None") -> None:
        """Send a cell."""

    def finish(self, timeout: float | None = None) -> Any:
        """Wait for its end; return its value."""


@dataclass(frozen=True, slots=True)
class Job:
    """A worker and the kind of work it does; `magic` is the cell's first line, if it has one."""

    worker: Worker
    kind: str
    magic: str = ""


@dataclass(frozen=True, slots=True)
class Seen(Rates):
    """One window: steps a second and device seconds (None without a session) of each job."""

    device: list[float | None]

    @property
    def ledger(self) -> list[float]:
        """The part of each in the device seconds of all, in percent, as the broker counted."""
        seconds = [used or 0.0 for used in self.device]
        return [100 * used / sum(seconds) for used in seconds]


@dataclass
class Floor:
    """Where the windows of a row take place. Remembers what was not explained to the users of shared notebooks."""

    stage: Stage
    counters: Counters
    pauses: list[Pause] = field(default_factory=list)
    longest: float = 0.0
    long: int = 0
    watched: int = 0

    def window(self, jobs: Sequence[Job], *, seconds: float, settle: float) -> Seen:
        """Let `jobs` work for `settle` + `seconds`, and count what they do in the last `seconds`."""
        return self.series(jobs, seconds=seconds, settle=settle, number=1)[0]

    def series(
        self, jobs: Sequence[Job], *, seconds: float, settle: float, number: int
    ) -> list[Seen]:
        """Let `jobs` work without a break and count `number` windows of `seconds`, one after the other."""
        began = time.monotonic()
        until = began + settle + seconds * number + _LAP
        for slot, job in enumerate(jobs):
            call = f"done = work({job.kind!r}, {str(self.counters.path)!r}, {slot}, {until})"
            job.worker.begin(f"{job.magic}\n{call}" if job.magic else call, "done")
        seen, marks = [], [self.mark(jobs, began + settle)]
        for n in range(number):
            marks.append(self.mark(jobs, began + settle + seconds * (n + 1)))
            seen.append(between(marks[-2], marks[-1]))
        for job in jobs:
            done = job.worker.finish(timeout=_END_LIMIT)
            self.note(job.worker, done, began)
        return seen

    def note(self, worker: Worker, done: Mapping[str, Any], sent: float) -> None:
        """Take the pauses of a shared cell that was sent at `sent` into account; the wait before its first line is one."""
        if not worker.shared:
            return
        pauses = [Pause(sent, done["began"]), *(Pause(*gap) for gap in done["gaps"])]
        self.watched += 1
        self.long += sum(pause.seconds > LONG for pause in pauses)
        self.longest = max(self.longest, done["longest"], done["began"] - sent)
        self.pauses += unexplained(pauses, worker.lines)

    def explained(self) -> list[Figure]:
        """Return the figures on pauses of all shared cells so far."""
        if not self.watched:
            return []
        return [
            Figure("unexplained_pauses", "", [float(len(self.pauses))], at_most=0.0),
            Figure("longest_pause", "s", [self.longest]),
            Figure("pauses_over_5_s", "", [float(self.long)]),
        ]

    def mark(self, jobs: Sequence[Job], at: float = 0.0) -> Mark:
        """Read all counts and accounts once the monotonic clock says `at`."""
        time.sleep(max(0.0, at - time.monotonic()))
        used = self._device_seconds(jobs)
        counts = self.counters.read()
        return Mark(time.monotonic(), counts[: len(jobs)], used)

    def _device_seconds(self, jobs: Sequence[Job]) -> list[float | None]:
        if not any(job.worker.shared for job in jobs):
            return [None] * len(jobs)
        with Line(self.stage.places) as line:
            used = {session.pid: session.device_time for session in line.snapshot().sessions}
        return [used.get(job.worker.pid) for job in jobs]


@dataclass(frozen=True, slots=True)
class Mark:
    """All counts at one moment."""

    at: float
    counts: list[int]
    device: list[float | None]


def between(before: Mark, after: Mark) -> Seen:
    """Return what was done from one mark to the other."""
    passed = after.at - before.at
    return Seen(
        [(b - a) / passed for a, b in zip(before.counts, after.counts, strict=True)],
        [
            None if a is None or b is None else b - a
            for a, b in zip(before.device, after.device, strict=True)
        ],
    )


def warm_clock(workers: Sequence[Any], kind: str, floor: Floor, seconds: float = 3.0) -> None:
    """Bring the GPU's clock up before anything is compared: a cold one makes whoever comes first look slow."""
    floor.window([Job(workers[0], kind)], seconds=seconds, settle=0.0)
