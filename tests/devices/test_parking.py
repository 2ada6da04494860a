"""Parking on a scripted driver: what is moved, when it is not, and what becomes of it when something dies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import MiB, MoveStatus, PauseStatus, ProcessKey
from gpushare_kernel.devices import locker, sampler
from gpushare_kernel.devices.base import Hold, Target
from tests.devices.gpu import Gpu
from tests.devices.test_gpu_session import Family
from tests.procs import Program


@pytest.fixture
def family(gpu: Gpu) -> Iterator[Family]:
    """Three processes that hold 300 MiB each."""
    with Family() as family:
        gpu.holds(*family.all, size=300 * MiB)
        gpu.nvml.free = 50 * MiB
        yield family
    gpu.device.usage(family.target)


# ---------------------------------------------------------------- out and back


def test_a_park_locks_and_checkpoints_and_says_what_it_freed(gpu: Gpu, program: Program) -> None:
    """K4: on record as parked, with its size; no worker is kept for it; NVML shows nothing of it, and that is no zero of use."""
    target = Target(program.key)
    outcome = gpu.park(target)
    assert (outcome.status, outcome.freed) == (MoveStatus.DONE, 600 * MiB)
    assert gpu.moves() == ["lock", "checkpoint"]
    assert gpu.device.parked(target) == 600 * MiB
    assert gpu.record.held(Hold.PARK) == [program.key]
    assert gpu.record.size(program.key) == 600 * MiB
    assert gpu.record.held() == gpu.record.held(Hold.MOVER) == []
    with pytest.raises(LookupError):
        gpu.worker_of(program.key)
    assert gpu.device.paused(target) == [program.key]
    usage = gpu.device.usage(target, memory=True)
    assert usage is not None
    assert (usage.memory, usage.contexts) == (0, 0)


def test_what_a_driver_lists_of_a_parked_one_is_no_context(gpu: Gpu, program: Program) -> None:
    """K8: should it be listed still, with nothing or with a rest."""
    target = Target(program.key)
    gpu.park(target)
    gpu.nvml.place = None
    gpu.device._sampler.look()
    usage = gpu.device.usage(target, memory=True)
    assert usage is not None
    assert (usage.memory, usage.contexts) == (0, 0)


def test_who_was_checkpointed_by_somebody_else_is_theirs(gpu: Gpu, program: Program) -> None:
    """I3: neither on record nor restored by us."""
    gpu.set(f"state.{program.pid}", "checkpointed")
    target = Target(program.key)
    assert gpu.pause(target).status is PauseStatus.NOTHING
    assert gpu.park(target).status is MoveStatus.NOT_NOW
    assert gpu.device.parked(target) == 0
    assert gpu.record.keys == []


def test_a_restore_leaves_it_locked_until_it_is_resumed(gpu: Gpu, program: Program) -> None:
    """K4: on record as locked from then on."""
    target = Target(program.key)
    gpu.park(target)
    assert gpu.restore(target).status is MoveStatus.DONE
    assert gpu.state(program.key) == "locked"
    assert gpu.record.held() == [program.key]
    assert gpu.device.parked(target) == 0
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state(program.key) == "running"
    assert gpu.record.keys == []


def test_who_is_parked_is_neither_locked_nor_unlocked_nor_looked_at(
    gpu: Gpu, program: Program
) -> None:
    """K6: a pause finds it standing, a resume finds nothing that it could undo, a look asks nobody."""
    target = Target(program.key)
    gpu.park(target)
    before = gpu.log()
    assert gpu.pause(target).status is PauseStatus.PAUSED
    assert gpu.still(target)
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.park(target).status is MoveStatus.DONE
    assert gpu.log() == before
    assert gpu.device.parked(target) == 600 * MiB


def test_a_restore_of_who_is_not_parked_has_it_stand_still(gpu: Gpu, program: Program) -> None:
    """Whoever asked resumes it next."""
    target = Target(program.key)
    assert gpu.restore(target).status is MoveStatus.DONE
    assert gpu.moves() == ["lock"]
    assert gpu.resume(target) is PauseStatus.NOTHING


def test_all_of_a_session_are_parked_and_restored_together(gpu: Gpu, family: Family) -> None:
    """K3: all are locked before the first is moved."""
    outcome = gpu.park(family.target)
    assert (outcome.status, outcome.freed) == (MoveStatus.DONE, 900 * MiB)
    assert gpu.moves() == ["lock"] * 3 + ["checkpoint"] * 3
    assert gpu.restore(family.target).status is MoveStatus.DONE
    assert {gpu.state(key) for key in family.all} == {"locked"}
    assert gpu.resume(family.target) is PauseStatus.NOTHING


@pytest.mark.parametrize("room", [True, False])
def test_a_child_of_later_stands_still_before_its_root_is_put_back(gpu: Gpu, family: Family, *, room: bool) -> None:  # fmt: skip
    """K2: a parked notebook runs code on the CPU, so it can start a program on the device, which could take the room."""
    later = family.children[0]
    gpu.holds(family.key, family.children[1], size=300 * MiB)
    assert gpu.park(family.target).status is MoveStatus.DONE
    assert gpu.device.loose(family.target) == 0
    gpu.holds(later, size=300 * MiB)
    gpu.nvml.free = 2000 * MiB
    assert gpu.device.loose(family.target) == 1
    before = len(gpu.moves())
    outcome = gpu.restore(family.target, margin=0 if room else 100_000 * MiB)
    if room:
        assert outcome.status is MoveStatus.DONE
        assert gpu.moves()[before:] == ["lock", "restore", "restore"]
        assert gpu.state(later) == "locked"
        assert gpu.resume(family.target) is PauseStatus.NOTHING
    else:
        assert outcome.status is MoveStatus.NOT_NOW
        assert gpu.moves()[before:] == ["lock", "unlock"]
        assert gpu.device.parked(family.target) == 600 * MiB
    assert gpu.state(later) == "running"


def test_a_killed_one_is_off_the_record(gpu: Gpu, program: Program) -> None:
    """SIGKILL of a parked process works at once, as of any."""
    target = Target(program.key)
    gpu.park(target)
    program.process.kill()
    program.process.wait()
    assert gpu.restore(target).status is MoveStatus.GONE
    gpu.device.usage(target)
    assert gpu.record.keys == []


# ---------------------------------------------------------------- room


def test_without_room_no_restore_is_begun(gpu: Gpu, program: Program) -> None:
    """K1: by what is free in fact, at the time: a byte too little is too little, and the numbers are said."""
    target = Target(program.key)
    gpu.park(target)
    gpu.nvml.free = 100 * MiB - 1  # 700 MiB without a byte, with what it gave back
    outcome = gpu.restore(target, margin=100 * MiB)
    assert outcome.status is MoveStatus.NOT_NOW
    assert "0.6 GiB and 0.1 to spare" in outcome.why
    assert "restore" not in gpu.moves()
    gpu.nvml.free += 1
    assert gpu.restore(target, margin=100 * MiB).status is MoveStatus.DONE
    gpu.resume(target)


@pytest.mark.parametrize("hangs", [False, True])
def test_where_nobody_can_say_what_is_free_nothing_is_moved(
    gpu: Gpu, program: Program, monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    """K1: NVML fails, or does not come back: neither out nor back."""
    monkeypatch.setattr(sampler, "_FRESH", 0.2)
    target, other = Target(program.key), threading.Event()
    gpu.park(target)
    with Program("say('up'); wait()") as second:
        second.said()
        memory = gpu.nvml.memory
        if hangs:
            monkeypatch.setattr(gpu.nvml, "memory", lambda: other.wait(20) and memory())
        else:
            gpu.nvml.failure = DeviceError("NVML is gone")
        for outcome in (gpu.restore(target), gpu.park(Target(second.key))):
            assert outcome.status is MoveStatus.NOT_NOW
            assert "NVML" in outcome.why
        assert gpu.moves() == ["lock", "checkpoint", "lock", "unlock"]
        assert gpu.state(second.key) == "running"
        gpu.nvml.failure = None
        other.set()


def test_what_nvml_does_not_show_is_not_parked(gpu: Gpu, program: Program) -> None:
    """K1: without its size nobody could tell whether it fits again."""
    gpu.nvml.held = {}
    outcome = gpu.park(Target(program.key))
    assert outcome.status is MoveStatus.NOT_NOW
    assert gpu.moves() == ["lock", "unlock"]


# ---------------------------------------------------------------- it does not come about


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("CUDA_ERROR_NOT_READY", MoveStatus.NOT_NOW),
        ("CUDA_ERROR_NOT_INITIALIZED", MoveStatus.NOT_NOW),
        ("CUDA_ERROR_NOT_SUPPORTED", MoveStatus.UNABLE),
        ("CUDA_ERROR_OPERATING_SYSTEM", MoveStatus.UNABLE),
        ("CUDA_ERROR_ASSERT", MoveStatus.UNABLE),
    ],
)
def test_who_cannot_be_locked_is_not_parked(
    gpu: Gpu, program: Program, answer: str, status: MoveStatus
) -> None:
    """K3: it drains still, has no context, is profiled, is somebody else's, is broken."""
    gpu.set(f"answer.{program.pid}", answer)
    outcome = gpu.park(Target(program.key))
    assert outcome.status is status
    assert outcome.why
    assert gpu.moves() == ["lock"]
    assert gpu.record.keys == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("CUDA_ERROR_NOT_SUPPORTED", MoveStatus.UNABLE),
        ("CUDA_ERROR_OUT_OF_MEMORY", MoveStatus.NOT_NOW),
    ],
)
def test_one_that_the_driver_does_not_park_keeps_all(
    gpu: Gpu, family: Family, answer: str, status: MoveStatus
) -> None:
    """K3: those that were parked already have their memory back, and all run."""
    gpu.set(f"no-checkpoint.{family.children[1].pid}", answer)
    outcome = gpu.park(family.target)
    assert outcome.status is status
    assert answer in outcome.why
    assert gpu.moves().count("restore") == 2
    assert {gpu.state(key) for key in family.all} == {"running"}
    assert gpu.record.keys == []
    assert gpu.device.parked(family.target) == 0


