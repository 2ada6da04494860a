"""Framing: any cut of the stream gives the same frames, and a long one is refused by its header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpushare_kernel.core.errors import FrameTooLong
from gpushare_kernel.transport.frames import HEADER, FrameBuffer, pack

LIMIT = 100


@given(st.lists(st.binary(max_size=LIMIT), max_size=8), st.data())
def test_any_cut_gives_the_same_frames(payloads: list[bytes], data: st.DataObject) -> None:
    """However the stream is cut, exactly the frames that were packed come out, in order."""
    stream = b"".join(pack(payload, LIMIT) for payload in payloads)
    buffer = FrameBuffer(LIMIT)
    out: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        out += buffer.feed(stream[:size])
        stream = stream[size:]
    assert out == payloads
    assert len(buffer) == 0


def test_too_long_is_refused_by_the_header() -> None:
    """The header alone is enough to refuse, with both numbers; the frames before it still come out."""
    frames = FrameBuffer(LIMIT).feed(pack(b"first", LIMIT) + HEADER.pack(LIMIT + 1))
    assert next(frames) == b"first"
    with pytest.raises(FrameTooLong, match="101 bytes is over the limit of 100"):
        next(frames)


def test_pack_refuses_too() -> None:
    """A sender learns of the limit before it sends."""
    assert pack(bytes(LIMIT), LIMIT)
    with pytest.raises(FrameTooLong):
        pack(bytes(LIMIT + 1), LIMIT)


def test_unread_frames_are_kept() -> None:
    """A reader that takes one frame at a time loses none."""
    buffer = FrameBuffer(LIMIT)
    assert next(buffer.feed(pack(b"a", LIMIT) + pack(b"b", LIMIT))) == b"a"
    assert next(buffer.feed(b"")) == b"b"
    assert next(buffer.feed(b""), None) is None
