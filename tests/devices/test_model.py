"""The model GPU behaves as the real one was measured to; each test quotes the fact it holds."""

from __future__ import annotations

import asyncio

import pytest

from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import GiB, PauseStatus, ProcessKey, Usage
from gpushare_kernel.devices.base import Device, PauseOutcome, Target
from gpushare_kernel.devices.model import ModelDevice
from gpushare_kernel.devices.model_gpu import Call
from tests.devices.records import Record

A, B, C = (Target(ProcessKey(pid, 7)) for pid in (101, 102, 103))
RESERVE = GiB // 2


@pytest.fixture
def gpu(record: Record) -> ModelDevice:
    """16 GiB, contexts of half a GiB."""
    return ModelDevice(record, capacity=16 * GiB, reserve=RESERVE)


def pause(gpu: ModelDevice, target: Target, limit: float = 0.5) -> PauseOutcome:
    return asyncio.run(gpu.pause(target, limit=limit))


def resume(gpu: ModelDevice, target: Target) -> PauseStatus:
    return asyncio.run(gpu.resume(target)).status


def used(gpu: ModelDevice, target: Target) -> Usage:
    usage = gpu.usage(target, memory=True)
    assert usage is not None
    return usage


def test_it_is_a_device_and_says_that_it_is_simulated(gpu: ModelDevice) -> None:
    """A demo on it must not look like a GPU."""
    device: Device = gpu
    assert device.inventory.capacity == 16 * GiB
    assert device.inventory.compute == 1.0
    assert device.inventory.reserve == RESERVE
    assert "simulated" in device.inventory.name
    assert device.capabilities.can_park


# ---------------------------------------------------------------- memory


def test_a_context_is_made_by_the_first_use_and_counts_against_the_gpu(gpu: ModelDevice) -> None:
    """'context of a torch process: about 520 MiB [...]: it counts against the GPU'."""
    gpu.launch(A)
    assert used(gpu, A).memory == 0
    assert gpu.allocate(A, persistent=GiB) is Call.DONE
    assert used(gpu, A).memory == GiB
    assert gpu.free_memory == 15 * GiB - RESERVE


def test_an_allocation_gets_all_or_nothing(gpu: ModelDevice) -> None:
    """Out of memory leaves what was held as it was, the neighbour's too."""
    gpu.allocate(A, persistent=10 * GiB)
    assert gpu.allocate(B, persistent=2 * GiB, ephemeral=4 * GiB) is Call.OUT_OF_MEMORY
    assert used(gpu, A).memory == 10 * GiB
    assert used(gpu, B).memory == 0
    assert gpu.allocate(B, persistent=2 * GiB, ephemeral=3 * GiB) is Call.DONE
    assert gpu.free_memory == 0
    assert gpu.allocate(C) is Call.OUT_OF_MEMORY, "no room for the context itself"
    assert used(gpu, C).memory == 0


def test_released_memory_is_free_again(gpu: ModelDevice) -> None:
    """'cuMemFree' gives it back; the context stays."""
    gpu.allocate(A, persistent=GiB, ephemeral=2 * GiB)
    assert gpu.release(A, ephemeral=2 * GiB) is Call.DONE
    assert used(gpu, A).memory == GiB


def test_foreign_memory_moves_the_room(gpu: ModelDevice) -> None:
    """'capacity = device free at start - foreign use since': others come, take what is free, and go."""
    gpu.allocate(A, persistent=4 * GiB)
    managed = used(gpu, A).memory or 0
    assert gpu.foreign(managed) == RESERVE
    assert gpu.set_foreign(8 * GiB) == 8 * GiB
    assert gpu.foreign(managed) == 8 * GiB + RESERVE
    assert gpu.allocate(A, ephemeral=4 * GiB) is Call.OUT_OF_MEMORY
    assert gpu.set_foreign(100 * GiB) == 12 * GiB - RESERVE
    assert gpu.free_memory == 0
    assert gpu.set_foreign(0) == 0
    assert gpu.allocate(A, ephemeral=4 * GiB) is Call.DONE


def test_use_that_nobody_manages_is_foreign(gpu: ModelDevice) -> None:
    """What a session holds beyond what is charged to it shows as foreign use."""
    gpu.allocate(A, persistent=GiB)
    assert gpu.foreign(managed=GiB) == RESERVE


