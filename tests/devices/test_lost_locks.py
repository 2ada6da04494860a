"""Workers that are lost with a lock, or while they are asked about one: the process stays on record until it is known to run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import PauseStatus
from gpushare_kernel.devices.base import Hold, Target
from tests.devices.gpu import Gpu
from tests.devices.test_gpu_session import Family
from tests.procs import Program, eventually


@pytest.fixture
def target() -> Iterator[Target]:
    """A process to pause."""
    with Program("say('up'); wait()") as program:
        program.said()
        yield Target(program.key)


def kill_workers(gpu: Gpu) -> None:
    """Kill whoever holds locks, or waits to."""
    for worker in list(gpu.record.workers):
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: procfs.state_of(worker) in (None, "Z"))  # noqa: B023


def runs(gpu: Gpu, target: Target) -> None:
    """Ask for it until all of it runs, as the engine does."""
    eventually(lambda: gpu.resume(target) is PauseStatus.NOTHING)
    assert gpu.state(target.root) == "running"
    assert gpu.record.keys == []
    assert not gpu.device.paused(target)


def test_a_worker_that_died_before_it_was_asked_leaves_nothing_that_comes_late(
    gpu: Gpu, target: Target
) -> None:
    """L2: the next one finds the lock; one unlock later it runs, and is known to."""
    assert gpu.pause(target).status is PauseStatus.PAUSED
    kill_workers(gpu)
    assert gpu.pause(target).status is PauseStatus.PAUSED
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert (gpu.record.keys, gpu.state(target.root)) == ([], "running")


@pytest.mark.parametrize("dies", ["crash", "dies"])
def test_workers_that_die_at_every_lock(gpu: Gpu, target: Target, dies: str) -> None:
    """L9, L1: two tries, then it is said that this cannot be paused; before the lock or once it is locked, nobody can tell."""
    gpu.set(dies, "yes")
    assert gpu.pause(target, limit=0.05).status is PauseStatus.UNSUPPORTED
    assert gpu.record.keys == [target.root]
    assert len(gpu.log()) == 2
    runs(gpu, target)


def test_where_no_worker_comes_up_nobody_was_asked(gpu: Gpu, target: Target) -> None:
    """L1: then nothing is to be undone."""
    gpu.set("init", "CUDA_ERROR_OUT_OF_MEMORY")
    assert gpu.pause(target).status is PauseStatus.UNSUPPORTED
    assert (gpu.record.keys, gpu.log()) == ([], [])


def test_a_driver_that_fails_for_a_while_loses_nobody(gpu: Gpu, target: Target) -> None:
    """L1, L2: locked, its worker dead and no other one to be had: neither a resume nor another pause forgets it."""
    assert gpu.pause(target).status is PauseStatus.PAUSED
    kill_workers(gpu)
    gpu.set("init", "CUDA_ERROR_OUT_OF_MEMORY")
    assert gpu.resume(target) is PauseStatus.UNSUPPORTED
    assert gpu.record.keys == [target.root]
    kill_workers(gpu)
    eventually(lambda: gpu.pause(target).status is PauseStatus.UNSUPPORTED)
    eventually(lambda: gpu.resume(target) is PauseStatus.UNSUPPORTED)
    assert gpu.record.keys == [target.root]
    assert gpu.state(target.root) == "locked"
    gpu.set("init", "CUDA_SUCCESS")
    runs(gpu, target)


@pytest.mark.parametrize("answer", ["CUDA_ERROR_OPERATING_SYSTEM", "CUDA_ERROR_NOT_SUPPORTED"])
def test_a_lock_that_is_refused_says_nothing_of_one_before(
    gpu: Gpu, target: Target, answer: str
) -> None:
    """L2: left by a broker before us it may be locked, whatever comes of another lock."""
    gpu.set(f"state.{target.root.pid}", "locked")
    gpu.record.add(target.root, Hold.LOCK)
    gpu.device.close()
    gpu.device = gpu.make()
    gpu.set("answer", answer)
    assert gpu.pause(target).status in (PauseStatus.FORBIDDEN, PauseStatus.UNSUPPORTED)
    assert gpu.record.keys == [target.root]
    runs(gpu, target)


def test_a_lock_that_comes_through_after_its_worker_died_is_undone(
    gpu: Gpu, target: Target
) -> None:
    """L1: the request had reached the target, which drained for longer than its worker lived."""
    gpu.set("crash", "yes")
    assert gpu.pause(target, limit=60.0).status is PauseStatus.UNSUPPORTED
    asked = len(gpu.log())
    eventually(lambda: gpu.resume(target) is PauseStatus.BUSY and len(gpu.log()) > asked)
    gpu.set(f"state.{target.root.pid}", "locked")
    assert gpu.resume(target) is PauseStatus.BUSY, "for a minute it may be locked yet"
    assert gpu.state(target.root) == "running"
    assert not gpu.device.paused(target)
    gpu.device.usage(target)
    assert gpu.record.keys == [target.root]
    gpu.device._sessions[target.root].lockers[target.root]._late = 0.0  # the minute is over
    runs(gpu, target)


def test_one_of_several_that_loses_its_workers_frees_all(gpu: Gpu) -> None:
    """L4: its siblings run at once, it as soon as it can be told to."""
    with Family() as family:
        gpu.holds(*family.all)
        lost = family.children[1]
        gpu.set(f"dies.{lost.pid}", "yes")
        assert gpu.pause(family.target, limit=10.0).status is PauseStatus.UNSUPPORTED
        others = set(family.all) - {lost}
        assert {gpu.state(key) for key in others} == {"running"}
        assert (gpu.record.keys, gpu.state(lost)) == ([lost], "locked")
        runs(gpu, family.target)
        assert gpu.state(lost) == "running"


def test_one_of_several_that_cannot_be_resumed_yet_keeps_nobody_else(gpu: Gpu) -> None:
    """L2: those whom the driver answers for run."""
    with Family() as family:
        gpu.holds(*family.all)
        assert gpu.pause(family.target).status is PauseStatus.PAUSED
        lost = family.children[0]
        gpu.set(f"stays.{lost.pid}", "yes")
        assert gpu.resume(family.target) is PauseStatus.UNSUPPORTED
        assert {gpu.state(key) for key in family.all if key != lost} == {"running"}
        assert (gpu.record.keys, gpu.state(lost)) == ([lost], "locked")
        gpu.set(f"stays.{lost.pid}", "")
        runs(gpu, family.target)
        assert gpu.state(lost) == "running"


def test_who_is_asked_how_a_process_stands_answers_for_it_from_then_on(
    gpu: Gpu, target: Target
) -> None:
    """L3: the worker that locked it is dead, another one found it locked: hung up on, that one unlocks it."""
    gpu.pause(target)
    kill_workers(gpu)
    assert gpu.still(target)
    gpu.device.close()
    assert gpu.state(target.root) == "running"
    assert gpu.record.hows == {}


def test_a_resume_asks_nobody_while_a_worker_is_at_it(gpu: Gpu, target: Target) -> None:
    """L6: another one would be told that it runs, and the lock come through after that."""
    gpu.shut("gate")
    assert gpu.pause(target, limit=0.05).status is PauseStatus.BUSY
    assert gpu.resume(target) is PauseStatus.BUSY
    assert (len(gpu.log()), gpu.record.keys) == (1, [target.root])
    gpu.opened("gate")
    runs(gpu, target)


def test_a_worker_that_hung_and_was_killed_has_undone_nothing(gpu: Gpu, target: Target) -> None:
    """L2: only one that has ended by itself has."""
    gpu.shut("gate")
    assert gpu.pause(target, limit=0.05).status is PauseStatus.BUSY
    stuck = next(link.pid for key, link in gpu.device._crew._leaving if key == target.root)
    gpu.set(f"state.{target.root.pid}", "locked")
    os.kill(stuck, signal.SIGKILL)
    eventually(lambda: not gpu.busy_with(target.root))
    (gpu.place / "gate").unlink()
    gpu.device.usage(target)
    assert gpu.record.keys == [target.root]
    runs(gpu, target)


def test_what_a_device_cannot_undo_when_it_closes_stays_on_record(gpu: Gpu, target: Target) -> None:
    """L3: for the guardian, and the next broker."""
    gpu.pause(target)
    kill_workers(gpu)
    gpu.set("init", "CUDA_ERROR_OUT_OF_MEMORY")
    gpu.device.close()
    assert (gpu.record.keys, gpu.state(target.root)) == ([target.root], "locked")
    gpu.set("init", "CUDA_SUCCESS")
    gpu.device = gpu.make()
    runs(gpu, target)