def test_where_the_room_is_gone_meanwhile_the_rest_stays_parked(gpu: Gpu, family: Family) -> None:
    """K3, K1: they are not restored into too little; the session counts as parked, and comes back when there is room."""
    gpu.set(f"no-checkpoint.{family.children[1].pid}", "CUDA_ERROR_NOT_SUPPORTED")
    gpu.nvml.free = -400 * MiB  # of the 600 that the two give back somebody takes 400
    outcome = gpu.park(family.target)
    assert (outcome.status, outcome.freed) == (MoveStatus.DONE, 600 * MiB)
    assert "NOT_SUPPORTED" in outcome.why
    assert "restore" not in gpu.moves()
    assert gpu.state(family.children[1]) == "locked"
    gpu.nvml.free = 50 * MiB
    assert gpu.restore(family.target).status is MoveStatus.DONE
    assert gpu.resume(family.target) is PauseStatus.NOTHING
    assert {gpu.state(key) for key in family.all} == {"running"}


def test_who_was_paused_before_stays_so_where_it_is_not_parked(gpu: Gpu, program: Program) -> None:
    """K3: nothing has changed for it."""
    target = Target(program.key)
    gpu.pause(target)
    gpu.set(f"no-checkpoint.{program.pid}", "CUDA_ERROR_NOT_SUPPORTED")
    assert gpu.park(target).status is MoveStatus.UNABLE
    assert gpu.state(program.key) == "locked"
    assert gpu.device.paused(target) == [program.key]
    assert gpu.record.held() == [program.key]
    assert gpu.resume(target) is PauseStatus.NOTHING