# ---------------------------------------------------------------- lock and unlock


def test_a_pause_keeps_memory_resident(gpu: ModelDevice) -> None:
    """'A lock passes time, never memory: the locked one keeps everything it holds'."""
    gpu.allocate(A, persistent=GiB, ephemeral=4 * GiB)
    free = gpu.free_memory
    assert pause(gpu, A).status is PauseStatus.PAUSED
    assert used(gpu, A).memory == 5 * GiB
    assert gpu.free_memory == free


def test_a_locked_process_blocks_inside_its_next_cuda_call(gpu: ModelDevice) -> None:
    """'blocks inside its next CUDA call without the GIL': allocation, release and launches wait."""
    gpu.allocate(A, ephemeral=GiB)
    pause(gpu, A)
    assert gpu.allocate(A, ephemeral=1) is Call.WAITS
    assert gpu.release(A, ephemeral=GiB) is Call.WAITS
    assert gpu.work(A, demand=1.0) is Call.WAITS
    assert resume(gpu, A) is PauseStatus.NOTHING
    assert gpu.release(A, ephemeral=GiB) is Call.DONE


def test_a_pause_waits_until_submitted_work_has_drained(gpu: ModelDevice) -> None:
    """'it waits until submitted work has drained. Charge the drain to the locked one'."""
    gpu.work(A, demand=1.0, depth=0.04)
    assert pause(gpu, A) == PauseOutcome(PauseStatus.PAUSED, 0.04)
    gpu.advance(1.0)
    assert used(gpu, A).device_time == pytest.approx(0.04)
    resume(gpu, A)
    gpu.advance(1.0)
    assert used(gpu, A).device_time == pytest.approx(1.04)


def test_an_idle_target_has_nothing_to_drain(gpu: ModelDevice) -> None:
    """'lock / unlock, target idle or light: 0.15-0.27 ms'."""
    gpu.work(A, demand=1.0, depth=0.04)
    gpu.work(A, demand=0.0, depth=0.04)
    assert pause(gpu, A) == PauseOutcome(PauseStatus.PAUSED, 0.0)


def test_the_limit_is_honoured_and_the_target_unharmed(gpu: ModelDevice, record: Record) -> None:
    """'500 ms limit on a 5 s kernel gives NOT_READY after 501 ms, RUNNING and unharmed, a later lock works'."""
    gpu.work(A, demand=1.0, depth=5.0)
    assert pause(gpu, A, limit=0.5) == PauseOutcome(PauseStatus.BUSY, 0.5)
    assert not gpu.paused(A)
    assert record.keys == []
    gpu.advance(1.0)
    assert used(gpu, A).device_time == 1.0
    gpu.work(A, demand=1.0, depth=0.1)
    assert pause(gpu, A, limit=0.5).status is PauseStatus.PAUSED


def test_without_a_context_there_is_nothing_to_pause(gpu: ModelDevice, record: Record) -> None:
    """'target has no CUDA context: CUDA_ERROR_NOT_INITIALIZED: not lockable, nothing to pause'."""
    gpu.launch(A)
    assert pause(gpu, A).status is PauseStatus.NOTHING
    assert pause(gpu, B).status is PauseStatus.NOTHING, "never seen: a kernel that imported no CUDA"
    assert resume(gpu, B) is PauseStatus.NOTHING
    assert record.keys == []


@pytest.mark.parametrize("why", ["profiled", "mps"])
def test_profiled_and_mps_processes_cannot_be_locked(gpu: ModelDevice, why: str) -> None:
    """'CUPTI in use: NOT_SUPPORTED; it runs on unharmed'; 'under MPS lock is NOT_SUPPORTED'."""
    gpu.work(A, demand=1.0)
    setattr(gpu.process(A), why, True)
    assert pause(gpu, A).status is PauseStatus.UNSUPPORTED
    gpu.advance(1.0)
    assert used(gpu, A).device_time == 1.0


def test_another_uid_may_not_lock(record: Record) -> None:
    """'root on anyone; same uid on its own; another uid gets CUDA_ERROR_OPERATING_SYSTEM'."""
    gpu = ModelDevice(record, uid=1000)
    gpu.launch(A, uid=1000)
    gpu.launch(B, uid=1001)
    for target in (A, B):
        gpu.allocate(target)
    assert pause(gpu, A).status is PauseStatus.PAUSED
    assert pause(gpu, B).status is PauseStatus.FORBIDDEN
    assert record.keys == [A.root]
    assert gpu.allocate(B, persistent=1) is Call.DONE


