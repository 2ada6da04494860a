"""Nobody waits for ever, or has more than its share, by an order of events that nobody thought of."""

from __future__ import annotations

from typing import TypeVar

import pytest

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.returning import LONGEST_AGAIN
from gpushare_kernel.core.values import GiB, JobId, MoveStatus, SessionId, UserId
from tests.core.test_parking import gpu
from tests.core.tests_core_world import Kernel, World
from tests.core.tests_gpu_world import GpuWorld

_Kind = TypeVar("_Kind", bound=do.Instruction)


def of(kind: type[_Kind], told: list[do.Instruction]) -> list[_Kind]:
    """Return the instructions of one kind."""
    return [one for one in told if isinstance(one, kind)]


def shares(world: World, names: str, seconds: float) -> dict[str, float]:
    """Return which part of the device each had."""
    before = {name: world.kernels[name].device_time for name in names}
    world.run(seconds, step=0.05)
    return {name: (world.kernels[name].device_time - before[name]) / seconds for name in names}


def works(world: World, name: str, persistent: int, ephemeral: int = 0, **more: float) -> None:
    """A notebook of a user of its own begins a long job."""
    world.open(name, user=name, interval=0.05)
    world.submit(f"{name}/1", name, persistent, ephemeral, **more)


@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("decoy", ["w", "c"])
def test_a_newcomer_beside_one_that_waits_for_memory_has_its_share(names: str, decoy: str) -> None:
    """I6: not all of the device until it has used as much as the others did while that one waited; nor by a decoy of its own."""
    world = World(compute=1.0, policy="fair")
    for name in names:
        works(world, name, 4 * GiB)
    world.open("decoy", user=decoy, interval=0.05)
    world.submit("decoy/1", "decoy", 9 * GiB, 0)
    world.run(300, step=0.05)
    works(world, "c", GiB)
    part = 1 / (len(names) + 1)
    assert shares(world, f"{names}c", 60) == pytest.approx(dict.fromkeys(f"{names}c", part), abs=0.03)  # fmt: skip


def background(world: World, name: str) -> None:
    """A job of one user that yields to everybody."""
    world.send(ev.SessionOpened(at=world.now, session=SessionId(name), user=UserId("u"), background=True))  # fmt: skip
    world.send(ev.SessionReady(at=world.now, session=SessionId(name), bare=False, context=0))
    world.kernels[name] = Kernel(1.0, interval=0.05)
    world.submit(f"{name}/1", name, 0, GiB)


def test_however_much_runs_in_the_background_a_notebook_comes_first() -> None:
    """T8: of the same user, too: more than are looked at for one decision."""
    world = World(capacity=100 * GiB, compute=1.0, policy="fair")
    for number in range(20):
        background(world, f"b{number}")
    world.run(3, step=0.05)
    world.open("note", user="u", interval=0.05)
    world.submit("note/1", "note", 0, GiB)
    assert world.run(60, step=0.05) is None
    assert world.kernels["note"].device_time > 50


def test_on_a_gpu_too() -> None:
    """T8: where nobody was chosen for a slot, it was looked for again, without end."""
    world = GpuWorld()
    for number in range(17):
        world.start(f"b{number}", "heavy", user="u", background=True)
    world.run(2)
    world.start("note", "heavy", user="u")
    before = world.kernels["note"].done
    world.run(10)
    assert world.kernels["note"].done - before > 9


