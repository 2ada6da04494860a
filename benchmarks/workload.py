"""The work that is counted: sha256 over 1 MiB (which lets go of the GIL), block after block. Run in kernels as a cell.

Each thread counts its blocks in a word of a file that everybody maps, so whoever measures reads them
without asking. Nothing of gpushare is imported here: a local kernel runs the same lines.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
import time

BLOCK = bytes(2**20)


def count(path: str, slots: list[int], until: float) -> None:
    """Work until the monotonic clock says `until`, with one thread for each of `slots`."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:  # noqa: PTH123
        words = memoryview(mapped).cast("Q")
        others = [threading.Thread(target=_count, args=(words, n, until)) for n in slots[1:]]
        for thread in others:
            thread.start()
        _count(words, slots[0], until)
        for thread in others:
            thread.join()
        words.release()


def _count(words: memoryview, slot: int, until: float) -> None:
    while time.monotonic() < until:
        hashlib.sha256(BLOCK)
        words[slot] += 1