def test_a_target_stopped_by_its_user_costs_the_whole_limit(gpu: ModelDevice) -> None:
    """'SIGSTOP: Lock hangs far beyond its limit and so does GetState, until SIGCONT'."""
    gpu.work(A, demand=1.0)
    gpu.process(A).stopped = True
    assert pause(gpu, A, limit=0.5) == PauseOutcome(PauseStatus.STOPPED, 0.5)
    assert not gpu.paused(A)
    gpu.advance(1.0)
    assert used(gpu, A).device_time == 0.0
    gpu.process(A).stopped = False
    assert pause(gpu, A).status is PauseStatus.PAUSED


def test_stopped_while_locked_it_stays_locked_until_continued(gpu: ModelDevice) -> None:
    """The driver needs the target to answer: an unlock comes through after SIGCONT."""
    gpu.work(A, demand=1.0)
    pause(gpu, A)
    gpu.process(A).stopped = True
    assert resume(gpu, A) is PauseStatus.STOPPED
    assert list(gpu.paused(A)) == [A.root]
    gpu.process(A).stopped = False
    assert resume(gpu, A) is PauseStatus.NOTHING
    assert not gpu.paused(A)


def test_a_target_can_unlock_itself_and_that_is_seen(gpu: ModelDevice) -> None:
    """'the target unlocks itself: works: a cheat. GetState each quantum'."""
    gpu.work(A, demand=1.0)
    pause(gpu, A)
    gpu.self_unlock(A)
    assert not gpu.paused(A)
    gpu.advance(1.0)
    assert used(gpu, A).device_time == 1.0
    assert pause(gpu, A).status is PauseStatus.PAUSED


def test_a_look_locks_again_who_unlocked_itself(gpu: ModelDevice, record: Record) -> None:
    """'the target unlocks itself: works, from any of its threads: a cheat. GetState each quantum'."""
    gpu.work(A, demand=1.0)
    assert asyncio.run(gpu.still(A))
    pause(gpu, A)
    assert asyncio.run(gpu.still(A))
    gpu.self_unlock(A)
    assert not asyncio.run(gpu.still(A))
    assert list(gpu.paused(A)) == record.keys == [A.root]
    gpu.kill(A)
    assert asyncio.run(gpu.still(A))


def test_a_broken_context_is_reported_and_neighbours_are_untouched(gpu: ModelDevice) -> None:
    """'device-side assert: CUDA_ERROR_ASSERT, stays RUNNING; a neighbour's context is untouched'."""
    gpu.work(A, demand=1.0)
    gpu.work(B, demand=1.0)
    gpu.break_context(A)
    assert pause(gpu, A).status is PauseStatus.BROKEN
    assert gpu.allocate(A, persistent=1) is Call.FAILED
    assert used(gpu, A).contexts == 1, "held until the process ends"
    assert pause(gpu, B).status is PauseStatus.PAUSED


def test_killed_while_paused_frees_its_memory_at_once(gpu: ModelDevice, record: Record) -> None:
    """'SIGKILL of a locked or checkpointed process: dies at once, its memory is freed, nothing leaks'."""
    gpu.allocate(A, persistent=10 * GiB)
    pause(gpu, A)
    gpu.kill(A)
    assert gpu.free_memory == 16 * GiB
    assert gpu.usage(A) is None
    assert not gpu.paused(A)
    assert record.keys == []
    assert pause(gpu, A).status is PauseStatus.GONE
    assert resume(gpu, A) is PauseStatus.GONE


def test_double_unlock_is_harmless(gpu: ModelDevice) -> None:
    """'double unlock, unlock of a running one: CUDA_ERROR_ILLEGAL_STATE (harmless)'."""
    gpu.work(A, demand=1.0)
    assert resume(gpu, A) is PauseStatus.NOTHING
    pause(gpu, A)
    assert resume(gpu, A) is PauseStatus.NOTHING
    assert resume(gpu, A) is PauseStatus.NOTHING
    gpu.advance(1.0)
    assert used(gpu, A).device_time == 1.0


