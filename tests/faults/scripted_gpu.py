"""A GPU in files for a real broker and real kernels: the driver of `tests/devices/gpu.py`, and an NVML that reads what processes wrote."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpushare_kernel import procfs
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.devices.nvml import DeviceMemory, GpuInfo, Running
from tests.devices.gpu import FakeNvml, fake_worker

TOTAL = 8 * GiB
CONTEXT = 520 * MiB
COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("parking_broker.py")))
"""How the broker on this GPU is started."""
INFO = GpuInfo(0, "GPU-scripted", "Scripted GPU", TOTAL)


class FileNvml(FakeNvml):
    """What processes say of themselves in `held.PID`, and a rogue that no list shows in `rogue`."""

    def __init__(self, place: Path) -> None:
        super().__init__(INFO)
        self.files = place

    def memory(self) -> DeviceMemory:
        used = self._number("rogue") + sum(one.size for one in self.processes())
        return DeviceMemory(TOTAL, TOTAL - used, used)

    def processes(self) -> Sequence[Running]:
        found = [int(file.suffix[1:]) for file in self.files.glob("held.*[0-9]")]
        return [
            Running(pid, self._number(f"held.{pid}"), False) for pid in found if self._here(pid)
        ]

    def _here(self, pid: int) -> bool:
        lives = procfs.state(pid) not in {None, *procfs.ENDED}
        return lives and self._text(f"state.{pid}") not in {"checkpointed", "failed"}

    def _number(self, name: str) -> int:
        return int(self._text(name) or 0)

    def _text(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self.files / name).read_text()
        return ""


class ScriptedGpu:
    """The test's hand on it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(exist_ok=True)
        fake_worker(place)
        self.set("total", TOTAL)

    def set(self, name: str, value: object) -> None:
        """Script the driver, or NVML."""
        (self.place / f"{name}~").write_text(str(value))
        (self.place / f"{name}~").rename(self.place / name)

    def unset(self, name: str) -> None:
        """Take a script back."""
        (self.place / name).unlink(missing_ok=True)

    def state(self, pid: int) -> str:
        """How a process stands with the driver."""
        with contextlib.suppress(FileNotFoundError):
            return (self.place / f"state.{pid}").read_text()
        return "running"

    def log(self, what: str, pid: int) -> int:
        """How often the driver was asked this about a process."""
        log = self.place / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return sum(line.split()[:2] == [what, str(pid)] for line in lines)

    @contextlib.contextmanager
    def slow_moves(self, pid: int) -> Iterator[None]:
        """Moves of a process hang in the driver until the block is over."""
        gate = self.place / f"move.{pid}"
        os.mkfifo(gate)
        try:
            yield
        finally:
            # Opened for both, this waits for nobody: who reads it already goes on, whoever comes later finds none.
            fd = os.open(gate, os.O_RDWR)
            gate.unlink()
            os.close(fd)
