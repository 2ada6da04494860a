"""Messages of every type with values out of hypothesis, against a whole broker: answered or refused, and never a failure of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.core.validate import validate
from gpushare_kernel.core.values import GiB
from gpushare_kernel.transport.channel import read_frame
from gpushare_kernel.transport.frames import HEADER, FrameBuffer
from gpushare_kernel.wire import messages as msg
from tests.broker.house import Caller, House

_SIZES = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, 2**50, 2**63 - 1, -(2**63)]), st.integers(0, 9 * GiB)
)
_FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, 1e308, -1e308, float("nan"), float("inf")]))
_TEXTS = st.one_of(st.sampled_from(["j1", "j2", "x", "", "../x", "\x1b[2J"]), st.text(max_size=80))
_KEPT = (msg.Stop, msg.SetPolicy)
"""An administrator may do these, and the test is root's."""


def _value(kind: object) -> st.SearchStrategy[object]:  # noqa: PLR0911  one a type
    """Return values of a field's type, as the codec sees it."""
    match kind:
        case msgspec.inspect.IntType():
            return _SIZES
        case msgspec.inspect.FloatType():
            return _FLOATS
        case msgspec.inspect.StrType():
            return _TEXTS
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([_value(each) for each in types])
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(_value(item), max_size=4)
        case msgspec.inspect.TupleType(item_types=items):
            return st.tuples(*[_value(each) for each in items])
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_value(key), _value(value), max_size=3)
        case msgspec.inspect.StructType(cls=cls):
            return _body(cls)
    raise AssertionError(kind)


def _body(cls: type) -> st.SearchStrategy[object]:
    """Return messages of a type as plain data; fields with a default are there or not."""
    info = msgspec.inspect.type_info(cls)
    assert isinstance(info, msgspec.inspect.StructType)
    needed = {f.encode_name: _value(f.type) for f in info.fields if f.required}
    others = {f.encode_name: _value(f.type) for f in info.fields if not f.required}
    told = {"type": st.just(str(info.tag))} if info.tag is not None else {}
    return st.fixed_dictionaries({**told, **needed}, optional=others)


REQUESTS = [cls for cls in get_args(msg.Request) if cls not in _KEPT]
FRAMES = st.one_of(
    st.tuples(st.just(0), st.integers(1, 1000), st.one_of([_body(cls) for cls in REQUESTS])),
    st.tuples(st.just(2), st.just(0), st.one_of([_body(c) for c in get_args(msg.ClientNotice)])),
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One broker for all examples: what one leaves behind is a find of the next."""
    with House(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


class Line:
    """A client that attaches again where its last frame ended the connection."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.opened = house.open("fuzz.ipynb")
        house.bind(self.opened)
        self.caller: Caller | None = None

    def handled(self, frames: list[object]) -> None:
        """Send frames and a plain question, and read until that is answered or the line ends."""
        caller = self.caller or self.house.attach(self.opened)
        last = [0, 2**40, {"type": "GetNeeds"}]
        data = [msgspec.msgpack.encode(frame) for frame in [*frames, last]]
        self.caller = caller
        buffer = FrameBuffer(msg.FROM_BROKER_LIMIT)
        try:
            caller.sock.sendall(b"".join(HEADER.pack(len(each)) + each for each in data))
            while True:
                kind, number, _body = msgspec.msgpack.decode(read_frame(caller.sock, buffer))
                if kind == msg.Kind.REPLY and number == 2**40:
                    return
        except (OSError, BrokerUnavailable):  # it has hung up
            caller.close()
            self.caller = None


@pytest.fixture(scope="module")
def line(house: House) -> Line:
    """The hostile one."""
    return Line(house)


@given(st.lists(FRAMES, min_size=1, max_size=6))
@settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_message_makes_us_fail(
    house: House, line: Line, caplog: pytest.LogCaptureFixture, frames: list[object]
) -> None:
    """Whatever the values: no traceback in the log, and the scheduler's invariants hold."""
    caplog.clear()
    line.handled(frames)
    house.do(lambda: validate(house.broker.scheduler))
    wrong = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert not wrong
