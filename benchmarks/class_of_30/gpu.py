"""A GPU of 16 GiB in files: what `tests/faults/scripted_gpu.py` has, and beside that it is busy, full, and takes its time.

It divides its time among the notebooks that have work there (`student.py`), NVML says how much of the last window it worked, a lock waits for the piece
that is under way, and a checkpoint and a restore take as long as they were measured to take on a real one.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

from benchmarks.soak.gpu import DRIVER, SERVES, Sized, place_worker
from gpushare_kernel.broker.hardware import PARK_SPEED, RESTORE_SPEED
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.devices.base import NVML_WINDOW
from gpushare_kernel.devices.nvml import AtWork, GpuInfo

COMMAND = (sys.executable, "-P", str(Path(__file__).resolve().with_name("broker.py")))
"""How the broker on it is started."""
SEAT = 16 * GiB // 30
"""What falls to each of 30 students; fewer have a smaller GPU."""
CONTEXT = 614 * MiB
"""What a notebook takes there before it holds anything: 0.6 GiB."""
BUSY = "busy"
"""Beside the GPU, words of 8 bytes: for each student the nanoseconds of the device's time that it has had, then for each whether it is at work there now, then its process."""
_MOVES = f"""
class Moves(Drains):
    def lock(self, pid, milliseconds):
        wanted = place / f"wanted.{{pid}}"  # nothing new is submitted from now on
        wanted.touch()
        try:
            return super().lock(pid, milliseconds)
        finally:
            wanted.unlink(missing_ok=True)
    def move(self, pid, before, after, name):
        size = int((place / f"held.{{pid}}").read_text() or 0)
        time.sleep(size / {{"checkpoint": {PARK_SPEED}, "restore": {RESTORE_SPEED}}}[name])
        return super().move(pid, before, after, name)
"""


def worker(place: Path) -> list[str]:
    """Return the command of a lock worker on it."""
    return place_worker(place, DRIVER + _MOVES + SERVES.format("Moves"))


class Meter(Sized):
    """Says how much of each window of NVML's the device worked, and who did most of it."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        total = int((place / "total").read_text())
        self.info = GpuInfo(0, "GPU-in-files", "GPU in files", total)
        self._began = time.monotonic()
        self._worked: Sequence[int] = ()
        self._part = 0.0
        self._last: dict[int, int] = {}

    def utilization(self) -> float:
        """Return it for the last window that is over."""
        self._look()
        return self._part

    def process_utilization(self, since: int) -> Sequence[AtWork]:
        """Return who was seen at work, and when (us of a clock of its own)."""
        self._look()
        return [AtWork(pid, at, 1.0) for pid, at in self._last.items() if at > since]

    def _look(self) -> None:
        now = time.monotonic()
        passed = now - self._began
        if passed < NVML_WINDOW:
            return
        words = array("Q", (self.files / BUSY).read_bytes())
        worked, pids = words[: len(words) // 3], words[2 * len(words) // 3 :]
        before = self._worked or [0] * len(worked)
        made = [new - old for new, old in zip(worked, before, strict=True)]
        self._part = min(1.0, sum(made) / 1e9 / passed)
        if any(made):
            self._last[pids[made.index(max(made))]] = int(now * 1e6)
        self._began, self._worked = now, worked
