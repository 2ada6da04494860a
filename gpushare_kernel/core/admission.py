"""The memory queue: who waits for room, in which order, and how far others may pass.

Strict arrival order leaves memory idle behind a big job; free overtaking starves it (Salus' code does). Here any of the
first `WINDOW` jobs may take what fits, but a job that was overtaken `PATIENCE` times is not passed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from gpushare_kernel.core.records import Job
from gpushare_kernel.core.values import JobId

WINDOW = 32
PATIENCE = 8


class AdmissionQueue:
    """Jobs that wait for memory, in the order of the policy (arrival, for FIFO and FAIR)."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __contains__(self, job: JobId) -> bool:
        return job in self._jobs

    def push(self, job: Job) -> None:
        """Append `job`."""
        self._jobs[job.id] = job

    def remove(self, job: Job) -> None:
        """Take `job` out, wherever it stands."""
        self._jobs.pop(job.id, None)

    def ahead(self, job: JobId) -> int:
        """Return how many stand before `job`. Linear: for reading, not for deciding."""
        return next((n for n, other in enumerate(self._jobs) if other == job), len(self._jobs))

    def admit(self, fits: Callable[[Job], bool]) -> Iterator[Job]:
        """Yield (and take out) each job that `fits` lets in, until nobody else may pass. `fits` places it."""
        passed: list[Job] = []
        for job in list(islice(self._jobs.values(), WINDOW)):
            if fits(job):
                del self._jobs[job.id]
                for other in passed:
                    other.overtaken += 1
                yield job
            else:
                passed.append(job)
            if any(other.overtaken >= PATIENCE for other in passed):
                return
