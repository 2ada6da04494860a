"""What the kernel and its nodes tell each other: one msgpack message each, on a socket that keeps them apart (SEQPACKET).

Nodes hand jobs to each other with the same `Job` that the kernel sends; what they compute on lies in shared memory.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from gpushare_kernel.realtime.model import Kind
from gpushare_kernel.realtime.payload import Form

LONGEST = 192 * 1024
"""Bytes of a message. What is longer (models, activations) lies in memory whose descriptor goes with it."""
_FDS = 2


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Layers `first` to `last` (included) on node `node`."""

    node: int
    first: int
    last: int


class Order(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages."""


class Hello(Order, frozen=True):
    """The first word to a node: who it is. `path` is the kernel's `sys.path`, so that it finds the same modules."""

    index: int
    path: list[str]
    torch: bool
    device: str
    mode: str
    cores: list[int]


class Load(Order, frozen=True):
    """Have the pieces of a task's model; two descriptors come along: the slots' memory, and the pieces.

    `stages` is where it is planned, `homes` which layers each node has. `blobs` says how long each pickled piece is, in
    order from `first`. `worst` are seconds by layer here (none: not watched), `forms` those of the input and of each output.
    `timed`: it is a task with a deadline, whatever its class is now.
    """

    task: int
    name: str
    kind: Kind
    weight: float
    slot_size: int
    first: int
    blobs: list[int]
    names: list[str]
    stages: list[Span]
    homes: list[Span]
    worst: list[float | None]
    forms: list[Form]
    timed: bool


class Forget(Order, frozen=True):
    """Let go of a task."""

    task: int


class Job(Order, frozen=True):
    """Run a task's layers from `layer` on; its value lies in `slot`. `path` is where it has been."""

    task: int
    number: int
    slot: int
    layer: int
    kind: Kind
    form: Form
    path: list[Span] = []
    waited: float = 0.0
    """Seconds that its layers had no core, because somebody else was on it."""
    rehearsal: bool = False
    """Its times count for nothing, and it stays where it is."""


class Reclass(Order, frozen=True):
    """A task's jobs are of another kind from now on, also those that wait."""

    task: int
    kind: Kind


class Bar(Order, frozen=True):
    """Jobs of a best-effort task wait from now on (`on`), or may run again."""

    task: int
    on: bool


class Measure(Order, frozen=True):
    """Run all layers of a task again and again, and tell how long each takes; no more than `warm` times where they take over `enough`."""

    task: int
    form: Form
    warm: int
    repeats: int
    seconds: float
    enough: float | None = None


class Stop(Order, frozen=True):
    """End."""


class Up(Order, frozen=True):
    """A node is there."""

    pid: int


class Loaded(Order, frozen=True):
    """A task's pieces are there; or why not."""

    task: int
    problem: str = ""


class Done(Order, frozen=True):
    """A job's result is in its slot since `at` (the machine's monotonic clock, seconds)."""

    task: int
    number: int
    form: Form
    at: float
    path: list[Span]
    waited: float


class Failed(Order, frozen=True):
    """A layer raised `error` (pickled)."""

    task: int
    number: int
    layer: int
    error: bytes


class Overran(Order, frozen=True):
    """Layers `first` to `layer` of a job take longer than they ever did: `running` where the last one is not even over."""

    task: int
    number: int
    first: int
    layer: int
    node: int
    took: float
    worst: float
    running: bool


class Measured(Order, frozen=True):
    """The longest and the shortest that each layer took, and bringing its input in; the forms of all values.

    `given_up`: of the first runs only, for they took too long.
    """

    task: int
    worst: list[float]
    best: list[float]
    moves: list[float]
    forms: list[Form]
    repeats: int
    problem: bytes = b""
    given_up: bool = False


ToNode = Hello | Load | Forget | Job | Reclass | Bar | Measure | Stop
FromNode = Up | Loaded | Done | Failed | Overran | Measured
_ENCODER = msgspec.msgpack.Encoder()
_TO_NODE: msgspec.msgpack.Decoder[ToNode] = msgspec.msgpack.Decoder(ToNode)
_FROM_NODE: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)


def send(sock: socket.socket, order: Order, fds: Sequence[int] = ()) -> None:
    """Send one message; it waits while the reader is behind."""
    data = _ENCODER.encode(order)
    if fds:
        beside: Any = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sock.sendmsg([data], beside, socket.MSG_NOSIGNAL)
    else:
        sock.send(data, socket.MSG_NOSIGNAL)


def to_node(sock: socket.socket) -> tuple[ToNode | None, list[int]]:
    """Receive what a node is told, with its descriptors; None where nobody is left to tell it anything."""
    data, fds = _receive(sock)
    return (_TO_NODE.decode(data) if data else None), fds


def from_node(sock: socket.socket) -> FromNode | None:
    """Receive what a node says; None where it has ended."""
    try:
        data, _ = _receive(sock)
    except ConnectionResetError:
        return None
    return _FROM_NODE.decode(data) if data else None


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    space = socket.CMSG_SPACE(_FDS * 4)
    data, beside, _, _ = sock.recvmsg(LONGEST, space, socket.MSG_CMSG_CLOEXEC)
    fds: array.array[int] = array.array("i")
    for level, kind, content in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
