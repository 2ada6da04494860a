"""Nobody waits for ever, or has more than its share, by an order of events that nobody thought of."""

from __future__ import annotations

from typing import TypeVar

import pytest

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.deadlines import backoff
from gpushare_kernel.core.parking import LONGEST_SPARED
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


def background(world: World, name: str, user: str = "u") -> None:
    """A job of one user that yields to everybody."""
    world.send(ev.SessionOpened(at=world.now, session=SessionId(name), user=UserId(user), background=True))  # fmt: skip
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


def test_a_park_is_tried_again_for_weeks() -> None:
    """As a restore is: whoever cannot be parked 1,100 times is asked the 1,101st."""
    core, idle, waits = gpu().core, SessionId("idle"), SessionId("waits")
    for name in (idle, waits):
        core.handle(ev.SessionOpened(at=0.0, session=name, user=UserId(name)))
        core.handle(ev.SessionReady(at=0.0, session=name, bare=False, context=0))
    core.handle(ev.JobSubmitted(at=0.0, job=JobId("j"), session=idle, persistent=6 * GiB, ephemeral=GiB, cooperative=True))  # fmt: skip
    core.handle(ev.JobEnded(at=1.0, job=JobId("j"), persistent=6 * GiB))
    at = 5.0
    told = core.handle(ev.JobSubmitted(at=at, job=JobId("k"), session=waits, persistent=6 * GiB, ephemeral=GiB, cooperative=True))  # fmt: skip
    for _ in range(1100):
        (park,) = of(do.Park, told)
        core.handle(ev.Parked(at=at, session=idle, ticket=park.ticket, status=MoveStatus.NOT_NOW))
        at += LONGEST_SPARED + 1.0
        told = core.handle(ev.Sampled(at=at, used={}))
    assert of(do.Park, told)


def test_who_takes_too_long_to_stop_has_a_trial_again_for_weeks() -> None:
    """I7: rarer and rarer, and not never."""
    world = GpuWorld(policy="fair")
    world.start("n", "heavy")
    world.run(0.2)
    gate, one, at = world.core.turns.gate, world.core.sessions[SessionId("n")], world.now
    for _ in range(1100):
        one.drains.append(1.0)
        gate._bar(one, at)
        at = gate._barred[one.id]
        gate._bar(one, at)
        assert one.id not in gate._barred


def test_whoever_has_waited_an_hour_under_fair_is_passed_by_eight_at_most() -> None:
    """S4, S5: by those who take what does not suffice for it, and by nobody else."""
    world = World(compute=4.0, policy="fair")
    works(world, "hog", 0, 4 * GiB)
    works(world, "big", 8 * GiB)
    world.run(3700, step=1.0)
    assert world.core.jobs[JobId("big/1")].promoted
    for number in range(12):
        works(world, f"n{number}", 0, GiB // 2)
    assert sum(f"n{n}/1" not in world.core.book.queue for n in range(12)) == 8
    world.end("hog/1")
    world.run(1)
    assert world.core.jobs[JobId("big/1")].lane is not None


def test_background_of_many_users_keeps_nobody_waiting() -> None:
    """T8: of more users than are looked at for one decision."""
    world = World(capacity=100 * GiB, compute=1.0, policy="fair")
    for number in range(70):
        name = f"b{number}"
        background(world, name, user=name)
    world.run(8, step=0.05)
    world.open("note", user="note", interval=0.05)
    world.submit("note/1", "note", 0, GiB)
    world.core.users[UserId("note")].vtime = 1e3
    world.run(10, step=0.05)
    assert world.kernels["note"].device_time > 9


@pytest.mark.parametrize("tries", [0, 1, 9, 10, 100, 10**9])
def test_pauses_between_tries_double_up_to_the_longest(tries: int) -> None:
    """The power alone would overflow after a thousand tries."""
    assert backoff(0.25, 1e6, tries) == min(1e6, 0.25 * 2 ** min(tries, 30))
