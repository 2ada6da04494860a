"""A session's tally: its client counts boundaries in it, the broker reads the count whenever it likes.

A page of one u64, made and sealed by the broker (nobody can shrink it, so nobody meets SIGBUS). What a client
writes there is its own word about its own progress: whoever claims to be slow gets exclusive turns for its own
share of the time and no more (docs/turns.md).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Self

from gpushare_kernel.core.errors import BadFrame
from gpushare_kernel.transport.words import sealed_size

_SIZE = 8
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Tally:
    """Either side of a session's tally; takes over `fd`."""

    __slots__ = ("_map", "_word", "fd")

    def __init__(self, fd: int) -> None:
        try:
            _check(fd)
            self._map = mmap.mmap(fd, _SIZE)
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd
        self._word = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> Self:
        """Return a new tally that stands at 0; its `fd` goes to the session's client."""
        fd = os.memfd_create("gpushare-tally", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _SIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    def add(self) -> None:
        """Count one boundary (130 ns). Threads of one process may lose each other's count, never more than that."""
        self._word[0] += 1

    def read(self) -> int:
        """Return the count."""
        return self._word[0]

    def let_go(self) -> None:
        """Close the descriptor: the mapping is all a client needs, and it ends with the last one who holds this."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Give up the mapping and the descriptor."""
        if self.fd >= 0:
            self._word.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1


def _check(fd: int) -> None:
    size = sealed_size(fd, "a tally")
    if size != _SIZE:
        msg = f"a tally is {_SIZE} bytes, but this memfd has {size}."
        raise BadFrame(msg)
