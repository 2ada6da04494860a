"""Shared words: the broker writes, a client reads one in 50 ns at each boundary and asks nobody.

A page is a memfd of u32 words. The writer maps it, then seals it: nobody can shrink it (a reader
never meets SIGBUS), grow it, or map it for writing again, whoever holds the descriptor.
Slot 0 is the session's word, every other slot one job's.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Self

from gpushare_kernel.core.errors import BadFrame

TURN = 1
"""Bit of a job's word: the broker wants the turn back at the next boundary."""
LANE = 2
"""Bit of a job's word: somebody waits for the lane; trim at the next boundary."""
PAUSED = 1
"""Bit of the session's word (slot 0): set *before* the session is stopped, cleared after it runs again."""

AWAY = 2
"""Bit of the session's word (slot 0): set *before* its device memory is given back, cleared when it is there again."""
ENDED = 4
"""Bit of the session's word (slot 0): the broker has signalled its process to end, as its administrator wanted."""

SLOTS = 64
_WORD = 4
_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE, Linux 5.1; the fcntl module names it from Python 3.13
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _FUTURE_WRITE | fcntl.F_SEAL_SEAL


class WordPage:
    """The writer's side of one session's words."""

    __slots__ = ("_map", "_words", "fd", "slots")

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self.slots = slots
        self._map = mmap.mmap(fd, slots * _WORD)
        self._words = memoryview(self._map).cast("I")

    @classmethod
    def create(cls, slots: int = SLOTS) -> Self:
        """Return a new page with every word 0; its `fd` may be passed to anybody."""
        fd = os.memfd_create("gpushare-words", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, slots * _WORD)
            page = cls(fd, slots)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return page

    def set(self, slot: int, value: int) -> None:
        """Write a word; readers see the old or the new one, never a mixture."""
        self._words[slot] = value

    def get(self, slot: int) -> int:
        """Return a word."""
        return self._words[slot]

    def close(self) -> None:
        """Give up the mapping and the descriptor. Readers keep theirs."""
        if self.fd >= 0:
            self._words.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1


class WordView:
    """A reader's side. Takes over `fd` and closes it: the mapping is all it needs."""

    __slots__ = ("_map", "_words")

    def __init__(self, fd: int) -> None:
        try:
            self._map = mmap.mmap(fd, _checked_size(fd), prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("I")

    def __len__(self) -> int:
        """Return the number of slots."""
        return len(self._words)

    def read(self, slot: int) -> int:
        """Return a word as it is now."""
        return self._words[slot]

    def close(self) -> None:
        """Give up the mapping."""
        self._words.release()
        self._map.close()


def sealed_size(fd: int, what: str) -> int:
    """Return the size of a memfd, sealed against shrinking: reading behind a file's end would be SIGBUS.

    Raises
    ------
    BadFrame
        Where it is no memfd, or not so sealed; `what` is how the message calls it.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as problem:
        msg = f"{what}: a sealed memfd is passed, but this is another kind of descriptor."
        raise BadFrame(msg) from problem
    if not seals & fcntl.F_SEAL_SHRINK:
        msg = f"{what}: a memfd sealed against shrinking is passed, but this one has seals {seals:#x}."
        raise BadFrame(msg)
    return os.fstat(fd).st_size


def _checked_size(fd: int) -> int:
    size = sealed_size(fd, "shared words")
    if size < _WORD or size % _WORD:
        msg = f"shared words come in whole words of {_WORD} bytes, but this memfd has {size} bytes."
        raise BadFrame(msg)
    return size
