"""The codec: every message survives the trip, and anything else is a BadFrame."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpushare_kernel.core import errors
from gpushare_kernel.wire import codec, messages
from gpushare_kernel.wire.messages import Failure, FromBroker, Hello, Kind, ToBroker, Welcome

PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=20),
    bool: st.booleans(),
    type(None): st.none(),
}
IDS = st.integers(1, 2**63 - 1)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Return instances of whatever a message's annotation says, so that a new message needs no test of its own."""
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, typing.NewType):
        return values(hint.__supertype__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of(*map(values, typing.get_args(hint)))
    if typing.get_origin(hint) in (dict, tuple):
        return several(hint)
    if issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    assert issubclass(hint, msgspec.Struct) or dataclasses.is_dataclass(hint), hint
    return st.deferred(
        lambda: st.builds(
            hint, **{name: values(of) for name, of in typing.get_type_hints(hint).items()}
        )
    )


def several(hint: Any) -> st.SearchStrategy[Any]:
    """Return instances of a mapping or a tuple."""
    first, *rest = typing.get_args(hint)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(values(first), *map(values, rest), max_size=3)
    if rest == [...]:
        return st.lists(values(first), max_size=3).map(tuple)
    return st.tuples(values(first), *map(values, rest))


def frames(
    wrap: type, kind: Kind, bodies: Any, ids: st.SearchStrategy[int]
) -> st.SearchStrategy[Any]:
    return st.builds(wrap, st.just(kind), ids, values(bodies))


WAYS: dict[str, tuple[Callable[[bytes], Any], st.SearchStrategy[Any]]] = {
    "hello": (codec.decode_hello, values(Hello)),
    "welcome": (codec.decode_welcome, values(Welcome)),
    "to_broker": (
        codec.decode_to_broker,
        frames(ToBroker, Kind.REQUEST, messages.Request, IDS)
        | frames(ToBroker, Kind.NOTICE, messages.ClientNotice, st.just(0)),
    ),
    "from_broker": (
        codec.decode_from_broker,
        frames(FromBroker, Kind.REPLY, messages.Reply, IDS)
        | frames(FromBroker, Kind.NOTICE, messages.BrokerNotice, st.just(0)),
    ),
}
ways = pytest.mark.parametrize("way", WAYS)


def only_bad_frames(decode: Callable[[bytes], Any], payload: bytes) -> None:
    """Fail where decoding ends in any other way than in a message or a BadFrame."""
    with contextlib.suppress(errors.BadFrame):
        codec.encode(decode(payload))


@ways
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_round_trip(way: str, data: st.DataObject) -> None:
    """What is encoded is decoded to an equal message, whatever its fields hold."""
    decode, strategy = WAYS[way]
    message = data.draw(strategy)
    assert decode(codec.encode(message)) == message


def test_every_message_is_in_a_union() -> None:
    """No message exists that no frame can carry (the round trip would not see it)."""
    bodies = (messages.Request, messages.ClientNotice, messages.Reply, messages.BrokerNotice)
    carried = {m for union in bodies for m in typing.get_args(union)}
    for frame in (Hello, Welcome):
        carried |= set(typing.get_args(typing.get_type_hints(frame)["body"]))
    assert carried == set(messages._Message.__subclasses__())


@ways
@given(payload=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes(way: str, payload: bytes) -> None:
    """Random bytes are a BadFrame with a text, or a message by chance; nothing else."""
    only_bad_frames(WAYS[way][0], payload)


@ways
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_frames(way: str, data: st.DataObject) -> None:
    """A valid frame with bytes changed, cut or put in is a BadFrame or another message; nothing else."""
    decode, strategy = WAYS[way]
    payload = bytearray(codec.encode(data.draw(strategy)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(payload)))
        end = data.draw(st.integers(start, min(len(payload), start + 4)))
        payload[start:end] = data.draw(st.binary(max_size=6))
    only_bad_frames(decode, bytes(payload))


@ways
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\xa8versions\xdd\xff\xff\xff\xff\x01",
        b"\x81\xa4body\x82\xa4type\xa6Attach\xa4held\xdd\xff\xff\xff\xff\x01",
        b"\x81\xa1x" + b"\x91" * 60_000,
        b"\xa3\xff\xfe\xfd",
        b"\x81\xa5agent\xa1\xff",
    ],
)
def test_crafted_bytes(way: str, payload: bytes) -> None:
    """Absurd lengths, absurd depth and text that is no text are refused without being believed."""
    with pytest.raises(errors.BadFrame, match="not a gpushare message"):
        WAYS[way][0](payload)