def test_a_restore_is_tried_again_for_hours() -> None:
    """The pause between two tries has an end, and so must the number that it is made of."""
    core, name = gpu().core, SessionId("s")
    core.handle(ev.SessionOpened(at=0.0, session=name, user=UserId("u")))
    core.handle(ev.SessionReady(at=0.0, session=name, bare=False, context=0))
    core.handle(ev.JobSubmitted(at=0.0, job=JobId("j"), session=name, persistent=2 * GiB, ephemeral=GiB, cooperative=True))  # fmt: skip
    core.handle(ev.JobEnded(at=1.0, job=JobId("j"), persistent=2 * GiB))
    (park,) = of(do.Park, core.handle(ev.ParkWanted(at=5.0, session=name)))
    core.handle(ev.Parked(at=6.0, session=name, ticket=park.ticket, freed=2 * GiB))
    told = core.handle(ev.JobSubmitted(at=7.0, job=JobId("k"), session=name, persistent=2 * GiB, ephemeral=GiB, cooperative=True))  # fmt: skip
    at = 7.0
    for _ in range(1100):
        (back,) = of(do.Restore, told)
        core.handle(ev.Restored(at=at, session=name, ticket=back.ticket, status=MoveStatus.NOT_NOW))
        at += LONGEST_AGAIN + 0.1
        told = core.handle(ev.Sampled(at=at, used={}))


def test_who_overran_its_time_gives_its_lane_up_under_srtf() -> None:
    """A time that is too short is worth no more than none."""
    world = World(compute=1.0, policy="srtf", can_park=True)
    works(world, "liar", 0, 9 * GiB, time=2.0)
    world.run(1.0)
    works(world, "honest", 0, 9 * GiB, time=5.0)
    world.run(20, step=0.05)
    job = next(one for one in world.core.jobs.values() if one.id == "honest/1")
    assert job.granted is not None


def test_short_jobs_one_after_the_other_have_a_lane_no_more_often() -> None:
    """Who comes again is new in the lane, and has had it before."""
    world = World(compute=1.0, policy="fair")
    for name in "abcd":
        works(world, name, 0, 9 * GiB)
    works(world, "x", 0, 9 * GiB)
    number = 1
    for _ in range(2400):
        world.run(0.05, step=0.05)
        job = world.core.jobs.get(f"x/{number}")  # type: ignore[call-overload]
        if job is not None and job.granted is not None and world.now - job.granted >= 0.9:
            world.end(f"x/{number}")
            number += 1
            world.submit(f"x/{number}", "x", 0, 9 * GiB)
    assert number > 10
    assert world.kernels["x"].device_time < 1.3 * world.kernels["a"].device_time


@pytest.mark.parametrize("policy", ["srtf", "pack"])
def test_patience_ends_with_the_policy_that_has_it(policy: str) -> None:
    """FAIR's, an hour after: nobody comes first under another one for having waited under FAIR."""
    world = World(compute=1.0, policy="fair")
    works(world, "hog", 0, 10 * GiB, time=1e5)
    works(world, "long", 9 * GiB, time=1e6)
    world.run(10, step=1.0)
    world.send(ev.PolicyChanged(at=world.now, policy=policy))
    works(world, "short", 9 * GiB, time=2.0)
    queue = [str(job.id) for job in world.core.book.queue]
    world.run(3600, step=1.0)
    assert [str(job.id) for job in world.core.book.queue] == queue


def test_who_was_put_first_by_it_is_not_under_another_policy() -> None:
    """It stands where that one puts it."""
    world = World(compute=1.0, policy="fair")
    works(world, "hog", 0, 10 * GiB, time=1e5)
    works(world, "long", 9 * GiB, time=1e6)
    world.run(3700, step=1.0)
    world.send(ev.PolicyChanged(at=world.now, policy="srtf"))
    works(world, "short", 9 * GiB, time=2.0)
    assert [str(job.id) for job in world.core.book.queue] == ["short/1", "long/1"]
    assert not any(job.promoted for job in world.core.book.queue)


def test_two_who_take_turns_are_displaced_where_nobody_pauses_by_force() -> None:
    """One of them is always paused in the middle of its work; it has its next turn, and meets a boundary, before long."""
    world = World(capacity=16 * GiB, compute=1.0, policy="fair", can_park=True, divisible=False)
    for name in "ab":
        works(world, name, 5 * GiB)
    works(world, "w", 12 * GiB)
    world.run(200, step=0.05)
    job = next(one for one in world.core.jobs.values() if one.id == "w/1")
    assert job.admitted is not None