def test_a_failed_restore_is_a_loss_and_is_said_with_the_drivers_answer(
    gpu: Gpu, program: Program
) -> None:
    """K1: nobody asks about it again and again."""
    target = Target(program.key)
    gpu.park(target)
    gpu.set(f"no-restore.{program.pid}", "CUDA_ERROR_OUT_OF_MEMORY")
    outcome = gpu.restore(target)
    assert outcome.status is MoveStatus.LOST
    assert "CUDA_ERROR_OUT_OF_MEMORY" in outcome.why
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.record.keys == []


def test_a_device_that_does_not_park_says_so(gpu: Gpu, program: Program) -> None:
    """It asks nobody."""
    gpu.device.capabilities = type(gpu.device.capabilities)(can_pause=True, can_park=False)
    assert gpu.park(Target(program.key)).status is MoveStatus.UNABLE
    assert gpu.log() == []


# ---------------------------------------------------------------- one broker after another


@pytest.mark.parametrize("state", ["checkpointed", "locked", "running"])
def test_a_later_broker_asks_how_somebody_stands_whom_the_record_calls_parked(
    gpu: Gpu, program: Program, state: str
) -> None:
    """K7: parked it stays so, with its size; else it is let run like anybody."""
    target = Target(program.key)
    gpu.park(target)
    gpu.device.close()
    assert gpu.record.held(Hold.PARK) == [program.key]
    gpu.set(f"state.{program.pid}", state)
    gpu.nvml.closed = False
    gpu.device = gpu.make()
    assert gpu.device.parked(target) == 600 * MiB
    assert gpu.resume(target) is PauseStatus.NOTHING
    if state == "checkpointed":
        assert gpu.device.parked(target) == 600 * MiB
        assert gpu.restore(target).status is MoveStatus.DONE
        assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state(program.key) == "running"
    assert gpu.record.keys == []


