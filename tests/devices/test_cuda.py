"""Locking through workers, with a fake driver in real worker processes: no GPU needed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import MiB, PauseStatus
from gpushare_kernel.devices.base import Device, PauseOutcome, Target
from gpushare_kernel.devices.cuda import WORKER, CudaDevice
from gpushare_kernel.devices.cuda_worker import CudaDriver
from gpushare_kernel.devices.nvml import DeviceMemory
from tests.devices.records import Record
from tests.procs import Program, eventually

IDLE = "say('up'); wait()"

FAKE = f"""
import sys
sys.path[:0] = {[str(Path.cwd()), *sys.path]!r}
from pathlib import Path
from gpushare_kernel.devices.answers import ProcessState
from gpushare_kernel.devices.cuda_worker import serve

place = Path(sys.argv[1])

def read(name, default):
    file = place / name
    return file.read_text() if file.exists() else default

class Fake:
    def init(self):
        return read("init", "CUDA_SUCCESS")
    def lock(self, pid, milliseconds):
        with (place / "log").open("a") as log: log.write(f"lock {{pid}} {{milliseconds}}\\n")
        if read("crash", ""): sys.exit(1)
        if (place / "gate").exists(): (place / "gate").open().read()
        if answer := read("answer", ""): return answer
        if self.state(pid) != "running": return "CUDA_ERROR_ILLEGAL_STATE"
        (place / "state").write_text("locked")
        return "CUDA_SUCCESS"
    def unlock(self, pid):
        with (place / "log").open("a") as log: log.write(f"unlock {{pid}}\\n")
        if self.state(pid) != "locked": return "CUDA_ERROR_ILLEGAL_STATE"
        (place / "state").write_text("running")
        return "CUDA_SUCCESS"
    def state(self, pid):
        return ProcessState(read("state", "running"))

serve(Fake(), int(sys.argv[2]), sys.stdin, sys.stdout)
"""


class FakeNvml:
    """A GPU of 1000 MiB; the test sets what is free, and who holds what."""

    name, uuid = "Fake GPU", "GPU-fake"

    def __init__(self) -> None:
        self.free = 900 * MiB
        self.held: dict[int, int] = {}
        self.gone = False
        self.closed = False

    def memory(self) -> DeviceMemory:
        return DeviceMemory(1000 * MiB, self.free, 1000 * MiB - self.free)

    def process_memory(self) -> dict[int, int]:
        if self.gone:
            msg = "NVML is gone"
            raise DeviceError(msg)
        return self.held

    def close(self) -> None:
        self.closed = True


class Gpu:
    """A device with a fake driver, whose state lies in files: it outlives every worker."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "worker.py").write_text(FAKE)
        self.record = Record()
        self.nvml = FakeNvml()
        self.device = self.make()

    def make(self) -> CudaDevice:
        worker = [sys.executable, str(self.place / "worker.py"), str(self.place)]
        return CudaDevice(self.record, nvml=self.nvml, worker=worker)

    def set(self, name: str, value: str) -> None:
        (self.place / name).write_text(value)

    def state(self) -> str:
        return (self.place / "state").read_text()

    def log(self) -> list[str]:
        return (self.place / "log").read_text().splitlines()

    def pause(self, target: Target, limit: float = 20.0) -> PauseOutcome:
        return asyncio.run(self.device.pause(target, limit=limit))

    def resume(self, target: Target) -> PauseStatus:
        return asyncio.run(self.device.resume(target)).status

    def worker(self, target: Target) -> int:
        return self.device._links[target.root].pid


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Gpu]:
    """A fake GPU; afterwards nothing is on record, and every worker has gone."""
    gpu = Gpu(tmp_path)
    yield gpu
    gpu.device.close()
    assert gpu.record.keys == []
    assert gpu.nvml.closed


@pytest.fixture
def target() -> Iterator[Target]:
    """A process to pause."""
    with Program(IDLE) as program:
        program.said()
        yield Target(program.key)


# ---------------------------------------------------------------- the device


def test_it_is_a_device(gpu: Gpu) -> None:
    """Named by NVML; capacity is what is free at the start."""
    device: Device = gpu.device
    assert device.inventory.kind == "cuda"
    assert device.inventory.name == "Fake GPU"
    assert device.inventory.capacity == 900 * MiB
    assert not device.capabilities.can_park


def test_pause_locks_and_resume_unlocks(gpu: Gpu, target: Target) -> None:
    """The limit reaches the driver; intent is on record in between."""
    outcome = gpu.pause(target, limit=0.5)
    assert outcome.status is PauseStatus.PAUSED
    assert gpu.state() == "locked"
    assert gpu.log() == [f"lock {target.root.pid} 500"]
    assert list(gpu.device.paused(target)) == gpu.record.keys == [target.root]
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state() == "running"
    assert not gpu.device.paused(target)


