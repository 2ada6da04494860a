"""Parking where somebody dies, or does not answer: workers in the middle of a move (docs/parking.md, K5)."""

from __future__ import annotations

import asyncio
import signal

import pytest

from gpushare_kernel import procfs
from gpushare_kernel.core.values import MiB, MoveStatus, PauseStatus
from gpushare_kernel.devices import move_limits
from gpushare_kernel.devices.base import Hold, MoveOutcome, Target
from tests.devices.gpu import Gpu
from tests.procs import Program, eventually


def in_a_move(gpu: Gpu, program: Program) -> None:
    """Wait until a worker is at it."""
    eventually(lambda: gpu.moves()[-1:] in (["checkpoint"], ["restore"]))
    assert gpu.record.held(Hold.MOVER)
    assert gpu.record.held(Hold.PARK) == [program.key]


def test_a_worker_in_a_move_is_on_record_as_such(gpu: Gpu, program: Program) -> None:
    """K5: nobody ends it; and the record says that its target may be parked, before the driver was asked."""
    gpu.shut(f"move.{program.pid}")

    async def story() -> None:
        task = asyncio.create_task(gpu.device.park(Target(program.key), limit=20.0))
        await asyncio.to_thread(in_a_move, gpu, program)
        gpu.opened(f"move.{program.pid}")
        assert (await task).status is MoveStatus.DONE

    asyncio.run(story())
    assert gpu.record.held(Hold.MOVER) == []


@pytest.mark.parametrize("before", ["running", "parked"])
def test_a_move_that_takes_too_long_is_left_to_its_worker(
    gpu: Gpu, program: Program, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """K5: it ends when the driver answers; until then nothing is asked of its target. A park counts as made, and a restore finds out."""
    target = Target(program.key)
    if before == "parked":
        gpu.park(target)
    monkeypatch.setattr(move_limits, "LEAST", -2.0)  # by size: 0.5 s out, under 0 back
    monkeypatch.setattr(move_limits, "BACK", 0.25e9)
    gpu.shut(f"move.{program.pid}")
    outcome = gpu.restore(target) if before == "parked" else gpu.park(target)
    assert outcome.status is (MoveStatus.NOT_NOW if before == "parked" else MoveStatus.DONE)
    assert "left to it" in outcome.why
    assert gpu.device.parked(target) == 600 * MiB
    assert gpu.restore(target).status is MoveStatus.NOT_NOW
    monkeypatch.undo()
    gpu.opened(f"move.{program.pid}")
    eventually(lambda: not gpu.busy_with(program.key))
    # Parked, it is left so; restored, it is unlocked: it has its memory, and nobody stands behind it.
    assert gpu.state(program.key) == ("running" if before == "parked" else "checkpointed")
    assert gpu.restore(target).status is MoveStatus.DONE
    assert gpu.state(program.key) == "locked"
    assert gpu.resume(target) is PauseStatus.NOTHING


@pytest.mark.parametrize("name", ["crash-checkpoint", "dies-checkpoint"])
def test_a_worker_that_dies_of_a_park_leaves_a_question_that_another_answers(
    gpu: Gpu, program: Program, name: str
) -> None:
    """K5: parked or not, nothing is lost, and the record is right."""
    target = Target(program.key)
    gpu.set(f"{name}.{program.pid}", "yes")
    outcome = gpu.park(target)
    if name == "dies-checkpoint":
        assert outcome.status is MoveStatus.DONE
        assert gpu.record.held(Hold.PARK) == [program.key]
        assert gpu.restore(target).status is MoveStatus.DONE
        assert gpu.resume(target) is PauseStatus.NOTHING
    else:
        assert outcome.status is MoveStatus.NOT_NOW
    assert gpu.state(program.key) == "running"
    assert gpu.record.keys == []


def test_a_worker_killed_in_the_middle_of_a_park_leaves_a_question_until_the_target_has_ended_it(
    gpu: Gpu, program: Program
) -> None:
    """K5: as an H200 does it: the target goes on by itself, and nobody is told how it stands before it has ended."""
    target = Target(program.key)
    gpu.shut(f"move.{program.pid}")

    async def story() -> MoveOutcome:
        task = asyncio.create_task(gpu.device.park(target, limit=20.0))
        await asyncio.to_thread(in_a_move, gpu, program)
        gpu.shut(f"look.{program.pid}")
        procfs.send(gpu.record.held(Hold.MOVER)[0], signal.SIGKILL)
        return await task

    outcome = asyncio.run(story())
    assert outcome.status is MoveStatus.DONE, "parked, as far as anybody knows"
    assert gpu.record.held(Hold.PARK) == [program.key]
    assert gpu.restore(target).status is MoveStatus.NOT_NOW
    gpu.set(f"state.{program.pid}", "checkpointed")
    gpu.opened(f"look.{program.pid}")
    (gpu.place / f"move.{program.pid}").unlink()
    eventually(lambda: not gpu.busy_with(program.key))
    assert gpu.restore(target).status is MoveStatus.DONE
    assert gpu.resume(target) is PauseStatus.NOTHING
    assert gpu.state(program.key) == "running"
    assert gpu.record.keys == []


@pytest.mark.parametrize("name", ["crash-restore", "dies-restore"])
def test_a_worker_that_dies_of_a_restore_is_no_loss(gpu: Gpu, program: Program, name: str) -> None:
    """K5: what the driver says counts."""
    target = Target(program.key)
    gpu.park(target)
    gpu.set(f"{name}.{program.pid}", "yes")
    outcome = gpu.restore(target)
    if name == "dies-restore":
        assert outcome.status is MoveStatus.DONE
    else:
        assert outcome.status is MoveStatus.NOT_NOW
        assert gpu.device.parked(target) == 600 * MiB
        (gpu.place / f"{name}.{program.pid}").unlink()
        assert gpu.restore(target).status is MoveStatus.DONE
    assert gpu.state(program.key) == "locked"
    assert gpu.resume(target) is PauseStatus.NOTHING


def test_a_cancelled_move_is_left_to_finish(gpu: Gpu, program: Program) -> None:
    """K5: its broker ends; a park that comes through is left parked, and the record says so."""
    target = Target(program.key)
    gpu.shut(f"move.{program.pid}")

    async def story() -> None:
        task = asyncio.create_task(gpu.device.park(target, limit=20.0))
        await asyncio.to_thread(in_a_move, gpu, program)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert gpu.record.held(Hold.PARK) == [program.key]
    gpu.opened(f"move.{program.pid}")
    eventually(lambda: not gpu.busy_with(program.key))
    assert gpu.state(program.key) == "checkpointed"
    assert gpu.record.held(Hold.MOVER) == []
    assert gpu.restore(target).status is MoveStatus.DONE
    gpu.resume(target)
