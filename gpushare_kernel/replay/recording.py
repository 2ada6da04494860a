"""Recordings of a live broker, read again: exactly (the same events give the same instructions, I10), or as a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import BadDeclaration, BadFrame
from gpushare_kernel.core.records import User
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.values import UserId, device_called
from gpushare_kernel.replay.engine import Settings
from gpushare_kernel.replay.lived import Device
from gpushare_kernel.replay.outcome import JobRecord, Outcome
from gpushare_kernel.replay.rows import BadTrace
from gpushare_kernel.replay.trace import TraceJob
from gpushare_kernel.wire.recording import End, Entry, Named, Part, decode_line, mark_of

AS_IT_WAS = "as it was"
"""What stands above the figures of the day itself, beside those of policies."""
_EVENTS: dict[str, type[ev.Event]] = {cls.__name__: cls for cls in ev.Event.__subclasses__()}


class Differs(BadTrace):
    """A recorded event gives other instructions than it gave live: another version, or a bug of ours."""


class Recorded(NamedTuple):
    """What ran while it was recorded, the device's bytes, how many events give other instructions than they gave live, and how it was."""

    jobs: list[TraceJob]
    capacity: int
    differs: int
    was: Outcome


@dataclass(frozen=True, slots=True)
class Step:
    """One recorded event, handled again by the scheduler of its device, which is one of `devices` in the broker's order."""

    line: int
    device: str
    devices: tuple[str, ...]
    event: ev.Event
    core: Scheduler
    same: bool
    out: Sequence[do.Instruction]


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
    """Return the jobs that ran while `path` was recorded, and what became of them then.

    A job's duration is what it would have taken alone: the time for which it had the device, at the pace of its samples;
    its demand, sizes and iteration are what the scheduler knew of it at its end. Whoever never ran is left out; who still ran at the end counts with what it had done.

    Raises
    ------
    BadTrace
        Where `path` is no recording, holds no job that ran, or has several devices and `device` (a number, an id, or how one begins) names none of them.
    """
    seen: dict[str, Device] = {}
    devices: tuple[str, ...] = ()
    differs: Counter[str] = Counter()
    events: Counter[str] = Counter()
    names: dict[str, str] = {}
    for step in _steps(path, names):
        devices = step.devices
        events[step.device] += 1
        differs[step.device] += not step.same
        here = seen.get(step.device)
        if here is None or here.core is not step.core:
            former = [] if here is None else here.finish()
            here = seen[step.device] = Device(step.core, former)
        here.look(step.event, step.out)
    found = {name: lived for name, here in seen.items() if (lived := here.finish())}
    if not found:
        msg = f"{path} holds no job that ran. Record for longer, with notebooks at work."
        raise BadTrace(msg)
    chosen = _chosen(
        path, device, (*devices, *(name for name in seen if name not in devices)), found
    )
    jobs, records = _from_zero(found[chosen], names, path)
    config = seen[chosen].core.config
    was = Outcome(
        jobs=tuple(records),
        settings=Settings(policy=AS_IT_WAS, parking=config.can_park, capacity=config.capacity),
        turn=config.turn,
        events=events[chosen],
        busy=_covered([stretch for one in records for stretch in one.stretches]),
    )
    return Recorded(jobs, config.capacity, differs[chosen], was)


def _covered(stretches: Sequence[tuple[float, float]]) -> float:
    """Return the seconds that lie in any of `stretches`."""
    covered, end = 0.0, -inf
    for begin, until in sorted(stretches):
        covered += max(0.0, until - max(begin, end))
        end = max(end, until)
    return covered


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


def _steps(path: Path, names: dict[str, str] | None = None) -> Iterator[Step]:
    """Handle every event again, each part from a scheduler as it was when the part began; put into `names` what notebooks are called."""
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
                elif isinstance(line, Named) and names is not None:
                    names[line.session] = line.name
                elif isinstance(line, End):
                    cores.clear()
            except (BadFrame, BadDeclaration, msgspec.MsgspecError, KeyError) as problem:
                if not text.endswith(b"\n"):
                    return  # the broker's last word was cut short
                msg = f"{path}, line {number}: {str(problem).removesuffix('.')}. Only recordings end in {path.suffix}: a trace is TRACE.csv."
                raise BadTrace(msg) from problem


def _step(number: int, line: Entry, cores: Mapping[str, Scheduler]) -> Step:
    if line.device not in cores:
        msg = f"an event of the device {line.device}, which no line before it describes: the beginning is missing"
        raise BadFrame(msg)
    core = cores[line.device]
    event = msgspec.json.decode(line.data, type=_EVENTS[line.event])
    try:
        out: Sequence[do.Instruction] = core.handle(event)
        mark: int | None = mark_of(out)
    except Exception:  # noqa: BLE001  what went wrong live goes wrong again; the broker went on, too
        out, mark = (), None
    return Step(number, line.device, tuple(cores), event, core, mark == line.out, out)


def _scheduler(part: Part) -> Scheduler:
    core = Scheduler(msgspec.json.decode(part.config, type=Config))
    for name, weight in part.users.items():
        core.users[UserId(name)] = User(UserId(name), weight=weight)
    return core


def _from_zero(
    found: Sequence[tuple[TraceJob, JobRecord]], names: Mapping[str, str], path: Path
) -> tuple[list[TraceJob], list[JobRecord]]:
    """Count times from the first submission; say of which notebook each is, and where it was read."""
    first = found[0][0].submitted
    jobs, records = [], []
    for job, was in found:
        notebook = names.get(was.notebook, "")
        jobs.append(
            replace(job, submitted=job.submitted - first, notebook=notebook, where=str(path))
        )
        records.append(replace(was.later(-first), notebook=notebook))
    return jobs, records