def test_one_worker_serves_a_target_again_and_again(gpu: Gpu, target: Target) -> None:
    """Starting one costs half a second: it stays."""
    gpu.pause(target)
    worker = gpu.worker(target)
    for _ in range(3):
        gpu.resume(target)
        gpu.pause(target)
    assert gpu.worker(target) == worker


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("CUDA_ERROR_NOT_READY", PauseStatus.BUSY),
        ("CUDA_ERROR_NOT_INITIALIZED", PauseStatus.NOTHING),
        ("CUDA_ERROR_NOT_SUPPORTED", PauseStatus.UNSUPPORTED),
        ("CUDA_ERROR_OPERATING_SYSTEM", PauseStatus.FORBIDDEN),
        ("CUDA_ERROR_ASSERT", PauseStatus.BROKEN),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", PauseStatus.BROKEN),
    ],
)
def test_the_driver_s_answers_become_statuses(
    gpu: Gpu, target: Target, answer: str, status: PauseStatus
) -> None:
    """Nothing is on record after a lock that did not come about."""
    gpu.set("answer", answer)
    assert gpu.pause(target).status is status
    assert gpu.record.keys == []
    assert not gpu.device.paused(target)


def test_a_target_stopped_by_its_user_is_not_asked_about(gpu: Gpu, target: Target) -> None:
    """The driver would hang until SIGCONT: no worker is even started, and none asked for an unlock."""
    gpu.pause(target)
    os.kill(target.root.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(target.root.pid) == "T")
    asked = gpu.log()
    assert gpu.pause(target).status is PauseStatus.STOPPED
    assert gpu.resume(target) is PauseStatus.STOPPED
    assert gpu.log() == asked
    assert list(gpu.device.paused(target)) == [target.root]
    os.kill(target.root.pid, signal.SIGCONT)
    eventually(lambda: procfs.state(target.root.pid) == "S")
    assert gpu.resume(target) is PauseStatus.NOTHING


def test_a_driver_that_hangs_costs_the_limit_and_harms_nobody(gpu: Gpu, target: Target) -> None:
    """BUSY; while the worker hangs nobody else asks; a lock that comes through late is undone."""
    os.mkfifo(gpu.place / "gate")
    outcome = gpu.pause(target, limit=0.05)
    assert outcome.status is PauseStatus.BUSY
    assert gpu.record.keys == []
    assert procfs.alive(target.root)
    assert gpu.pause(target, limit=0.05) == PauseOutcome(PauseStatus.BUSY)
    assert len(gpu.log()) == 1
    with (gpu.place / "gate").open("w"):  # the driver answers: locked
        (gpu.place / "gate").unlink()
    eventually(lambda: gpu.device._answered(target.root))
    assert gpu.log()[-1].startswith("unlock")
    assert gpu.state() == "running"
    assert gpu.pause(target).status is PauseStatus.PAUSED


def test_a_worker_killed_while_it_holds_the_lock_is_replaced(gpu: Gpu, target: Target) -> None:
    """'the locker dies holding the lock: target stays locked; any other allowed process can unlock it'."""
    gpu.pause(target)
    os.kill(gpu.worker(target), signal.SIGKILL)
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state() == "running"


def test_a_pause_after_its_worker_died_finds_the_lock(gpu: Gpu, target: Target) -> None:
    """Locked already is what was asked for; the new worker answers for it from now on."""
    gpu.pause(target)
    os.kill(gpu.worker(target), signal.SIGKILL)
    assert gpu.pause(target).status is PauseStatus.PAUSED
    gpu.device._hang_up(target.root)
    eventually(lambda: gpu.state() == "running")


def test_workers_that_die_at_every_lock_leave_the_target_alone(gpu: Gpu, target: Target) -> None:
    """Two tries, then it is said that this cannot be paused."""
    gpu.set("crash", "yes")
    assert gpu.pause(target).status is PauseStatus.UNSUPPORTED
    assert len(gpu.log()) == 2
    assert gpu.record.keys == []


