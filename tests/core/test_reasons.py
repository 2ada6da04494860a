"""Why a job waits: the reason and the numbers its sentence needs, computed when it is read."""

from __future__ import annotations

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.values import GiB, JobId, MiB, SessionId, UserId, Wait, WaitReason


def reason(world: World, job: str) -> Wait:
    return why(world.core, world.core.jobs[JobId(job)])


def test_waiting_for_memory_says_what_is_asked_what_is_free_and_who_holds_it() -> None:
    """P and E together; others are named by session, the waiter's own first, idle ones with how long."""
    world = World(capacity=10 * GiB)
    for name, user, size in (("bob", "bob", 5), ("mine", "ann", 3), ("also", "ann", 1)):
        world.open(name, user=user)
        world.submit(f"{name}/1", name, size * GiB, 0)
    world.end("mine/1", persistent=3 * GiB)
    world.now += 40.0
    world.open("me", user="ann")
    world.submit("me/1", "me", 2 * GiB, 1 * GiB)
    wait = reason(world, "me/1")
    assert (wait.reason, wait.needs, wait.free, wait.ahead) == (WaitReason.MEMORY, 3 * GiB, GiB, 0)
    assert [(h.name, h.size, h.own) for h in wait.holders] == [
        ("mine", 3 * GiB, True),
        ("also", 1 * GiB, True),
        ("bob", 5 * GiB, False),
    ]
    assert wait.holders[0].idle == 40.0
    assert wait.holders[1].idle is None
    world.open("later", user="bob")
    world.submit("later/1", "later", 2 * GiB, 1 * GiB)
    assert reason(world, "later/1").ahead == 1


def test_at_most_three_holders_are_named() -> None:
    """A sentence, not a table: the largest of them."""
    world = World(capacity=10 * GiB)
    for n in range(1, 5):
        world.open(f"s{n}", user=f"u{n}")
        world.submit(f"s{n}/1", f"s{n}", n * GiB, 0)
    world.open("me")
    world.submit("me/1", "me", 5 * GiB, 0)
    assert [h.name for h in reason(world, "me/1").holders] == ["s4", "s3", "s2"]


@pytest.mark.parametrize("user", ["ann", "bob"])
def test_the_largest_holder_is_named_before_crumbs(user: str) -> None:
    """Whoever holds it, and whether it runs; one's own idle notebooks with next to nothing are in nobody's way."""
    world = World(capacity=20 * GiB)
    for name in ("one", "two", "three"):
        world.open(name, user="ann")
        world.submit(f"{name}/1", name, 64 * MiB, 0)
        world.end(f"{name}/1", persistent=64 * MiB)
    world.open("own", user="ann")
    world.submit("own/1", "own", 2 * GiB, 0)
    world.end("own/1", persistent=2 * GiB)
    world.open("blk", user=user)
    world.submit("blk/1", "blk", 0, 16 * GiB)
    world.open("me", user="ann")
    world.submit("me/1", "me", 0, 14 * GiB)
    named = [(holder.name, holder.size) for holder in reason(world, "me/1").holders]
    assert sorted(named) == [("blk", 16 * GiB), ("own", 2 * GiB)]


def test_where_little_is_missing_a_little_matters() -> None:
    """And one's own is named before others of any size."""
    world = World(capacity=10 * GiB)
    for name, user, size in (("bob", "bob", 9 * GiB), ("cyd", "cyd", 200 * MiB), ("mine", "ann", 128 * MiB)):  # fmt: skip
        world.open(name, user=user)
        world.submit(f"{name}/1", name, size, 0)
    world.open("me", user="ann")
    world.submit("me/1", "me", GiB, 0)
    assert [h.name for h in reason(world, "me/1").holders] == ["mine", "bob", "cyd"]


def test_waiting_for_the_lane_names_its_occupant_and_who_comes_before() -> None:
    """Lane mates wait for occupancy: there is memory for them, but not at the same time."""
    world = World(capacity=10 * GiB)
    for name in "abc":
        world.open(name, user=name)
        world.submit(f"{name}/1", name, 0, 6 * GiB, cooperative=True)
    wait = reason(world, "c/1")
    assert (wait.reason, wait.needs, wait.ahead) == (WaitReason.OCCUPANCY, 6 * GiB, 1)
    assert [(h.name, h.size) for h in wait.holders] == [("a", 6 * GiB)]
    assert reason(world, "b/1").ahead == 0


def test_waiting_for_a_turn_is_its_own_reason() -> None:
    """Memory is there, the cores are taken."""
    world = World(capacity=10 * GiB, policy="fifo")
    for name in "ab":
        world.open(name, user=name, demand=2.0)
        world.submit(f"{name}/1", name, 0, GiB)
    assert reason(world, "b/1").reason is WaitReason.TURN


def test_after_a_brokers_restart_the_reason_is_the_grace_and_when_it_ends() -> None:
    """Nothing is admitted into memory that somebody may be about to confirm."""
    world = World()
    world.send(
        ev.SessionOpened(
            at=1.0, session=SessionId("old"), user=UserId("ann"), persistent=GiB, orphaned=True
        )
    )
    world.now = 2.0
    world.open("new")
    world.submit("new/1", "new", 0, GiB)
    wait = reason(world, "new/1")
    assert wait.reason is WaitReason.GRACE
    assert wait.until is not None