def test_a_second_pause_finds_it_locked(gpu: ModelDevice) -> None:
    """A lock needs a RUNNING process; locked already is what was asked for. One resume is enough."""
    gpu.work(A, demand=1.0)
    pause(gpu, A)
    assert pause(gpu, A) == PauseOutcome(PauseStatus.PAUSED, 0.0)
    assert resume(gpu, A) is PauseStatus.NOTHING
    assert gpu.work(A, demand=1.0) is Call.DONE


def test_a_lock_outlives_its_locker(gpu: ModelDevice) -> None:
    """'the locker dies holding the lock: target stays locked; any other allowed process can unlock it'."""
    gpu.work(A, demand=1.0)
    gpu.lock(A, limit=1.0)  # by a broker that is gone: not on our account
    assert not gpu.paused(A)
    assert gpu.work(A, demand=1.0) is Call.WAITS
    assert resume(gpu, A) is PauseStatus.NOTHING
    assert gpu.work(A, demand=1.0) is Call.DONE


def test_intent_is_on_record_while_it_is_paused(gpu: ModelDevice, record: Record) -> None:
    """I4; and not a moment longer."""
    gpu.work(A, demand=1.0)
    pause(gpu, A)
    assert record.keys == [A.root]
    resume(gpu, A)
    assert record.keys == []


def test_close_unlocks_everybody_we_locked(gpu: ModelDevice, record: Record) -> None:
    """'A locked process must never outlive the broker that locked it'."""
    for target in (A, B):
        gpu.work(target, demand=1.0)
        pause(gpu, target)
    gpu.close()
    assert gpu.work(A, demand=1.0) is gpu.work(B, demand=1.0) is Call.DONE
    assert record.keys == []


# ---------------------------------------------------------------- time


def test_running_sessions_share_the_device_by_demand(gpu: ModelDevice) -> None:
    """Nobody gets more than its demand; what one leaves, the others share."""
    gpu.work(A, demand=0.2)
    gpu.work(B, demand=1.0)
    gpu.work(C, demand=1.0)
    gpu.advance(10.0)
    assert used(gpu, A).device_time == pytest.approx(2.0)
    assert used(gpu, B).device_time == pytest.approx(4.0)
    assert used(gpu, C).device_time == pytest.approx(4.0)
    assert used(gpu, C).wanted == pytest.approx(10.0)


def test_a_paused_session_uses_and_wants_nothing(gpu: ModelDevice) -> None:
    """Its neighbour has the device to itself, its own clocks stand still."""
    gpu.work(A, demand=1.0)
    gpu.work(B, demand=1.0)
    pause(gpu, A)
    gpu.advance(2.0)
    assert used(gpu, A) == Usage(0.0, 0.0, 0, contexts=1, active=False)
    assert used(gpu, B).device_time == pytest.approx(2.0)


def test_a_drain_is_shared_with_who_runs_meanwhile(gpu: ModelDevice) -> None:
    """While one drains for 1 s, two share; afterwards the other is alone: time is cut there."""
    gpu.work(A, demand=1.0, depth=1.0)
    gpu.work(B, demand=1.0)
    pause(gpu, A, limit=2.0)
    gpu.advance(3.0)
    assert gpu.now == pytest.approx(3.0)
    assert used(gpu, A).device_time == pytest.approx(0.5)
    assert used(gpu, B).device_time == pytest.approx(2.5)


def test_same_script_same_numbers() -> None:
    """Deterministic: no clock, no thread, no chance."""

    def play() -> list[Usage]:
        gpu = ModelDevice()
        for target, demand in ((A, 0.3), (B, 0.9), (C, 0.7)):
            gpu.work(target, demand=demand, depth=0.01)
        for _ in range(50):
            pause(gpu, B)
            gpu.advance(0.05)
            resume(gpu, B)
            gpu.advance(0.03)
        return [used(gpu, target) for target in (A, B, C)]

    assert play() == play()


# ---------------------------------------------------------------- checkpoint and restore


