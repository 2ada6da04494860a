"""Messages of every type with values out of hypothesis, against a whole broker: answered or refused, and never a failure of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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

_WRONG = [-1, 2**50, 2**63 - 1, -(2**63)]
_SIZES = st.sampled_from([*[0, 1, 2**20, GiB, 3 * GiB, 9 * GiB] * 3, *_WRONG])
_FLOATS = st.sampled_from([*[0.0, 0.001, 1.0, 60.0] * 6, 1e308, -1e308, 5e-324, float("nan"), float("inf")])  # fmt: skip
_TEXTS = st.one_of(st.sampled_from(["j1", "x", "", "../x", "\x1b[2J"]), st.text(max_size=80))
_FIELDS: dict[str, st.SearchStrategy[object]] = {
    "job": st.sampled_from([*["j1", "j2", "j3", "j4", "j5"] * 20, "", "\u202e", "j" * 65]),
    "weight": st.sampled_from([*[1.0, 0.5, 3.0] * 5, 0.0, -1.0, 1e308, float("nan")]),
    "notebook": st.sampled_from([None, "fuzz.ipynb", "other.ipynb", "nobody's"]),
    "frameworks": st.sampled_from([[], ["torch 2.9.0"], ["\x00"]]),
    "realtime": st.none(),
    "dry_run": st.sampled_from([False, False, False, True]),
    "persistent": st.one_of(st.none(), _SIZES),
    "ephemeral": st.one_of(st.none(), _SIZES),
    "size": st.one_of(st.none(), st.none(), _SIZES),
}
"""Fields whose values decide how far a request gets: most of them make sense, so that it gets somewhere."""
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


def _field(field: msgspec.inspect.Field) -> st.SearchStrategy[object]:
    known = _FIELDS.get(field.name)
    if known is None:
        return _value(field.type)
    # None only where it may be: what is refused by its shape gets nowhere.
    may_be_none = not field.required and isinstance(field.type, msgspec.inspect.UnionType)
    return known if may_be_none else known.filter(lambda value: value is not None)


def _body(cls: type) -> st.SearchStrategy[object]:
    """Return messages of a type as plain data; fields with a default are there or not."""
    info = msgspec.inspect.type_info(cls)
    assert isinstance(info, msgspec.inspect.StructType)
    needed = {f.name: _field(f) for f in info.fields if f.required}
    others = {f.name: _field(f) for f in info.fields if not f.required}
    told = {"type": st.just(str(info.tag))} if info.tag is not None else {}
    return st.fixed_dictionaries({**told, **needed}, optional=others)


REQUESTS = [cls for cls in get_args(msg.Request) if cls not in _KEPT]
NOTICES = get_args(msg.ClientNotice)
JOBS = [msg.Submit, msg.Submit, msg.Submit, msg.Yield, msg.End, msg.Cancel, msg.Release]


def _frames(classes: Sequence[type], kind: int) -> st.SearchStrategy[object]:
    number = st.just(0) if kind == msg.Kind.NOTICE else st.integers(1, 1000)
    return st.one_of([st.tuples(st.just(kind), number, _body(cls)) for cls in classes])


FRAMES = st.one_of(
    *[_frames(JOBS, msg.Kind.REQUEST)] * 5,
    _frames(REQUESTS, msg.Kind.REQUEST),
    _frames([msg.CellStarted, msg.CellEnded] * 5 + [*NOTICES], msg.Kind.NOTICE),
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One broker for all examples: what one leaves behind is a find of the next."""
    with House(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


class Line:
    """A client that has another session where its last frame ended the connection."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.caller: Caller | None = None

    def handled(self, frames: list[object]) -> None:
        """Send frames and a plain question, and read until that is answered or the line ends."""
        caller = self.caller or self.house.notebook("fuzz.ipynb")
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
            opened: msg.Opened = caller.opened  # type: ignore[attr-defined]
            self.house.call(msg.Close(opened.session, opened.token)).close()
            caller.close()
            self.caller = None


@pytest.fixture(scope="module")
def line(house: House) -> Line:
    """The hostile one."""
    return Line(house)


@given(st.lists(FRAMES, min_size=6, max_size=12))
@settings(
    max_examples=200,
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
