"""One process of a CUDA device: locking through workers, with a fake driver in real worker processes. No GPU needed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import MiB, PauseStatus
from gpushare_kernel.devices.base import Device, Hold, PauseOutcome, Target
from gpushare_kernel.devices.cuda import WORKER, CudaDevice
from gpushare_kernel.devices.cuda_worker import CudaDriver
from gpushare_kernel.devices.nvml import GpuInfo
from gpushare_kernel.devices.verdict import Probe, Verdict
from tests.devices.gpu import FakeNvml, Gpu
from tests.devices.records import Record
from tests.procs import Program, eventually

IDLE = "say('up'); wait()"


@pytest.fixture
def target() -> Iterator[Target]:
    """A process to pause."""
    with Program(IDLE) as program:
        program.said()
        yield Target(program.key)


# ---------------------------------------------------------------- the device


def test_it_is_a_device(gpu: Gpu) -> None:
    """Named by NVML; capacity is what is free at the start; it is divided by turns."""
    device: Device = gpu.device
    assert device.inventory.kind == "cuda"
    assert (device.inventory.name, device.inventory.id) == ("Fake GPU", "GPU-fake")
    assert device.inventory.capacity == 900 * MiB
    assert device.inventory.total == 1000 * MiB
    assert not device.inventory.divisible
    assert (device.capabilities.can_pause, device.capabilities.can_park) == (True, True)
    assert device.lost is None


def test_a_kernel_s_environment_names_its_gpu_and_takes_memory_as_needed(gpu: Gpu) -> None:
    """By UUID: indices differ between those who see other GPUs. Nothing else is set."""
    assert gpu.device.environment() == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-fake",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def test_what_a_kernel_needs_is_jax_s_limit_from_its_start(gpu: Gpu) -> None:
    """In parts of the whole GPU, at most all of it; the rest is as ever."""
    usual = gpu.device.environment()
    assert gpu.device.environment(needs=0) == usual
    assert gpu.device.environment(250 * MiB) == usual | {"XLA_CLIENT_MEM_FRACTION": "0.2500"}
    assert gpu.device.environment(1500 * MiB)["XLA_CLIENT_MEM_FRACTION"] == "1.0000"


def test_a_gpu_cut_into_parts_is_refused() -> None:
    """With the command that changes it, and nothing left open."""
    nvml = FakeNvml(GpuInfo(3, "GPU-mig", "A100", 1, mig=True))
    with pytest.raises(DeviceError, match=r"MIG.*nvidia-smi -i 3 -mig 0"):
        CudaDevice(Record(), nvml=nvml)
    assert nvml.closed


def test_where_nobody_can_be_paused_no_worker_is_started(tmp_path: Path, target: Target) -> None:
    """L9: COOPERATIVE ONLY is said at the start, with what users lose and one command."""
    probe = Probe(Verdict.COOPERATIVE, "MPS runs.", "echo quit | nvidia-cuda-mps-control")
    device = CudaDevice(Record(), nvml=FakeNvml(), worker=["/bin/false"], probe=probe)
    assert not device.capabilities.can_pause
    assert "MPS runs. Notebooks take turns where they meet steps" in device.capabilities.why
    assert device.capabilities.why.endswith("Run: echo quit | nvidia-cuda-mps-control")
    assert asyncio.run(device.pause(target, limit=1)) == PauseOutcome(PauseStatus.UNSUPPORTED)
    assert device._sessions == {}
    device.close()


# ---------------------------------------------------------------- pause and resume


def test_pause_locks_and_resume_unlocks(gpu: Gpu, target: Target) -> None:
    """L1: the limit reaches the driver; intent is on record in between, and so is the worker."""
    outcome = gpu.pause(target, limit=0.5)
    assert outcome.status is PauseStatus.PAUSED
    assert gpu.state(target.root) == "locked"
    assert gpu.log() == [f"lock {target.root.pid} 500"]
    assert list(gpu.device.paused(target)) == gpu.record.keys == [target.root]
    assert gpu.record.hows[target.root] is Hold.LOCK
    assert gpu.worker_of(target.root) in [key.pid for key in gpu.record.workers]
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state(target.root) == "running"
    assert not gpu.device.paused(target)


def test_one_worker_serves_a_target_again_and_again(gpu: Gpu, target: Target) -> None:
    """Starting one costs half a second: it stays, and so does one in reserve."""
    gpu.pause(target)
    worker = gpu.worker_of(target.root)
    for _ in range(3):
        gpu.resume(target)
        gpu.pause(target)
    assert gpu.worker_of(target.root) == worker
    assert len(gpu.record.workers) == 2


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
    """L5: the driver would hang until SIGCONT: neither for an unlock, nor how it stands. Locked it stays."""
    gpu.pause(target)
    os.kill(target.root.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(target.root.pid) == "T")
    asked = gpu.log()
    assert gpu.pause(target).status is PauseStatus.PAUSED
    assert gpu.resume(target) is PauseStatus.STOPPED
    assert gpu.still(target)
    assert gpu.log() == asked
    assert list(gpu.device.paused(target)) == [target.root]
    os.kill(target.root.pid, signal.SIGCONT)
    eventually(lambda: procfs.state(target.root.pid) == "S")
    assert gpu.resume(target) is PauseStatus.NOTHING


def test_a_target_stopped_by_its_user_is_not_locked(gpu: Gpu, target: Target) -> None:
    """L5: no worker is even started; it is not ours to continue."""
    os.kill(target.root.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(target.root.pid) == "T")
    assert gpu.pause(target).status is PauseStatus.STOPPED
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert (gpu.log(), gpu.record.hows) == ([], {})
    assert procfs.state(target.root.pid) == "T"


def test_a_driver_that_hangs_costs_the_limit_and_harms_nobody(gpu: Gpu, target: Target) -> None:
    """L6: BUSY; while the worker hangs nobody else asks, and the target stays on record; a late lock is undone."""
    gpu.shut("gate")
    assert gpu.pause(target, limit=0.05).status is PauseStatus.BUSY
    assert gpu.record.keys == [target.root]
    assert procfs.alive(target.root)
    assert gpu.pause(target, limit=0.05) == PauseOutcome(PauseStatus.BUSY)
    assert len(gpu.log()) == 1
    gpu.opened("gate")  # the driver answers: locked
    eventually(lambda: not gpu.busy_with(target.root))
    assert gpu.log()[-1].startswith("unlock")
    assert gpu.state(target.root) == "running"
    gpu.device.usage(target)
    assert gpu.record.keys == []
    assert gpu.pause(target).status is PauseStatus.PAUSED


def test_a_worker_that_hangs_is_nobody_s_to_kill(gpu: Gpu, target: Target) -> None:
    """L6: it stands on no record any more: it alone will undo what it did."""
    gpu.shut("gate")
    gpu.pause(target, limit=0.05)
    stuck = next(link.pid for key, link in gpu.device._crew._leaving if key == target.root)
    assert stuck not in [key.pid for key in gpu.record.workers]
    gpu.opened("gate")


def test_a_worker_killed_while_it_holds_the_lock_is_replaced(gpu: Gpu, target: Target) -> None:
    """'the locker dies holding the lock: target stays locked; any other allowed process can unlock it'."""
    gpu.pause(target)
    os.kill(gpu.worker_of(target.root), signal.SIGKILL)
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state(target.root) == "running"


def test_a_pause_after_its_worker_died_finds_the_lock(gpu: Gpu, target: Target) -> None:
    """Locked already is what was asked for; the new worker answers for it from now on."""
    gpu.pause(target)
    os.kill(gpu.worker_of(target.root), signal.SIGKILL)
    assert gpu.pause(target).status is PauseStatus.PAUSED
    gpu.device._sessions[target.root].close()
    eventually(lambda: gpu.state(target.root) == "running")


def test_a_reserve_that_died_is_not_handed_out(gpu: Gpu, target: Target) -> None:
    """It is reaped and replaced before anybody relies on it."""
    gpu.pause(target)
    gpu.resume(target)
    for worker in list(gpu.record.workers):
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: procfs.state_of(worker) in (None, "Z"))  # noqa: B023
    assert gpu.pause(target).status is PauseStatus.PAUSED


@pytest.mark.parametrize("answer", ["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "CUDA_ERROR_NO_DEVICE"])
def test_without_a_working_driver_the_device_is_lost(gpu: Gpu, target: Target, answer: str) -> None:
    """L10: a driver replaced under us: the target runs on, nobody else is tried, and it is said what to do."""
    gpu.set("init", answer)
    assert gpu.pause(target).status is PauseStatus.UNSUPPORTED
    assert gpu.record.keys == []
    assert gpu.device.lost is not None
    assert answer in gpu.device.lost
    assert "Restart the machine" in gpu.device.lost


def test_a_target_that_unlocked_itself_is_found_and_locked_again(gpu: Gpu, target: Target) -> None:
    """L7: the cheat lasts until the next look, which says so; the one after finds it still."""
    gpu.pause(target)
    assert gpu.still(target)
    gpu.set(f"state.{target.root.pid}", "running")
    assert not gpu.still(target)
    assert gpu.state(target.root) == "locked"
    assert gpu.still(target)
    assert list(gpu.device.paused(target)) == [target.root]


def test_a_target_that_unlocked_itself_and_cannot_be_locked_is_not_called_paused(
    gpu: Gpu, target: Target
) -> None:
    """It drains for too long, say: nothing pretends."""
    gpu.pause(target)
    gpu.set(f"state.{target.root.pid}", "running")
    gpu.set("answer", "CUDA_ERROR_NOT_READY")
    assert not gpu.still(target)
    assert list(gpu.device.paused(target)) == []
    assert gpu.record.keys == []


def test_a_look_at_somebody_who_is_not_paused_asks_nobody(gpu: Gpu, target: Target) -> None:
    """No worker is started for it."""
    assert gpu.still(target)
    gpu.device.usage(target)
    assert gpu.still(target)
    assert gpu.record.workers == []


def test_a_killed_target_is_gone(gpu: Gpu) -> None:
    """Killed while paused; its worker serves others."""
    with Program(IDLE) as program:
        program.said()
        target = Target(program.key)
        gpu.pause(target)
        worker = gpu.worker_of(target.root)
        program.process.kill()
        program.process.wait()
        assert not gpu.device.paused(target)
        assert gpu.device.usage(target) is None
        assert gpu.record.keys == []
        assert gpu.resume(target) is PauseStatus.GONE
        assert gpu.pause(target).status is PauseStatus.GONE
        assert gpu.device._sessions == {}
        assert worker in [key.pid for key in gpu.record.workers]


def test_resume_without_pause_starts_no_worker(gpu: Gpu, target: Target) -> None:
    """Nothing on record: nothing to ask."""
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.record.workers == []


def test_a_lock_left_by_an_earlier_broker_is_undone(gpu: Gpu, target: Target) -> None:
    """L2: what is on record when we start may be locked: a resume asks the driver."""
    gpu.set(f"state.{target.root.pid}", "locked")
    gpu.record.add(target.root, Hold.LOCK)
    gpu.device.close()
    gpu.device = gpu.make()
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state(target.root) == "running"
    assert gpu.record.keys == []


def test_a_stopped_one_left_by_an_earlier_broker_is_unlocked_once_it_is_continued(
    gpu: Gpu, target: Target
) -> None:
    """L2, L5: nobody could ask the driver; a worker waits for it to answer."""
    gpu.shut("gate")
    gpu.set(f"state.{target.root.pid}", "locked")
    gpu.record.add(target.root, Hold.LOCK)
    os.kill(target.root.pid, signal.SIGSTOP)
    eventually(lambda: procfs.state(target.root.pid) == "T")
    gpu.device.close()
    gpu.device = gpu.make()
    os.kill(target.root.pid, signal.SIGCONT)
    gpu.opened("gate")
    eventually(lambda: not gpu.busy_with(target.root))
    assert gpu.state(target.root) == "running"
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.record.keys == []


def test_a_cancelled_pause_is_undone(gpu: Gpu, target: Target) -> None:
    """The broker shuts down while a target drains: the worker undoes the lock when it comes through."""
    gpu.shut("gate")

    async def cancelled() -> None:
        task = asyncio.create_task(gpu.device.pause(target, limit=60))
        while not gpu.log():
            await asyncio.wait({task}, timeout=0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert not gpu.device.paused(target)
    gpu.opened("gate")
    eventually(lambda: not gpu.busy_with(target.root))
    assert gpu.log()[-1].startswith("unlock")
    assert gpu.state(target.root) == "running"
    gpu.device.usage(target)
    assert gpu.record.keys == []


def test_close_unlocks_and_ends_every_worker(gpu: Gpu, target: Target) -> None:
    """L3: 'A locked process must never outlive the broker that locked it'."""
    gpu.pause(target)
    workers = list(gpu.record.workers)
    gpu.device.close()
    assert gpu.state(target.root) == "running"
    assert workers
    assert not any(procfs.alive(worker) for worker in workers)
    assert gpu.record.hows == {}


def test_the_real_driver_s_absence_is_no_crash(target: Target) -> None:
    """On a machine with the bindings but no GPU, a real worker ends with a clear answer."""
    pytest.importorskip("cuda.bindings.driver")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver here: test_cuda_gpu.py")
    assert CudaDriver().init() == "CUDA_ERROR_NO_DEVICE"
    record = Record()
    device = CudaDevice(record, nvml=FakeNvml(), worker=WORKER, probe=Probe(Verdict.FULL))
    outcome = asyncio.run(device.pause(target, limit=1))
    assert outcome.status is PauseStatus.UNSUPPORTED
    assert "CUDA_ERROR_NO_DEVICE" in str(device.lost)
    device.close()
    assert record.hows == {}
