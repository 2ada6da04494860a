"""What a gateway asks of a host, and what the host answers: a line of JSON each way, over the standard streams of a command.

The host greets first. Then each question has one answer, in order. Fields are added with a default; whoever changes the
meaning of one counts `FORMAT` up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.hub.placement import DeviceState
from gpushare_kernel.wire.snapshot import DeviceView, Snapshot

FORMAT = 1
LONGEST_LINE = 1 << 20
"""Bytes; a launch carries an environment."""

Pid = tuple[int, int]
"""A process: its pid, and when it began, in ticks since the host's boot."""


class Greeting(Struct, frozen=True):
    """The first line of a host. `version` is of its gpushare, `driver` of its NVIDIA driver (empty: none)."""

    gpushare: int
    version: str
    driver: str = ""


class Look(Struct, frozen=True, tag="look"):
    """How are you, and which of these processes are gone?"""

    alive: tuple[Pid, ...] = ()


class Launch(Struct, frozen=True, tag="launch"):
    """Start a kernel: its arguments, what is added to the environment, its folder (where there is one of that name), its log."""

    argv: tuple[str, ...]
    env: dict[str, str]
    log: str
    cwd: str = ""


class Signal(Struct, frozen=True, tag="signal"):
    """Have a kernel run on, and signal its process group; 0: only have it run on."""

    process: Pid
    number: int


Question = Look | Launch | Signal


class Seen(Struct, frozen=True, tag="seen"):
    """The answer to `Look`. `trouble` is why no kernel can start there (empty: it can); without devices no broker runs yet."""

    devices: tuple[DeviceState, ...] = ()
    gone: tuple[Pid, ...] = ()
    trouble: str = ""


class Launched(Struct, frozen=True, tag="launched"):
    """The answer to `Launch`."""

    process: Pid


class Done(Struct, frozen=True, tag="done"):
    """The answer to `Signal`: whether the process was there. `said` is the last line of its log where it was not."""

    there: bool
    said: str = ""


class Failed(Struct, frozen=True, tag="failed"):
    """What was asked cannot be done, and why."""

    why: str


Answer = Seen | Launched | Done | Failed

_questions: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_greetings: msgspec.json.Decoder[Greeting] = msgspec.json.Decoder(Greeting)
encode = msgspec.json.encode
BadLine = msgspec.MsgspecError
"""What reading raises for a line that is none of ours."""


def read_question(line: bytes) -> Question:
    """Return the question of a line. `BadLine` where it is none."""
    return _questions.decode(line)


def read_answer(line: bytes) -> Answer:
    """Return the answer of a line. `BadLine` where it is none."""
    return _answers.decode(line)


def read_greeting(line: bytes) -> Greeting:
    """Return the greeting of a line. `BadLine` where it is none."""
    return _greetings.decode(line)


def pid_of(key: ProcessKey) -> Pid:
    """Return a process as it is written here."""
    return (key.pid, key.start_time)


def key_of(pid: Sequence[int]) -> ProcessKey:
    """Return it as everything else here knows it."""
    return ProcessKey(pid[0], pid[1])


def states(snapshot: Snapshot) -> tuple[DeviceState, ...]:
    """Return what of a snapshot a placement needs; devices that do not answer are left out."""
    on = {session.id: session.device for session in snapshot.sessions}
    return tuple(_state(device, snapshot, on) for device in snapshot.devices if device.lost is None)


def _state(device: DeviceView, snapshot: Snapshot, on: Mapping[str, str]) -> DeviceState:
    waiting = [one for one in snapshot.queue if on.get(one.session) == device.id]
    queued = {one.session for one in waiting}
    here = [one for one in snapshot.sessions if one.device == device.id]
    working = {one.id for one in here if one.mode is not None or one.state == "busy"}
    etas = [one.eta for one in waiting]
    known = [eta for eta in etas if eta is not None]
    return DeviceState(
        kind=device.kind,
        capacity=device.capacity,
        free=device.free,
        wanting=len(working | queued),
        waiting=len(queued),
        sessions=len(here),
        wait=max(known, default=0.0) if len(known) == len(etas) else None,
    )
