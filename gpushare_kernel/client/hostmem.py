"""What this session holds on a host device: private memory of its tree, less what it began with.

A host has no allocator of ours to ask, so memory is what the kernel says: resident pages no file
backs. The baseline (the interpreter, IPython) is taken once, in the kernel's own process; children
inherit it through the environment and measure the same tree.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

from gpushare_kernel import procfs

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = "/proc/self/clear_refs"
_RESET_PEAK = b"5"
_FRESH = 0.25


class HostMemory:
    """Measures one session's tree, from inside it.

    Attributes
    ----------
    last, highest
        The latest measurement, and the highest since `start_peak`, in bytes. Reading them costs nothing.
    """

    def __init__(self, root: int | None = None, baseline: int | None = None) -> None:
        self._root = os.getpid() if root is None else root
        self._baseline = self._private() if baseline is None else baseline
        self._peak_counts = False
        self._at = 0.0
        self.last = 0
        self.highest = 0

    def now(self) -> int:
        """Return the bytes held now."""
        self.last = max(0, self._private() - self._baseline)
        self.highest = max(self.highest, self.last)
        self._at = time.monotonic()
        return self.last

    def recent(self) -> int:
        """Return the bytes held now, or a moment ago."""
        return self.last if time.monotonic() - self._at < _FRESH else self.now()

    def known(self) -> int:
        """Return the bytes held now, or a moment ago: any thread may read them."""
        return self.recent()

    def start_peak(self) -> None:
        """Forget the peak so far. Where the kernel does not permit that, samples stand in for it."""
        self._peak_counts = False
        with contextlib.suppress(OSError):
            fd = os.open(_CLEAR_REFS, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, _RESET_PEAK)
                self._peak_counts = True
            finally:
                os.close(fd)
        self.highest = 0
        self.now()

    def peak(self) -> int:
        """Return the most bytes held since `start_peak`."""
        held = self.now()
        if self._peak_counts:
            # VmHWM counts file pages too. They hardly change while a cell runs, so what the whole
            # grew by above today's value is what the private part did.
            resident, highest = _resident_and_highest()
            held += max(0, highest - resident)
        self.highest = max(self.highest, held)
        return self.highest

    def ephemeral(self) -> int:
        """Return 0: the process's peak counts pages of files too, which is too coarse to hold a job to."""
        return 0

    def job_over(self) -> None:
        """Nothing to do: pages that are freed go back by themselves, sooner or later."""

    def settle(self) -> None:
        """Nothing to wait for: a host has done what was asked of it."""

    def capturing(self) -> bool:
        """Never: a host does what it is asked at once."""
        return False

    def trim(self) -> None:
        """Give back what is free: unreachable objects, then the allocator's empty pages."""
        gc.collect()
        _malloc_trim(0)

    def _private(self) -> int:
        return sum(procfs.private_memory(key.pid) or 0 for key in procfs.tree(self._root))


def _resident_and_highest() -> tuple[int, int]:
    sizes = {"VmHWM:": 0, "VmRSS:": 0}
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, *rest = line.split()[:2]
        if name in sizes and rest:
            sizes[name] = int(rest[0]) * 1024
    return sizes["VmRSS:"], sizes["VmHWM:"]


def _find_malloc_trim() -> Callable[[int], object]:
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None).malloc_trim
    return lambda _pad: None  # musl has none: its allocator gives back by itself


_malloc_trim = _find_malloc_trim()
