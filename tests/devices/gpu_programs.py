"""Programs that use a real GPU: they count their steps in shared memory, so that it is seen whether they run."""

from __future__ import annotations

import mmap
import struct
import tempfile
from pathlib import Path

from gpushare_kernel.devices.base import Target
from tests.procs import Program, eventually

COUNTING = """
import mmap, struct
shared = mmap.mmap(os.open({path!r}, os.O_RDWR), 8 * 8)
def counted(place=0):
    shared[8*place:8*place+8] = struct.pack('<Q', struct.unpack('<Q', shared[8*place:8*place+8])[0] + 1)
"""
"""`counted(n)` adds one to counter n of eight. The counters lie in a file of which each process maps its own."""

MATMULS = """
import torch
a = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
b = torch.empty_like(a)
def step():
    for _ in range(4): torch.matmul(a, a, out=b)
    torch.cuda.synchronize()
step(); say('up')
"""
"""A torch process that is about to multiply matrices."""

LOOP = "while True: step(); counted()\n"


class Counting(Program):
    """A running program with eight counters; it says `up` when it is at work."""

    def __init__(self, code: str) -> None:
        with tempfile.NamedTemporaryFile(suffix=".counters", delete=False) as file:
            file.write(bytes(8 * 8))
            file.flush()
            self._file = Path(file.name)
            self._shared = mmap.mmap(file.fileno(), 8 * 8, prot=mmap.PROT_READ)
        super().__init__(COUNTING.format(path=str(self._file)) + code, site=True)
        self.target = Target(self.key)

    def up(self) -> None:
        """Wait until it is at work."""
        assert self.said() == ["up"]

    def count(self, place: int = 0) -> int:
        """Steps so far."""
        return int(struct.unpack("<Q", self._shared[8 * place : 8 * place + 8])[0])

    def goes_on(self, place: int = 0, *, steps: int = 10, seconds: float = 20.0) -> None:
        """Wait until it has made some more steps."""
        before = self.count(place)
        eventually(lambda: self.count(place) >= before + steps, seconds)

    def stands_still(self, place: int = 0) -> bool:
        """Tell whether another process can use 100 ms of CPU while it makes no step."""
        elsewhere(0.02)  # the step whose work has drained may still be counted
        before = self.count(place)
        elsewhere(0.1)
        return self.count(place) == before

    def __exit__(self, *what: object) -> None:
        super().__exit__(*what)
        self._file.unlink(missing_ok=True)


def matmuls() -> Counting:
    """Return a torch process at work."""
    return Counting(MATMULS + LOOP)


def elsewhere(seconds: float) -> None:
    """Let another process use some CPU time."""
    with Program(f"spin({seconds}); say('done')") as other:
        other.said()