def test_a_checkpoint_frees_all_and_a_restore_brings_it_back(gpu: ModelDevice) -> None:
    """'driver checkpoint / restore (whole process)'; the context goes too; CUDA calls wait meanwhile."""
    gpu.allocate(A, persistent=10 * GiB)
    assert gpu.checkpoint(A) == "CUDA_ERROR_ILLEGAL_STATE", "lock first"
    pause(gpu, A)
    assert gpu.checkpoint(A) == "CUDA_SUCCESS"
    assert gpu.free_memory == 16 * GiB
    assert gpu.allocate(A, persistent=1) is Call.WAITS
    assert list(gpu.paused(A)) == [A.root]
    assert resume(gpu, A) is PauseStatus.UNSUPPORTED, "restore first"
    assert gpu.restore_of(A) == "CUDA_SUCCESS"
    assert used(gpu, A).memory == 10 * GiB
    assert gpu.allocate(A, persistent=1) is Call.WAITS, "restored is still locked"
    assert resume(gpu, A) is PauseStatus.NOTHING
    assert gpu.allocate(A, persistent=1) is Call.DONE


def test_a_restore_without_room_loses_the_process(gpu: ModelDevice) -> None:
    """'OUT_OF_MEMORY once, then OPERATING_SYSTEM for ever, unlock ILLEGAL_STATE: lost even when room appears'."""
    gpu.allocate(A, persistent=10 * GiB)
    pause(gpu, A)
    gpu.checkpoint(A)
    gpu.allocate(B, persistent=8 * GiB)
    assert gpu.restore_of(A) == "CUDA_ERROR_OUT_OF_MEMORY"
    gpu.kill(B)
    assert gpu.restore_of(A) == "CUDA_ERROR_OPERATING_SYSTEM"
    assert gpu.unlock(A) == "CUDA_ERROR_ILLEGAL_STATE"
    assert resume(gpu, A) is PauseStatus.BROKEN
    assert gpu.allocate(A, persistent=1) is Call.FAILED
    assert gpu.free_memory == 16 * GiB


def test_a_process_with_imported_mappings_is_lost_by_its_restore(gpu: ModelDevice) -> None:
    """'checkpoint succeeds, restore fails (CUDA_ERROR_NOT_SUPPORTED) and the process is lost'."""
    gpu.allocate(A, persistent=GiB)
    gpu.process(A).imported = True
    pause(gpu, A)
    assert gpu.checkpoint(A) == "CUDA_SUCCESS"
    assert gpu.restore_of(A) == "CUDA_ERROR_NOT_SUPPORTED"
    assert gpu.allocate(A, persistent=1) is Call.FAILED


def test_killed_while_checkpointed_it_is_gone(gpu: ModelDevice) -> None:
    """'SIGKILL of a [...] checkpointed process: dies at once'."""
    gpu.allocate(A, persistent=GiB)
    pause(gpu, A)
    gpu.checkpoint(A)
    gpu.kill(A)
    assert resume(gpu, A) is PauseStatus.GONE
    assert gpu.free_memory == 16 * GiB


# ---------------------------------------------------------------- when the machine fails


def test_a_lost_device_breaks_every_context(gpu: ModelDevice) -> None:
    """Off the bus: nothing can be paused, used or measured, and asking for foreign memory says so."""
    gpu.allocate(A, persistent=GiB)
    gpu.lose_device()
    assert pause(gpu, A).status is PauseStatus.BROKEN
    assert gpu.allocate(A, persistent=1) is Call.FAILED
    assert gpu.allocate(B, persistent=1) is Call.FAILED
    assert gpu.usage(A) is None
    with pytest.raises(DeviceError, match="lost"):
        gpu.foreign(0)


def test_a_driver_mismatch_leaves_the_running_running(gpu: ModelDevice) -> None:
    """The driver was replaced under us: no new lock, but what is locked can be unlocked, and all run on."""
    gpu.work(A, demand=0.5)
    gpu.work(B, demand=0.5)
    pause(gpu, A)
    assert gpu.lost is None
    gpu.mismatched = True
    assert "replaced" in str(gpu.lost)
    assert pause(gpu, B).status is PauseStatus.UNSUPPORTED
    assert resume(gpu, A) is PauseStatus.NOTHING
    gpu.advance(1.0)
    assert used(gpu, A).device_time == used(gpu, B).device_time == 0.5


def test_without_nvml_nothing_is_measured_but_pauses_work(gpu: ModelDevice) -> None:
    """Usage is None for everybody, alive or not; locks need no NVML."""
    gpu.work(A, demand=1.0)
    gpu.nvml_gone = True
    assert "NVML" in str(gpu.lost)
    assert gpu.usage(A) is None
    assert pause(gpu, A).status is PauseStatus.PAUSED
    assert resume(gpu, A) is PauseStatus.NOTHING
