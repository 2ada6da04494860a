"""What can be replayed: a trace in CSV, a recording of a live broker, or the trace of Salus' Table 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.replay.outcome import Outcome
from gpushare_kernel.replay.recording import read_recording
from gpushare_kernel.replay.salus import CAPACITY, is_salus, read_salus
from gpushare_kernel.replay.trace import TraceJob, read_trace
from gpushare_kernel.wire.recording import SUFFIX


@dataclass(frozen=True, slots=True)
class Source:
    """Jobs in the order of their arrival, the bytes of the device that they ran on (None: it says nothing), and how many events of a recording went otherwise live."""

    jobs: Sequence[TraceJob]
    capacity: int | None = None
    differs: int = 0
    #: What became of a recording's jobs then.
    was: Outcome | None = None


def read_source(path: Path, *, seed: int = 0, declare: bool = True, device: str = "") -> Source:
    """Return what is to be replayed; `declare`: jobs tell the scheduler their durations.

    A name that ends in `.jsonl` is a recording (`device` chooses one of several), the folder or file of Salus' trace is
    known by its name, everything else is CSV. `seed` draws what a trace leaves open: the memory of Salus' jobs.

    Raises
    ------
    BadDeclaration
        Where a device is named and it is no recording.
    BadTrace
        Where it is none of these, or a row breaks a rule.
    """
    capacity, differs, was = None, 0, None
    if device and path.suffix != SUFFIX:
        msg = f"--device {device} chooses one of a recording's ({SUFFIX}), and {path} is a trace, which has none. Leave it out."
        raise BadDeclaration(msg)
    if is_salus(path):
        jobs, capacity = read_salus(path, seed), CAPACITY
    elif path.suffix == SUFFIX:
        jobs, capacity, differs, was = read_recording(path, device)
    else:
        jobs = read_trace(path)
    if not declare:
        jobs = [replace(job, declared=None) for job in jobs]
    return Source(jobs, capacity, differs, was)
