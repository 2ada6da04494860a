"""What a session may hold of a device that caps it: a grant, or what is free, lent (docs/core.md)."""

from __future__ import annotations

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core.budget import budget, granted, people_waiting
from gpushare_kernel.core.values import GiB, MiB, SessionId

MARGIN = 256 * MiB


@pytest.fixture
def world() -> World:
    """A GPU of 10 GiB on which an undeclared cell may take 256 MiB at once."""
    return World(
        compute=1.0, divisible=False, plain_persistent=0, plain_ephemeral=MARGIN, plain_grace=0.0
    )


def limit(world: World, session: str) -> int | None:
    return budget(world.core, world.core.sessions[SessionId(session)])


def plain(world: World, session: str, user: str = "ann", *, holds: int = 0) -> None:
    """Open a session that keeps `holds` of a former job and runs a cell that declares nothing."""
    world.open(session, user)
    if holds:
        world.submit(f"{session}/old", session, holds, 0)
        world.end(f"{session}/old", holds)
    world.submit(f"{session}/plain", session, plain=True)


def test_a_session_alone_meets_no_cap(world: World) -> None:
    """Also beside sessions that hold nothing and run nothing."""
    plain(world, "a")
    world.open("idle", "bob")
    assert limit(world, "a") is None


def test_a_declared_job_may_hold_what_it_was_granted(world: World) -> None:
    """Alone or not; without the job it is elastic again."""
    world.open("a")
    world.submit("j", "a", 2 * GiB, GiB)
    assert world.running("j")
    assert limit(world, "a") == 3 * GiB
    plain(world, "b", "bob")
    assert limit(world, "a") == 3 * GiB
    world.end("j", 2 * GiB)
    assert granted(world.core.sessions[SessionId("a")]) is None


def test_what_is_free_is_lent_to_each_user_alike(world: World) -> None:
    """Half of it to each of two users; a user's second notebook halves that user's part, nobody else's."""
    plain(world, "a", "ann")
    plain(world, "b", "bob")
    free = world.core.book.table.free
    assert limit(world, "a") == limit(world, "b") == MARGIN + free // 2
    plain(world, "b2", "bob")
    free = world.core.book.table.free
    assert limit(world, "a") == MARGIN + free // 2
    assert limit(world, "b") == limit(world, "b2") == MARGIN + free // 4


def test_what_it_holds_is_its_own(world: World) -> None:
    """The part of what is free comes on top; an idle holder takes none of it."""
    plain(world, "a", "ann", holds=3 * GiB)
    world.open("b", "bob")
    world.submit("b/old", "b", 2 * GiB, 0)
    world.end("b/old", 2 * GiB)
    free = world.core.book.table.free
    assert limit(world, "a") == 3 * GiB + MARGIN + free


def test_while_somebody_waits_nothing_more_is_lent(world: World) -> None:
    """What is held, and a margin to go on with."""
    plain(world, "a", "ann", holds=3 * GiB)
    world.open("b", "bob")
    world.submit("b/big", "b", 9 * GiB, 0)
    assert not world.running("b/big")
    assert limit(world, "a") == 3 * GiB + MARGIN
    holder = world.core.sessions[SessionId("a")]
    assert people_waiting(world.core, but=holder) == 1


def test_who_waits_is_counted_by_people(world: World) -> None:
    """Two notebooks of one user are one; the holder's own second notebook only where that is asked for."""
    plain(world, "a", "ann", holds=3 * GiB)
    for session, user in (("b", "bob"), ("b2", "bob"), ("a2", "ann")):
        world.open(session, user)
        world.submit(f"{session}/big", session, 9 * GiB, 0)
    holder = world.core.sessions[SessionId("a")]
    assert people_waiting(world.core, but=holder) == 2
    assert people_waiting(world.core, but=holder, own=False) == 1