@pytest.mark.parametrize(
    "frame",
    [
        ToBroker(Kind.REQUEST, 0, messages.GetSnapshot()),
        ToBroker(Kind.REQUEST, -1, messages.GetSnapshot()),
        ToBroker(Kind.NOTICE, 0, messages.GetSnapshot()),
        ToBroker(Kind.REPLY, 1, messages.GetSnapshot()),
        ToBroker(Kind.REQUEST, 1, messages.CellStarted(1)),
        ToBroker(Kind.NOTICE, 1, messages.CellStarted(1)),
    ],
)
def test_kind_and_id_must_fit_the_body(frame: ToBroker) -> None:
    """A request needs an id, a notice must have none, and each body is one or the other."""
    with pytest.raises(errors.BadFrame, match=type(frame.body).__name__):
        codec.decode_to_broker(codec.encode(frame))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(number: float) -> None:
    """NaN and infinity are refused at the door, with the field's name."""
    with pytest.raises(errors.BadFrame, match=r"SetWeight\.weight is"):
        codec.decode_to_broker(codec.encode(ToBroker(Kind.REQUEST, 1, messages.SetWeight(number))))
    with pytest.raises(errors.BadFrame, match=r"Open\.weight is"):
        codec.decode_hello(codec.encode(Hello((1,), "test", messages.Open("a", weight=number))))


def test_a_failure_may_belong_to_no_request() -> None:
    """What ends a whole connection is a failure with id 0; no other reply may have that."""
    failure = FromBroker(Kind.REPLY, 0, Failure("FrameTooLong", "over the limit"))
    assert codec.decode_from_broker(codec.encode(failure)) == failure
    with pytest.raises(errors.BadFrame, match="Ok came with id 0"):
        codec.decode_from_broker(codec.encode(FromBroker(Kind.REPLY, 0, messages.Ok())))


def test_unknown_fields_are_skipped() -> None:
    """A newer side may send fields this build does not know."""
    raw = msgspec.msgpack.encode(
        [0, 7, {"type": "SetWeight", "weight": 2.0, "newer": [1, {"x": None}]}]
    )
    assert codec.decode_to_broker(raw) == ToBroker(Kind.REQUEST, 7, messages.SetWeight(2.0))


OF_VERSION_1 = {
    *("Submit", "Cancel", "Yield", "End", "Release", "GetSnapshot", "SetWeight", "SetPolicy", "Stop"),
    *("Waiting", "Soon", "Slowed", "Announce", "Closing"),
}  # fmt: skip


@pytest.mark.parametrize("union", [messages.Request, messages.BrokerNotice])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_version_that_knows_a_message(union: Any, data: st.DataObject) -> None:
    """What version 1 had no name for is not for it: it would take that for a broken frame and hang up."""
    for kind in typing.get_args(union):
        known = messages.since(data.draw(values(kind))) == 1
        assert known is (kind.__name__ in OF_VERSION_1), kind


def test_choose_version() -> None:
    """The newest common version is chosen, and None where there is none."""
    assert codec.choose_version((99, *messages.SPOKEN)) == messages.SPOKEN[0]
    assert codec.choose_version((99,)) is None
    assert codec.choose_version(()) is None


def test_errors_cross_by_class_name() -> None:
    """Each error of the tree arrives as its own class, an unknown one as the root, and no other name is believed."""
    tree = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.GpushareError)
    ]
    assert errors.UserError in tree
    for kind in tree:
        back = codec.error_from(codec.failure_from(kind("rule, value, next step")))
        assert (type(back), str(back)) == (kind, "rule, value, next step")
    for name in ("FromTheFuture", "annotations", "__name__", ""):
        assert type(codec.error_from(Failure(name, "text"))) is errors.GpushareError
