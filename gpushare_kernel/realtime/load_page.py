"""What every node has to do, in memory that all of them see: two words each, written by the node itself.

A best-effort job looks here for a node that has no real-time work. A word may be old when it is read: then the job waits
there instead of here, and nothing worse.
"""

from __future__ import annotations

import mmap
import os
from typing import Self

_WORD = 4
_WORDS = 2


class LoadPage:
    """The words of all nodes. `fd` may be passed on; whoever maps it closes what it mapped."""

    def __init__(self, fd: int, nodes: int) -> None:
        self.fd, self.nodes = fd, nodes
        self._map = mmap.mmap(fd, nodes * _WORDS * _WORD)
        self._words = memoryview(self._map).cast("I")

    @classmethod
    def create(cls, nodes: int) -> Self:
        """Return a new page, all words 0."""
        fd = os.memfd_create("gpushare-nodes", os.MFD_CLOEXEC)
        os.ftruncate(fd, nodes * _WORDS * _WORD)
        return cls(fd, nodes)

    def say(self, node: int, rt: int, be: int) -> None:
        """Write how many jobs of each kind `node` has, running and waiting."""
        self._words[_WORDS * node] = rt
        self._words[_WORDS * node + 1] = be

    def rt(self, node: int) -> int:
        """Return how many real-time jobs a node has."""
        return self._words[_WORDS * node]

    def be(self, node: int) -> int:
        """Return how many best-effort jobs a node has."""
        return self._words[_WORDS * node + 1]

    def close(self) -> None:
        """Let go of it."""
        self._words.release()
        self._map.close()
        os.close(self.fd)
