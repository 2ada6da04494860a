"""Messages to bytes and back. Whatever the other side sends becomes a message or `BadFrame`, nothing else."""

from __future__ import annotations

import math
from typing import TypeVar

import msgspec

from gpushare_kernel.core import errors
from gpushare_kernel.wire.messages import (
    SPOKEN,
    BrokerNotice,
    ClientNotice,
    Failure,
    FromBroker,
    Hello,
    Kind,
    ToBroker,
    Welcome,
)

Frame = Hello | Welcome | ToBroker | FromBroker
_Frame = TypeVar("_Frame", bound=Frame)

_encoder = msgspec.msgpack.Encoder()
_hello = msgspec.msgpack.Decoder(Hello)
_welcome = msgspec.msgpack.Decoder(Welcome)
_to_broker = msgspec.msgpack.Decoder(ToBroker)
_from_broker = msgspec.msgpack.Decoder(FromBroker)


def encode(message: Frame) -> bytes:
    """Return the payload of the frame that carries `message` (without its length)."""
    return _encoder.encode(message)


def decode_hello(payload: bytes) -> Hello:
    """Return the first frame of a connection."""
    hello = _decoded(_hello, payload)
    _check_finite(hello.body)
    return hello


def decode_welcome(payload: bytes) -> Welcome:
    """Return the answer to a hello."""
    return _decoded(_welcome, payload)


def decode_to_broker(payload: bytes) -> ToBroker:
    """Return a frame sent to the broker: a request with an id, or a notice without."""
    frame = _decoded(_to_broker, payload)
    notice = isinstance(frame.body, ClientNotice)
    _check_kind(frame.kind, frame.id, Kind.NOTICE if notice else Kind.REQUEST, frame.body)
    _check_finite(frame.body)
    return frame


def decode_from_broker(payload: bytes) -> FromBroker:
    """Return a frame sent by the broker: a reply with the request's id, or a notice without.

    A `Failure` with id 0 answers no request: it says why the broker ends the connection.
    """
    frame = _decoded(_from_broker, payload)
    if frame.kind is Kind.REPLY and frame.id == 0 and isinstance(frame.body, Failure):
        return frame
    notice = isinstance(frame.body, BrokerNotice)
    _check_kind(frame.kind, frame.id, Kind.NOTICE if notice else Kind.REPLY, frame.body)
    return frame


def choose_version(theirs: tuple[int, ...]) -> int | None:
    """Return the newest protocol version both sides speak, or None."""
    return max(set(theirs) & set(SPOKEN), default=None)


def failure_from(error: errors.GpushareError) -> Failure:
    """Return the message that carries `error` to the other side."""
    return Failure(code=type(error).__name__, message=str(error))


def error_from(failure: Failure) -> errors.GpushareError:
    """Return the error that `failure` names; a class this build does not know becomes the tree's root."""
    known = getattr(errors, failure.code, None)
    if isinstance(known, type) and issubclass(known, errors.GpushareError):
        return known(failure.message)
    return errors.GpushareError(failure.message)


def _decoded(decoder: msgspec.msgpack.Decoder[_Frame], payload: bytes) -> _Frame:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        # ValueError: text that is not UTF-8. RecursionError: nested deeper than any message of ours.
        msg = f"not a gpushare message: {problem}. The two sides may be of different versions."
        raise errors.BadFrame(msg) from problem


def _check_kind(seen: Kind, number: int, expected: Kind, body: object) -> None:
    name = type(body).__name__
    if seen is not expected:
        msg = f"{name} is a {expected.name.lower()}, but came as a {seen.name.lower()}."
        raise errors.BadFrame(msg)
    if (number == 0) is not (expected is Kind.NOTICE) or number < 0:
        msg = (
            f"{name} came with id {number}: a notice has id 0, requests and replies a positive one."
        )
        raise errors.BadFrame(msg)


def _check_finite(body: msgspec.Struct) -> None:
    """Refuse NaN and infinity: no comparison behind this point would notice them."""
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if isinstance(value, float) and not math.isfinite(value):
            msg = f"{type(body).__name__}.{name} is {value}. It must be a finite number."
            raise errors.BadFrame(msg)
