"""What came of a replay: one record for each job, and the figures of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpushare_kernel.replay.machine import Run

if TYPE_CHECKING:
    from gpushare_kernel.replay.engine import Settings


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job, in seconds of the virtual clock. `stretches` are the times in which it ran, `parks` those for which it was parked."""

    name: str
    user: str
    submitted: float
    lane_at: float
    first_run: float
    ended: float
    longest_wait: float
    turns: int
    device_time: float
    stretches: tuple[tuple[float, float], ...]
    parks: tuple[tuple[float, float], ...]
    notebook: str = ""

    def later(self, seconds: float) -> JobRecord:
        """Return this record with all of its times `seconds` later."""
        return replace(
            self,
            submitted=self.submitted + seconds,
            lane_at=self.lane_at + seconds,
            first_run=self.first_run + seconds,
            ended=self.ended + seconds,
            stretches=tuple((begin + seconds, end + seconds) for begin, end in self.stretches),
            parks=tuple((begin + seconds, end + seconds) for begin, end in self.parks),
        )

    @property
    def parked(self) -> float:
        """Seconds for which it was parked in all."""
        return sum(end - begin for begin, end in self.parks)

    @property
    def queued(self) -> float:
        """Submission until its lane was assigned, as Salus counts."""
        return self.lane_at - self.submitted

    @property
    def completion(self) -> float:
        """Submission to end: the job's completion time (JCT)."""
        return self.ended - self.submitted


def record(run: Run) -> JobRecord:
    """Return what became of `run`, which has ended."""
    job = run.job
    if run.ended is None or run.first_run is None or run.lane_at is None:
        msg = f"{job.name} has not ended"
        raise ValueError(msg)
    return JobRecord(
        job.name,
        job.owner,
        job.submitted,
        run.lane_at,
        run.first_run,
        run.ended,
        run.longest_still,
        run.turns,
        run.device_time,
        tuple(run.stretches),
        tuple(run.parks),
        job.notebook,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole replay. `turn` in seconds; `events` the scheduler took in; `busy` seconds in which somebody ran."""

    jobs: tuple[JobRecord, ...]
    settings: Settings
    turn: float
    events: int
    busy: float

    def summary(self) -> dict[str, float | int | str]:
        """Return the figures, in seconds; percentiles are linear between ranks, as numpy.percentile has them.

        `max_wait_s` is the longest time that a job stood still: from its submission to its first step, or from one
        step to the next.
        """
        times = sorted(job.completion for job in self.jobs)
        first = min(job.submitted for job in self.jobs)
        number = len(self.jobs)
        return {
            "policy": self.settings.policy,
            "admission": self.settings.admission,
            "parking": "on" if self.settings.parking else "off",
            "jobs": number,
            "makespan_s": max(job.ended for job in self.jobs) - first,
            "avg_queue_s": sum(job.queued for job in self.jobs) / number,
            "avg_jct_s": sum(times) / number,
            "p50_jct_s": percentile(times, 50),
            "p95_jct_s": percentile(times, 95),
            "max_wait_s": max(job.longest_wait for job in self.jobs),
            "parked_s": sum(job.parked for job in self.jobs),
            "parks": sum(len(job.parks) for job in self.jobs),
            "busy_s": self.busy,
            "turns": sum(job.turns for job in self.jobs),
            "events": self.events,
            "turn_s": self.turn,
            "capacity": self.settings.capacity,
        }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the percentile of values in rising order, linear between ranks."""
    at = (len(ordered) - 1) * percent / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
