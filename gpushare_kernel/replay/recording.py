"""Recordings of a live broker, read again: exactly (the same events give the same instructions, I10), or as a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import BadFrame
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import JobId, UserId, device_called
from gpushare_kernel.replay.rows import BadTrace
from gpushare_kernel.replay.trace import ITERATION, TraceJob
from gpushare_kernel.wire.recording import End, Entry, Part, decode_line, mark_of

LEAST = 1e-3
"""Seconds below which a job has done nothing that could be replayed."""
_LIGHTEST = 0.01
_EVENTS: dict[str, type[ev.Event]] = {cls.__name__: cls for cls in ev.Event.__subclasses__()}


class Differs(BadTrace):
    """A recorded event gives other instructions than it gave live: another version, or a bug of ours."""


class Recorded(NamedTuple):
    """What ran while it was recorded, the device's bytes, and how many events give other instructions than they gave live."""

    jobs: list[TraceJob]
    capacity: int
    differs: int


@dataclass(frozen=True, slots=True)
class Step:
    """One recorded event, handled again by the scheduler of its device, which is one of `devices` in the broker's order."""

    line: int
    device: str
    devices: tuple[str, ...]
    event: ev.Event
    core: Scheduler
    same: bool


def check_recording(path: Path) -> int:
    """Replay `path` exactly; return how many events it has.

    Raises
    ------
    Differs
        At the first event that gives other instructions than it gave live.
    BadTrace
        Where `path` is no recording.
    """
    number = 0
    for step in _steps(path):
        number += 1
        if not step.same:
            msg = f"{path}, line {step.line}: {type(step.event).__name__} gives other instructions than it gave live. Replay it with the gpushare that recorded it."
            raise Differs(msg)
    return number


def read_recording(path: Path, device: str = "") -> Recorded:
    """Return the jobs that ran while `path` was recorded.

    A job's duration is what it would have taken alone: the time for which it had the device, at the pace of its samples;
    its demand, sizes and iteration are what the scheduler knew of it at its end. Whoever never ran is left out; who still ran at the end counts with what it had done.

    Raises
    ------
    BadTrace
        Where `path` is no recording, holds no job that ran, or has several devices and `device` (a number, an id, or how one begins) names none of them.
    """
    seen: dict[str, _Device] = {}
    devices: tuple[str, ...] = ()
    differs: Counter[str] = Counter()
    for step in _steps(path):
        devices = step.devices
        differs[step.device] += not step.same
        here = seen.get(step.device)
        if here is None or here.core is not step.core:
            former = [] if here is None else here.finish()
            here = seen[step.device] = _Device(step.core, former)
        here.look()
    found = {name: jobs for name, here in seen.items() if (jobs := here.finish())}
    if not found:
        msg = f"{path} holds no job that ran. Record for longer, with notebooks at work."
        raise BadTrace(msg)
    chosen = _chosen(
        path, device, (*devices, *(name for name in seen if name not in devices)), found
    )
    return Recorded(_from_zero(found[chosen]), seen[chosen].core.config.capacity, differs[chosen])


def _chosen(path: Path, wanted: str, devices: Sequence[str], found: Collection[str]) -> str:
    """Return the device that `wanted` names, by its number among `devices` or its id; the only one of `found` where it is empty."""
    if not wanted and len(found) == 1:
        return next(iter(found))
    number = device_called(wanted, devices) if wanted else None
    if number is not None and devices[number] in found:
        return devices[number]
    there = ", ".join(f"{n} ({name})" for n, name in enumerate(devices) if name in found)
    why = f", and {wanted!r} is none of them" if wanted else ""
    first = next(n for n, name in enumerate(devices) if name in found)
    msg = f"{path} has jobs of the devices {there}{why}. Choose one of them: --device {first}."
    raise BadTrace(msg)


def _steps(path: Path) -> Iterator[Step]:
    """Handle every event again, each part from a scheduler as it was when the part began."""
    cores: dict[str, Scheduler] = {}
    try:
        file = path.open("rb")
    except OSError as problem:
        msg = f"{path} cannot be read: {problem.strerror}. Name a file that jupyter gpushare start --record FILE.jsonl wrote."
        raise BadTrace(msg) from None
    with file:
        for number, text in enumerate(file, 1):
            try:
                line = decode_line(text)
                if isinstance(line, Part):
                    cores[line.device] = _scheduler(line)
                elif isinstance(line, Entry):
                    yield _step(number, line, cores)
                elif isinstance(line, End):
                    cores.clear()
            except (BadFrame, msgspec.MsgspecError, KeyError) as problem:
                if not text.endswith(b"\n"):
                    return  # the broker's last word was cut short
                msg = f"{path}, line {number}: {problem}. Only recordings end in {path.suffix}: a trace is TRACE.csv."
                raise BadTrace(msg) from problem