def test_who_was_parked_and_is_in_no_session_comes_back(gpu: Gpu, program: Program) -> None:
    """K1, K7: nobody would ask for it. Who else is there is not held still for it, so it waits for room for it twice."""
    target = Target(program.key)
    gpu.park(target)
    gpu.device.close()
    gpu.nvml.closed = False
    gpu.device = gpu.make()

    def back(*targets: Target) -> list[ProcessKey]:
        return list(asyncio.run(gpu.device.bring_back(targets, margin=0)))

    gpu.nvml.free = 600 * MiB  # beside the 600 that it gave back
    assert back(target) == [], "it is in a session, which asks itself"
    gpu.nvml.free = 599 * MiB
    assert back() == []
    assert gpu.state(program.key) == "checkpointed"
    gpu.nvml.free = 600 * MiB
    assert back() == [program.key]
    assert gpu.state(program.key) == "running"
    assert gpu.record.keys == []
    assert back() == []


def test_who_died_while_no_broker_ran_is_off_the_record(gpu: Gpu) -> None:
    """K7: nobody would ask for it any more."""
    with Program("say('up'); wait()") as program:
        program.said()
        gpu.holds(program.key)
        gpu.park(Target(program.key))
        gpu.device.close()
    gpu.nvml.closed = False
    gpu.device = gpu.make()
    assert gpu.record.keys == []


def test_a_move_of_the_broker_before_is_waited_for(gpu: Gpu, program: Program) -> None:
    """K5, K7: its worker lives; nothing is asked of whom it may be moving."""
    target = Target(program.key)
    gpu.park(target)
    gpu.device.close()
    with Program("say('up'); wait()") as worker:
        worker.said()
        gpu.record.add(worker.key, Hold.WORKER)
        gpu.record.change(worker.key, Hold.MOVER)
        gpu.nvml.closed = False
        gpu.device = gpu.make()
        before = gpu.log()
        assert gpu.restore(target).status is MoveStatus.NOT_NOW
        assert gpu.resume(target) is PauseStatus.BUSY
        assert gpu.log() == before
    assert gpu.restore(target).status is MoveStatus.DONE
    assert gpu.resume(target) is PauseStatus.NOTHING


def test_who_is_found_parked_by_an_unlock_is_parked(
    gpu: Gpu, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K6: by somebody else, say. It is not asked again and again; its own memory bounds what it needs."""
    monkeypatch.setattr(locker.procfs, "private_memory", lambda _: 640 * MiB)
    target = Target(program.key)
    gpu.pause(target)
    gpu.set(f"state.{program.pid}", "checkpointed")
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.device.parked(target) == 640 * MiB
    assert gpu.record.size(program.key) == 640 * MiB
    before = gpu.log()
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.log() == before


def test_a_parked_child_that_outlives_its_root_is_restored_as_a_session_of_its_own(
    gpu: Gpu, family: Family
) -> None:
    """K7: whoever follows it finds it parked."""
    gpu.device.usage(family.target)
    gpu.park(family.target)
    family.process.kill()
    family.process.wait()
    survivors = gpu.device.survivors(family.target)
    assert set(survivors) == set(family.children)
    for key in family.children:
        child = Target(key)
        assert gpu.device.parked(child) == 300 * MiB
        assert gpu.restore(child).status is MoveStatus.DONE
        assert gpu.resume(child) is PauseStatus.NOTHING
        assert gpu.state(key) == "running"


def test_who_dies_while_parked_leaves_the_record(gpu: Gpu) -> None:
    """K7: nobody resumes it and nobody asks about it again; its session's next process is another one."""
    with Program("wait()") as program:
        gpu.holds(program.key)
        target = Target(program.key)
        gpu.park(target)
    assert not gpu.device.survivors(target)
    assert gpu.record.hows.keys() & {program.key} == set()
    assert program.key not in gpu.device._sessions
