"""The CUDA device on a real GPU: a torch process that multiplies matrices, and counts in shared memory."""

from __future__ import annotations

import asyncio
import importlib.util
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MiB, PauseStatus, ProcessKey
from gpushare_kernel.devices import cuda
from gpushare_kernel.devices.base import PauseOutcome, Target
from gpushare_kernel.devices.cuda import CudaDevice
from tests.devices.records import Record
from tests.procs import Program, eventually

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch"),
]

MATMULS = """
import mmap, struct, torch
shared = mmap.mmap(os.open({path!r}, os.O_RDWR), 8)
a = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
b = torch.empty_like(a)
def step():
    for _ in range(4): torch.matmul(a, a, out=b)
    torch.cuda.synchronize()
step(); say('up')
count = 0
while True:
    step(); count += 1; shared[:8] = struct.pack('<Q', count)
"""

LONG_KERNEL = """
import torch
torch.cuda._sleep(1); torch.cuda.synchronize(); say('up'); wait()
torch.cuda._sleep(6_000_000_000); say('launched'); torch.cuda.synchronize(); say('over'); wait()
"""


class Matmuls(Program):
    """The running torch process, with its counter."""

    def __init__(self, folder: Path) -> None:
        path = folder / "counter"
        path.write_bytes(bytes(8))
        with path.open("rb") as file:
            self._shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
        super().__init__(MATMULS.format(path=str(path)), site=True)
        self.target = Target(self.key)
        assert self.said() == ["up"]

    @property
    def count(self) -> int:
        """Steps so far."""
        return int(struct.unpack("<Q", self._shared[:8])[0])

    def goes_on(self) -> None:
        """Wait until it has made ten more steps."""
        before = self.count
        eventually(lambda: self.count >= before + 10)

    def stands_still(self) -> bool:
        """Tell whether another process can use 100 ms of CPU while it makes no step."""
        elsewhere(0.02)  # the step whose work has drained may still be counted
        before = self.count
        elsewhere(0.1)
        return self.count == before


def elsewhere(seconds: float) -> None:
    with Program(f"spin({seconds}); say('done')") as other:
        other.said()


@pytest.fixture
def device(record: Record) -> Iterator[CudaDevice]:
    """The first GPU."""
    device = CudaDevice(record)
    yield device
    device.close()
    assert record.keys == []


@pytest.fixture
def matmuls(tmp_path: Path) -> Iterator[Matmuls]:
    """A torch process at work."""
    with Matmuls(tmp_path) as program:
        program.goes_on()
        yield program


def pause(device: CudaDevice, target: Target, limit: float = 2.0) -> PauseOutcome:
    return asyncio.run(device.pause(target, limit=limit))


def resume(device: CudaDevice, target: Target) -> PauseStatus:
    return asyncio.run(device.resume(target)).status


def test_inventory_is_the_gpu_s(device: CudaDevice) -> None:
    """A name, a uuid, and memory."""
    assert device.inventory.kind == "cuda"
    assert device.inventory.id.startswith("GPU-")
    assert device.inventory.capacity > 1024 * MiB


def test_a_paused_process_stands_still_and_goes_on(
    device: CudaDevice, record: Record, matmuls: Matmuls
) -> None:
    """Its counter stops, its memory stays; after the resume it counts on from there."""
    before = device.usage(matmuls.target, memory=True)
    outcome = pause(device, matmuls.target)
    assert outcome.status is PauseStatus.PAUSED
    assert outcome.drain < 1.0
    assert record.keys == [matmuls.key]
    assert matmuls.stands_still()
    device._sample = None
    during = device.usage(matmuls.target, memory=True)
    assert before is not None
    assert during is not None
    if before.memory:  # 0 where NVML's pids are of another namespace than ours
        assert before.memory > 100 * MiB
    assert during.memory == before.memory
    assert resume(device, matmuls.target) is PauseStatus.NOTHING
    matmuls.goes_on()


def test_pauses_can_follow_each_other_fast(device: CudaDevice, matmuls: Matmuls) -> None:
    """Fifty turns, and what a turn costs, for the record."""
    drains, resumes = [], []
    for _ in range(50):
        outcome = pause(device, matmuls.target)
        assert outcome.status is PauseStatus.PAUSED
        drains.append(outcome.drain)
        answer = asyncio.run(device.resume(matmuls.target))
        assert answer.status is PauseStatus.NOTHING
        resumes.append(answer.drain)
    matmuls.goes_on()
    drains, resumes = sorted(drains), sorted(resumes)
    print(f"pause median {drains[25] * 1e3:.2f} ms, worst {drains[-1] * 1e3:.2f} ms")
    print(f"resume median {resumes[25] * 1e3:.2f} ms, worst {resumes[-1] * 1e3:.2f} ms")


