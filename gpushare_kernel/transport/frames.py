"""Frames on a byte stream: a little-endian u32 length, then the payload."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gpushare_kernel.core.errors import FrameTooLong

HEADER = struct.Struct("<I")


def pack(payload: bytes, limit: int) -> bytes:
    """Return `payload` with its length before it."""
    check_length(len(payload), limit)
    return HEADER.pack(len(payload)) + payload


def check_length(length: int, limit: int) -> None:
    """Refuse a frame longer than its direction allows."""
    if length > limit:
        msg = f"a frame of {length} bytes is over the limit of {limit} of its direction. Send less in one message."
        raise FrameTooLong(msg)


class FrameBuffer:
    """Cuts a byte stream into frames; holds at most one frame and the bytes last fed."""

    __slots__ = ("_data", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()

    def __len__(self) -> int:
        """Return how many bytes wait for the rest of their frame."""
        return len(self._data)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add `data` and yield each frame that is now complete.

        The bytes are kept even where the iterator is not read to its end.

        Raises
        ------
        FrameTooLong
            As soon as a header announces more than the limit, before any of that payload is kept.
        """
        self._data += data
        return self._frames()

    def _frames(self) -> Iterator[bytes]:
        buffer, head = self._data, HEADER.size
        while len(buffer) >= head:
            (length,) = HEADER.unpack_from(buffer)
            check_length(length, self._limit)
            if len(buffer) < head + length:
                return
            frame = bytes(memoryview(buffer)[head : head + length])
            del buffer[: head + length]
            yield frame
