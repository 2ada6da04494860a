"""Recordings of a live broker: one JSON line for each event that went into a scheduler, with a mark of what came out.

A recording is made of parts; each begins with a `Part`, when a broker starts to write. What an event or a configuration
holds is for the core to know: here they are data.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import msgspec

from gpushare_kernel.core.errors import BadFrame

FORMAT = 2
"""2: notebooks have names."""
SUFFIX = ".jsonl"
"""What the name of a recording ends in."""


class Part(msgspec.Struct, tag="part", frozen=True):
    """A broker begins to write. `config` is that of the scheduler of `device`, `users` the weights that it knows already."""

    device: str
    config: msgspec.Raw
    users: dict[str, float]
    release: str
    format: int = FORMAT


class Entry(msgspec.Struct, tag="event", frozen=True):
    """One event, by the name of its class; `out` is the mark of the instructions that followed (None: it was refused)."""

    device: str
    event: str
    data: msgspec.Raw
    out: int | None


class Named(msgspec.Struct, tag="name", frozen=True):
    """What the notebook of `session` is called."""

    session: str
    name: str


class End(msgspec.Struct, tag="end", frozen=True):
    """Nothing more was written, and why."""

    why: str


Line = Part | Entry | Named | End

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def data_of(value: object) -> msgspec.Raw:
    """Return a dataclass of the core as data."""
    return msgspec.Raw(_encoder.encode(value))


def mark_of(instructions: Sequence[object]) -> int:
    """Return a number that differs where instructions do."""
    return crc32(repr([*instructions]).encode())


def encode_line(line: Line) -> bytes:
    """Return `line` with its end."""
    return _encoder.encode(line) + b"\n"


def decode_line(text: bytes) -> Line:
    """Return what `text` says.

    Raises
    ------
    BadFrame
        Where it is no line of a recording, or of a later format.
    """
    try:
        line = _decoder.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        msg = f"no line of a recording: {problem}"
        raise BadFrame(msg) from problem
    if isinstance(line, Part) and line.format > FORMAT:
        msg = f"written by a later gpushare ({line.release}, format {line.format}; this one reads {FORMAT})"
        raise BadFrame(msg)
    return line
