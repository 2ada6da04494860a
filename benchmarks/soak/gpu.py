"""The GPU of the soak: the one in files of the tests, of a size of its own, whose lock waits for calls that are under way."""

from __future__ import annotations

import sys
from pathlib import Path

from gpushare_kernel.core.values import MiB
from gpushare_kernel.devices.nvml import DeviceMemory
from tests.devices.gpu import FAKE
from tests.faults.scripted_gpu import CONTEXT, FileNvml

COMMAND = (sys.executable, "-P", str(Path(__file__).resolve().with_name("broker.py")))
"""How the soak's broker is started."""
ERRORS = "errors.jsonl"
"""Beside the GPU: what went wrong in any broker of a run."""
KEPT = 64 * MiB
"""What each notebook keeps there."""
LANE = 32 * MiB
_LAST = "sys.exit(not Worker"
DRIVER = (
    FAKE[: FAKE.index(_LAST)]
    + '''
import fcntl, time
class Drains(Fake):
    """As the real one: a lock waits until what was submitted is done, and gives up at its limit."""
    def note(self, *words): pass
    def lock(self, pid, milliseconds):
        until = time.monotonic() + milliseconds / 1000
        with (place / f"calls.{pid}").open("a") as calls:
            while True:
                try:
                    fcntl.flock(calls, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return super().lock(pid, milliseconds)
                except BlockingIOError:
                    if time.monotonic() > until: return "CUDA_ERROR_NOT_READY"
                    time.sleep(0.001)
    def restore(self, pid):  # beside nobody who allocates (player.py)
        with (place / "allocates").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            return super().restore(pid)
'''
)
"""The program of a lock worker with such a driver, but for its last line (`SERVES`)."""
SERVES = "sys.exit(not Worker({}()).serve(sys.stdin, sys.stdout))\n"


def place_worker(place: Path, text: str = DRIVER + SERVES.format("Drains")) -> list[str]:
    """Return the command of a lock worker; its program is written once, whole."""
    program = place / "drains.py"
    if not program.exists():
        fresh = place / "drains.new"
        fresh.write_text(text)
        fresh.rename(program)
    return [sys.executable, str(program), str(place)]


def total_for(sessions: int) -> int:
    """Return a size on which nine of ten notebooks find room, so that idle ones are parked; of a few all do."""
    return max(5, sessions * 9 // 10) * (CONTEXT + KEPT + LANE)


class Sized(FileNvml):
    """As large as the file `total` says."""

    def memory(self) -> DeviceMemory:
        total = self._number("total")
        used = sum(one.size for one in self.processes())
        return DeviceMemory(total, total - used, used)