def _step(number: int, line: Entry, cores: Mapping[str, Scheduler]) -> Step:
    if line.device not in cores:
        msg = f"an event of the device {line.device}, which no line before it describes: the beginning is missing"
        raise BadFrame(msg)
    core = cores[line.device]
    event = msgspec.json.decode(line.data, type=_EVENTS[line.event])
    try:
        mark: int | None = mark_of(core.handle(event))
    except Exception:  # noqa: BLE001  what went wrong live goes wrong again; the broker went on, too
        mark = None
    return Step(number, line.device, tuple(cores), event, core, mark == line.out)


def _scheduler(part: Part) -> Scheduler:
    core = Scheduler(msgspec.json.decode(part.config, type=Config))
    for name, weight in part.users.items():
        core.users[UserId(name)] = User(UserId(name), weight=weight)
    return core


@dataclass(slots=True)
class _Watched:
    """A job that is there. Seconds: with the device in all, up to its first sample, and up to its latest."""

    job: Job
    session: Session
    on: float = 0.0
    first: float | None = None
    latest: float = 0.0
    used: float = 0.0
    #: Cores it could use, as last known.
    demand: float | None = None
    #: The session's while the job was there; another one follows its end.
    weight: float = 1.0

    def look(self, passed: float) -> None:
        """`passed` seconds after the last look, with an event."""
        if self.session.phase in {Phase.ON, Phase.LEAVING} and self.job.granted is not None:
            self.on += passed
        if self.first is None and self.session.used is not None:
            self.first = self.on
        used = self.session.device_time - self.job.device_time_before
        if used != self.used:
            self.used, self.latest = used, self.on
        self.demand = self.session.demand or self.demand

    def duration(self, demand: float) -> float:
        """Seconds alone: what it had the device for, at the pace that its samples show (no sample: at full pace)."""
        sampled = self.latest - (self.first or 0.0)
        return self.on * min(1.0, self.used / demand / sampled) if sampled > 0 else self.on


@dataclass(slots=True)
class _Device:
    """What is known of the jobs of one device: those that are there, and those that are over."""

    core: Scheduler
    done: list[TraceJob] = field(default_factory=list)
    there: dict[JobId, _Watched] = field(default_factory=dict)
    #: How often a job of this name is over: a cell that is run again has the same.
    runs: Counter[JobId] = field(default_factory=Counter)
    at: float = 0.0

    def look(self) -> None:
        """After an event: who is new, who is over, who had the device meanwhile?"""
        passed, self.at = self.core.at - self.at, self.core.at
        for watched in self.there.values():
            watched.look(passed)
        now = self.core.jobs
        for name in [name for name in self.there if name not in now]:
            self._over(self.there.pop(name))
        for name, job in now.items():
            if name not in self.there:
                self.there[name] = _Watched(job, self.core.sessions[job.session])
            self.there[name].weight = self.there[name].session.weight

    def finish(self) -> list[TraceJob]:
        """Return the jobs, as they came; those that are there still end here."""
        for watched in self.there.values():
            self._over(watched)
        self.there.clear()
        return sorted(self.done, key=lambda job: job.submitted)

    def _over(self, watched: _Watched) -> None:
        job, session = watched.job, watched.session
        demand = watched.demand or self.core.config.compute
        duration = watched.duration(demand)
        if duration < LEAST:
            return
        number, self.runs[job.id] = self.runs[job.id], self.runs[job.id] + 1
        kept = max(job.need.persistent, session.measured)
        # A SIZE is for both: what is kept of it is no E as well.
        beside = job.need.ephemeral if job.size is None else min(job.need.ephemeral, max(0, job.size - kept))  # fmt: skip
        self.done.append(
            TraceJob(
                name=f"{job.id}#{number + 1}" if number else job.id,
                submitted=job.submitted,
                duration=duration,
                user=session.user.id,
                persistent=kept,
                ephemeral=beside,
                iteration=min(job.interval or ITERATION, duration),
                realtime=job.realtime,
                demand=min(1.0, max(_LIGHTEST, demand / self.core.config.compute)),
                declared=duration,
                weight=watched.weight,
                user_weight=session.user.weight,
            )
        )


def _from_zero(jobs: list[TraceJob]) -> list[TraceJob]:
    """Count times from the first submission."""
    first = jobs[0].submitted
    return [replace(job, submitted=job.submitted - first) for job in jobs]