def test_a_worker_killed_while_it_holds_the_lock_is_replaced(
    device: CudaDevice, matmuls: Matmuls
) -> None:
    """'the locker dies holding the lock: target stays locked; any other allowed process can unlock it'."""
    pause(device, matmuls.target)
    os.kill(device._links[matmuls.key].pid, signal.SIGKILL)
    assert matmuls.stands_still()
    assert resume(device, matmuls.target) is PauseStatus.NOTHING
    matmuls.goes_on()


def test_a_second_pause_by_a_new_worker_finds_the_lock(
    device: CudaDevice, matmuls: Matmuls
) -> None:
    """ILLEGAL_STATE and LOCKED: paused as asked."""
    pause(device, matmuls.target)
    os.kill(device._links[matmuls.key].pid, signal.SIGKILL)
    assert pause(device, matmuls.target).status is PauseStatus.PAUSED
    assert matmuls.stands_still()
    assert resume(device, matmuls.target) is PauseStatus.NOTHING
    matmuls.goes_on()


def test_the_end_of_the_line_unlocks(device: CudaDevice, matmuls: Matmuls) -> None:
    """The broker dies without a word: its worker lets the target go."""
    pause(device, matmuls.target)
    assert matmuls.stands_still()
    device._links[matmuls.key].hang_up()
    matmuls.goes_on()


def test_without_a_context_there_is_nothing_to_pause(device: CudaDevice, record: Record) -> None:
    """'CUDA_ERROR_NOT_INITIALIZED: not lockable, nothing to pause'."""
    with Program("say('up'); wait()") as program:
        program.said()
        assert pause(device, Target(program.key)).status is PauseStatus.NOTHING
        assert record.keys == []


def test_a_long_kernel_reaches_the_limit_and_is_unharmed(device: CudaDevice) -> None:
    """'500 ms limit on a 5 s kernel gives CUDA_ERROR_NOT_READY [...] RUNNING and unharmed'."""
    with Program(LONG_KERNEL, site=True) as program:
        program.said()
        target = Target(program.key)
        assert pause(device, target).status is PauseStatus.PAUSED
        resume(device, target)
        program.tell()
        assert program.said() == ["launched"]
        outcome = pause(device, target, limit=0.3)
        assert outcome.status is PauseStatus.BUSY
        assert outcome.drain < 1.0
        assert program.said() == ["over"]
        assert pause(device, target).status is PauseStatus.PAUSED
        resume(device, target)


def test_a_process_stopped_by_its_user_is_left_alone(device: CudaDevice, matmuls: Matmuls) -> None:
    """The driver is not asked; after SIGCONT a pause works."""
    os.kill(matmuls.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(matmuls.pid) == "T")
    assert pause(device, matmuls.target).status is PauseStatus.STOPPED
    os.kill(matmuls.pid, signal.SIGCONT)
    matmuls.goes_on()
    assert pause(device, matmuls.target).status is PauseStatus.PAUSED
    assert resume(device, matmuls.target) is PauseStatus.NOTHING


def test_stopped_just_before_the_lock_it_is_unlocked_in_the_end(
    device: CudaDevice, matmuls: Matmuls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """'Lock hangs far beyond its limit, until SIGCONT': the worker undoes what comes through late."""
    pause(device, matmuls.target)
    resume(device, matmuls.target)
    os.kill(matmuls.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(matmuls.pid) == "T")
    look, looks = cuda._standing, []

    def too_late(root: ProcessKey) -> PauseStatus | None:
        looks.append(root)
        return look(root) if len(looks) > 1 else None

    with monkeypatch.context() as patch:
        patch.setattr(cuda, "_standing", too_late)
        outcome = pause(device, matmuls.target, limit=0.2)
    assert outcome.status is PauseStatus.STOPPED
    assert outcome.drain < 2.0
    os.kill(matmuls.pid, signal.SIGCONT)
    eventually(lambda: device._answered(matmuls.key))
    matmuls.goes_on()
    assert pause(device, matmuls.target).status is PauseStatus.PAUSED
    assert resume(device, matmuls.target) is PauseStatus.NOTHING
    matmuls.goes_on()


def test_killed_while_paused_it_is_gone(device: CudaDevice, matmuls: Matmuls) -> None:
    """'SIGKILL of a locked process: dies at once, its memory is freed'."""
    pause(device, matmuls.target)
    matmuls.process.kill()
    matmuls.process.wait(20)
    assert resume(device, matmuls.target) is PauseStatus.GONE
    eventually(lambda: device.foreign(0) < 200 * MiB)