@pytest.mark.parametrize("answer", ["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "CUDA_ERROR_NO_DEVICE"])
def test_without_a_working_driver_nothing_can_be_paused(
    gpu: Gpu, target: Target, answer: str
) -> None:
    """A driver replaced under us: the target runs on."""
    gpu.set("init", answer)
    assert gpu.pause(target).status is PauseStatus.UNSUPPORTED
    assert gpu.record.keys == []


def test_a_target_that_unlocked_itself_is_locked_again(gpu: Gpu, target: Target) -> None:
    """The cheat lasts until the next pause."""
    gpu.pause(target)
    gpu.set("state", "running")
    assert gpu.pause(target).status is PauseStatus.PAUSED
    assert gpu.state() == "locked"


def test_a_killed_target_is_gone(gpu: Gpu) -> None:
    """Killed while paused; its worker goes too."""
    with Program(IDLE) as program:
        program.said()
        target = Target(program.key)
        gpu.pause(target)
        gpu.device.usage(target)
        worker = gpu.device._links[target.root]
        program.process.kill()
        program.process.wait()
        assert not gpu.device.paused(target)
        assert gpu.resume(target) is PauseStatus.GONE
        assert gpu.pause(target).status is PauseStatus.GONE
        assert gpu.device.usage(target) is None
        assert worker.wait(20)
        assert gpu.device._links == {}
        assert gpu.device._clocks == {}


def test_resume_without_pause_starts_no_worker(gpu: Gpu, target: Target) -> None:
    """Nothing on record: nothing to ask."""
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.device._links == {}


def test_a_lock_left_by_an_earlier_broker_is_undone(gpu: Gpu, target: Target) -> None:
    """What is on record when we start may be locked: a resume asks the driver."""
    gpu.set("state", "locked")
    gpu.record.add(target.root)
    gpu.device.close()
    gpu.device = gpu.make()
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state() == "running"
    assert gpu.record.keys == []


def test_a_cancelled_pause_is_undone(gpu: Gpu, target: Target) -> None:
    """The broker shuts down while a target drains: the worker undoes the lock when it comes through."""
    os.mkfifo(gpu.place / "gate")

    async def cancelled() -> None:
        task = asyncio.create_task(gpu.device.pause(target, limit=60))
        while not (gpu.place / "log").exists():
            await asyncio.wait({task}, timeout=0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert gpu.record.keys == []
    with (gpu.place / "gate").open("w"):
        pass
    eventually(lambda: gpu.device._answered(target.root))
    assert gpu.log()[-1].startswith("unlock")
    assert gpu.state() == "running"


def test_close_unlocks_and_ends_every_worker(gpu: Gpu) -> None:
    """'A locked process must never outlive the broker that locked it'."""
    with Program(IDLE) as program:
        program.said()
        target = Target(program.key)
        gpu.pause(target)
        worker = procfs.process_key(gpu.worker(target))
        assert worker is not None
        gpu.device.close()
        assert gpu.state() == "running"
        assert not procfs.alive(worker)
        assert gpu.record.keys == []


def test_usage_counts_wall_seconds_outside_pauses(
    gpu: Gpu, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running from 10 to 12, paused until 15, running until 16: three; whenever it is asked for."""
    now = [10.0]
    monkeypatch.setattr("gpushare_kernel.devices.cuda.monotonic", lambda: now[0])

    def at(seconds: float) -> float:
        now[0] = seconds
        usage = gpu.device.usage(target)
        assert usage is not None
        assert usage.memory is None
        return usage.device_time

    assert at(10.0) == 0.0
    now[0] = 12.0
    gpu.pause(target)
    assert at(14.0) == 2.0
    now[0] = 15.0
    gpu.resume(target)
    assert at(16.0) == 3.0


def test_memory_is_the_tree_s_and_none_without_nvml(gpu: Gpu) -> None:
    """A child's context is its session's; where NVML is gone there is no sample."""
    with Program("p = subprocess.Popen(['sleep', '1000']); say(p.pid); wait()") as program:
        (child,) = program.said_pids()
        target = Target(program.key)
        gpu.nvml.held = {program.pid: 100, child: 20, os.getpid(): 7}
        usage = gpu.device.usage(target, memory=True)
        assert usage is not None
        assert usage.memory == 120
        usage = gpu.device.usage(Target(program.key, frozenset({child})), memory=True)
        assert usage is not None
        assert usage.memory == 100
        gpu.device._sample = None
        gpu.nvml.gone = True
        assert gpu.device.usage(target, memory=True) is None
        assert gpu.device.usage(target) is not None


def test_foreign_is_what_others_took_since_the_start(gpu: Gpu) -> None:
    """Free at the start, less free now, less what is ours."""
    gpu.nvml.free = 500 * MiB
    assert gpu.device.foreign(managed=300 * MiB) == 100 * MiB
    assert gpu.device.foreign(managed=500 * MiB) == 0


def test_without_the_bindings_only_making_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the package and how to get it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"cuda-bindings.*pip install"):
        CudaDevice(Record(), nvml=FakeNvml())


def test_the_real_driver_s_absence_is_no_crash() -> None:
    """On a machine with the bindings but no GPU, a real worker ends with a clear answer."""
    pytest.importorskip("cuda.bindings.driver")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver here: test_cuda_gpu.py")
    assert CudaDriver().init() == "CUDA_ERROR_NO_DEVICE"
    record, nvml = Record(), FakeNvml()
    with Program(IDLE) as program:
        program.said()
        device = CudaDevice(record, nvml=nvml, worker=list(WORKER))
        outcome = asyncio.run(device.pause(Target(program.key), limit=1))
        device.close()
    assert outcome.status is PauseStatus.UNSUPPORTED
    assert record.keys == []
