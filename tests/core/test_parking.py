"""Idle memory comes back to who waits, and keeps its state: who is parked when, and who comes back (docs/parking-policy.md)."""

from __future__ import annotations

import pytest

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.parking import GLANCE, REST
from gpushare_kernel.core.records import Moving
from gpushare_kernel.core.returning import request_of
from gpushare_kernel.core.values import (
    Activity,
    GiB,
    JobId,
    JobState,
    MiB,
    MoveStatus,
    PauseReason,
    SessionId,
    UserId,
)
from tests.core.tests_core_world import World


def gpu(**settings: object) -> World:
    """A GPU of 10 GiB that can park."""
    usual = {"capacity": 10 * GiB, "compute": 1.0, "divisible": False, "enforce": True, "can_park": True, "plain_ephemeral": 256 * MiB, "plain_persistent": 0}  # fmt: skip
    return World(**(usual | settings))  # type: ignore[arg-type]


def session(world: World, name: str) -> object:
    return world.core.sessions[SessionId(name)]


def activity(world: World, name: str) -> Activity:
    return world.core.sessions[SessionId(name)].activity


def parks(world: World) -> list[str]:
    """Return whose memory was to go, in order."""
    return [str(one.session) for one in world.log if isinstance(one, do.Park)]


def holds(world: World, name: str, size: int, **more: object) -> None:
    """`name` has run a cell and keeps `size` bytes."""
    if name not in world.kernels:
        world.open(name, user=name, **more)  # type: ignore[arg-type]
    world.submit(f"{name}/0", name, size, 0)
    world.run(0.05)
    world.end(f"{name}/0", persistent=size)


def waits(world: World, name: str, size: int) -> None:
    """A cell of `name` declares `size` bytes."""
    if name not in world.kernels:
        world.open(name, user=name)
    world.submit(f"{name}/1", name, 0, size)


# --- Q1: whom idle memory comes from, and when -------------------------------------------------------------


def test_what_is_idle_goes_to_who_waits_and_comes_back_with_its_state() -> None:
    world = gpu()
    holds(world, "idle", 6 * GiB)
    world.run(5)
    waits(world, "busy", 8 * GiB)
    world.run(0.1)
    assert world.running("busy/1")
    assert activity(world, "idle") is Activity.PARKED
    world.end("busy/1")
    assert activity(world, "idle") is Activity.PARKED, "nobody asked for it"
    world.cell("idle")
    assert activity(world, "idle") is Activity.RESTORING
    world.run(0.1)
    assert not world.kernels["idle"].paused
    assert world.core.sessions[SessionId("idle")].charged == 6 * GiB


def test_nobody_is_parked_while_nobody_waits() -> None:
    """Never by a timer alone."""
    world = gpu()
    for n in range(3):
        holds(world, f"idle{n}", 3 * GiB)
    world.run(3600, step=1.0)
    assert parks(world) == []


def test_between_two_cells_nobody_is_idle() -> None:
    """All cells of a notebook run one after the other: it keeps its memory until it has rested."""
    world = gpu()
    holds(world, "idle", 6 * GiB)
    waits(world, "busy", 8 * GiB)
    world.run(0.9 * REST)
    assert parks(world) == []
    world.run(0.5 * REST)
    assert world.running("busy/1")


def test_who_has_a_cell_open_is_not_idle() -> None:
    """Whatever it does in it."""
    world = gpu()
    holds(world, "other", 6 * GiB)
    world.send(ev.CellStarted(at=world.now, session=SessionId("other")))
    waits(world, "busy", 8 * GiB)
    world.run(60)
    assert parks(world) == []
    world.cell_ends("other", persistent=6 * GiB)
    world.run(2 * REST)
    assert parks(world) == ["other"]


def test_only_as_many_as_it_takes_and_nobody_for_nothing() -> None:
    world = gpu()
    for name in "abc":
        holds(world, name, 3 * GiB)
        world.run(5)
    waits(world, "busy", 4 * GiB)
    world.run(0.2)
    assert parks(world) == ["a"]
    world.end("busy/1")
    world.open("big", user="big")
    world.submit("full/1", "big", 0, 9 * GiB)  # the rest of the device is in use
    world.run(0.2)
    assert sorted(parks(world)) == ["a", "b", "c"]


def test_nobody_is_parked_where_that_is_not_enough() -> None:
    world = gpu()
    holds(world, "idle", 2 * GiB)
    world.open("rt", user="rt")
    world.submit("rt/1", "rt", 0, 5 * GiB, realtime=True)
    world.run(5)
    waits(world, "busy", 6 * GiB)
    world.run(30)
    assert parks(world) == []


def test_longest_idle_and_cheapest_first() -> None:
    """What counts is what moving costs over how long it stood idle."""
    world = gpu(park_cost=0.0, park_speed=1e9, restore_speed=1e9)
    holds(world, "large", 4 * GiB)
    holds(world, "small", 2 * GiB)
    world.run(20)
    holds(world, "fresh", 2 * GiB)
    world.run(10)
    waits(world, "busy", 4 * GiB)
    world.run(0.2)
    assert parks(world) == ["small"]


def test_a_kernel_without_our_client_is_left_alone() -> None:
    """It could not ask for its memory back."""
    world = gpu()
    world.open("bare", user="bare")
    holds(world, "bare", 6 * GiB)
    world.core.sessions[SessionId("bare")].presence = type(
        world.core.sessions[SessionId("bare")].presence
    ).BARE
    world.run(5)
    waits(world, "busy", 8 * GiB)
    world.run(30)
    assert parks(world) == []


def test_more_is_held_than_there_is() -> None:
    """A plain cell takes what nobody granted: idle ones make up for it, though nobody waits."""
    world = gpu()
    holds(world, "idle", 6 * GiB)
    world.run(5)
    world.open("busy", user="busy")
    world.submit("busy/1", "busy", 2 * GiB, GiB)
    world.run(0.1)
    world.send(ev.CapacityChanged(at=world.now, capacity=7 * GiB))
    world.run(0.5)
    assert parks(world) == ["idle"]
    assert not world.core.book.deficit


# --- Q2: a plain cell asks for what is parked, and waits for nothing -----------------------------------------


def parked_beside(world: World, size: int = 8 * GiB) -> None:
    """`idle` is parked, and `busy` has the memory."""
    holds(world, "idle", 6 * GiB)
    world.run(5)
    waits(world, "busy", size)
    world.run(0.1)
    assert activity(world, "idle") is Activity.PARKED


def test_a_cell_that_needs_no_gpu_lapses_and_disturbs_nobody() -> None:
    world = gpu(residency=0.0, park_cost=0.0)
    parked_beside(world)
    before = parks(world)
    world.send(ev.CellStarted(at=world.now, session=SessionId("idle")))
    assert request_of(SessionId("idle")) in world.core.jobs
    world.run(0.8 * GLANCE)
    world.cell_ends("idle", persistent=0)
    world.run(1)
    assert parks(world) == before
    assert not world.core.jobs.keys() - {JobId("busy/1")}
    assert activity(world, "idle") is Activity.PARKED


def test_a_cell_that_goes_on_has_others_parked_for_it() -> None:
    """It waits in the queue like any other."""
    world = gpu(residency=0.5, park_cost=0.0)
    parked_beside(world)
    world.run(5)
    world.send(ev.CellStarted(at=world.now, session=SessionId("idle")))
    world.run(5)
    assert parks(world)[:2] == ["idle", "busy"]
    assert world.core.jobs[JobId("busy/1")].state in {JobState.QUEUED, JobState.RUNNING}


def test_a_cell_that_starts_while_its_memory_goes_asks_as_soon_as_it_is_gone() -> None:
    world = gpu()
    holds(world, "idle", 6 * GiB)
    world.run(5)
    world.move_takes = 1.0
    waits(world, "busy", 3 * GiB)
    world.submit("busy/2", "busy", 0, 3 * GiB)
    world.run(0.1)
    assert parks(world) == ["idle"]
    world.cell("idle")
    world.run(1.0)
    world.end("busy/1")
    world.run(1.2)
    assert activity(world, "idle") in {Activity.IDLE, Activity.BUSY}


def test_a_declared_job_brings_its_memory_back_itself() -> None:
    """What the cell asked for lapses: it is counted once."""
    world = gpu()
    parked_beside(world)
    world.send(ev.CellStarted(at=world.now, session=SessionId("idle")))
    world.submit("idle/2", "idle", 6 * GiB, GiB)
    assert request_of(SessionId("idle")) not in world.core.jobs
    world.end("busy/1")
    world.run(0.2)
    assert world.running("idle/2")
    assert world.core.book.table.used == 7 * GiB


def test_a_signal_puts_it_first() -> None:
    """A call that waits for its memory sees an interrupt only when it is back."""
    world = gpu()
    parked_beside(world)
    world.open("third", user="third")
    world.submit("third/1", "third", 0, 9 * GiB)
    world.send(ev.CellStarted(at=world.now, session=SessionId("idle")))
    head = world.core.book.queue.head
    assert head is not None
    assert head.id == JobId("third/1")
    world.send(ev.Exempted(at=world.now, session=SessionId("idle"), until=world.now + 1))
    head = world.core.book.queue.head
    assert head is not None
    assert head.id == request_of(SessionId("idle"))


# --- Q3: what cannot be done ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [MoveStatus.NOT_NOW, MoveStatus.UNABLE])
def test_who_could_not_be_parked_runs_on_and_is_left_alone(status: MoveStatus) -> None:
    """For a while, or for good, and it says why."""
    world = gpu()
    holds(world, "idle", 6 * GiB)
    world.run(5)
    world.comes = [(status, "it is profiled")]
    waits(world, "busy", 8 * GiB)
    world.run(5)
    assert parks(world) == ["idle"]
    assert not world.kernels["idle"].paused
    assert world.core.sessions[SessionId("idle")].charged == 6 * GiB
    world.run(60)
    assert parks(world) == (["idle"] if status is MoveStatus.UNABLE else ["idle", "idle"])
    why = world.core.why_not_parked(world.core.sessions[SessionId("idle")])
    assert why == (
        "it is profiled"
        if status is MoveStatus.UNABLE
        else "its memory is parked already, or on its way"
    )


def test_a_restore_without_room_is_tried_again() -> None:
    """I5: on paper there is room, in fact there is none."""
    world = gpu()
    parked_beside(world)
    world.end("busy/1")
    world.comes = [(MoveStatus.NOT_NOW, "no room")] * 3
    world.cell("idle")
    world.run(0.1)
    assert activity(world, "idle") is Activity.RESTORING
    world.run(8)
    assert world.core.sessions[SessionId("idle")].parked is None
    assert not world.kernels["idle"].paused


def spared(size: int, **settings: object) -> World:
    """A GPU whose restores must find 256 MiB to spare; `idle` has `size` bytes parked, `other` keeps 5 GiB, and `busy` is done."""
    world = gpu(restore_margin=256 * MiB, **settings)
    holds(world, "idle", size)
    world.run(5)
    waits(world, "busy", 8 * GiB)
    world.run(0.1)
    world.end("busy/1", persistent=0)
    holds(world, "other", 5 * GiB)
    world.run(5)
    assert activity(world, "idle") is Activity.PARKED
    return world


def test_who_is_idle_is_parked_for_what_a_restore_must_find_to_spare() -> None:
    """There is room for what comes back and no more: that is too little in fact, and nobody else would give any."""
    world = spared(5 * GiB - 64 * MiB)
    waits(world, "idle", 32 * MiB)
    world.run(0.1)
    assert parks(world) == ["idle", "other"]
    assert world.running("idle/1")
    assert activity(world, "other") is Activity.PARKED


def test_a_lane_of_its_own_is_to_spare_until_it_is_back() -> None:
    """Nobody is parked for what its job declares anyway."""
    world = spared(5 * GiB - 512 * MiB)
    waits(world, "idle", 512 * MiB)
    world.run(0.1)
    assert parks(world) == ["idle"]
    assert world.running("idle/1")


def test_whose_restore_finds_too_little_as_others_came_in_waits_for_memory_anew() -> None:
    """It would be tried again for ever: they are idle, and nobody is parked for a restore."""
    world = spared(4 * GiB)
    world.comes = [(MoveStatus.NOT_NOW, "no room")] * 2
    waits(world, "idle", 32 * MiB)
    waits(world, "third", 900 * MiB)
    world.end("third/1", persistent=900 * MiB)
    world.run(10)
    assert world.running("idle/1")
    assert "other" in parks(world) or "third" in parks(world)


def test_what_could_never_be_put_back_is_not_parked() -> None:
    """An empty device has no room for it and what must be to spare."""
    world = gpu(restore_margin=256 * MiB)
    holds(world, "idle", 10 * GiB - 128 * MiB)
    world.run(5)
    waits(world, "busy", 8 * GiB)
    world.run(5)
    assert parks(world) == []
    assert "leaves no room to put it back" in world.core.why_not_parked(world.core.sessions[SessionId("idle")])  # fmt: skip


def test_a_restore_that_nobody_needs_any_more_is_given_up() -> None:
    """Its room goes to others, and it stays parked."""
    world = gpu()
    parked_beside(world)
    world.end("busy/1")
    world.comes = [(MoveStatus.NOT_NOW, "no room")]
    world.cell("idle")
    world.run(0.05)
    world.cell_ends("idle")
    world.run(1)
    assert activity(world, "idle") is Activity.PARKED
    assert world.core.book.table.used == 0


def test_what_the_driver_lost_is_said_and_holds_nothing() -> None:
    world = gpu()
    parked_beside(world)
    world.end("busy/1")
    world.comes = [(MoveStatus.LOST, "the driver lost it")]
    world.cell("idle")
    world.run(0.1)
    assert world.core.sessions[SessionId("idle")].barred == "the driver lost it"
    assert world.core.book.table.persistent == 0
    assert not world.kernels["idle"].paused


# --- Q4: who is displaced ------------------------------------------------------------------------------------


def test_one_endless_cell_cannot_hold_others_out() -> None:
    """Two jobs that meet no boundary and exclude each other: each has half of the time, whoever came first."""
    world = gpu(residency=1.0, park_cost=0.02)
    for name in "ab":
        world.open(name, user=name)
        world.submit(f"{name}/1", name, 0, 7 * GiB)
    world.run(60)
    got = [world.kernels[name].device_time for name in "ab"]
    assert min(got) >= 0.45 * sum(got)
    assert sum(got) >= 0.9 * 60


def test_a_persons_own_notebooks_have_the_memory_in_turn() -> None:
    """Among them it is the session that had least."""
    world = gpu(residency=1.0, park_cost=0.02)
    for name in "ab":
        world.open(name, user="ann")
        world.submit(f"{name}/1", name, 0, 7 * GiB)
    world.run(60)
    got = [world.kernels[name].device_time for name in "ab"]
    assert min(got) >= 0.45 * sum(got)
    assert sum(got) >= 0.9 * 60


def test_what_a_displaced_job_used_is_not_asked_for_twice() -> None:
    """Its E went with the rest, and comes back with it."""
    world = gpu(residency=1.0)
    world.open("a", user="a")
    world.submit("a/1", "a", size=9 * GiB)
    world.run(0.5)
    world.send(ev.Sampled(at=world.now, used={}, utilization=None))
    waits(world, "b", 8 * GiB)
    world.run(30)
    assert "a" in parks(world)
    world.end("b/1")
    world.run(1)
    assert world.running("a/1")
    assert world.core.book.table.used <= 10 * GiB


def test_who_meets_no_boundary_in_time_is_paused_for_it() -> None:
    """It was asked first."""
    world = gpu(residency=1.0)
    world.open("slow", user="slow", interval=0.05)
    world.submit("slow/1", "slow", 0, 7 * GiB)
    world.run(2)
    world.kernels["slow"].interval = None  # one long iteration
    waits(world, "b", 8 * GiB)
    world.run(5)
    assert parks(world)[0] == "slow"
    assert world.running("b/1")


def test_a_real_time_job_is_never_parked() -> None:
    world = gpu(residency=0.0)
    world.open("rt", user="rt")
    world.submit("rt/1", "rt", 0, 7 * GiB, realtime=True)
    world.run(20)
    waits(world, "b", 8 * GiB)
    world.run(20)
    assert parks(world) == []


# --- Q5: by hand, and after a broker's end --------------------------------------------------------------------


def test_its_owner_parks_it() -> None:
    """Though nobody waits; from its own cell as soon as that ends."""
    world = gpu()
    holds(world, "idle", 6 * GiB)
    world.send(ev.CellStarted(at=world.now, session=SessionId("idle")))
    world.send(ev.ParkWanted(at=world.now, session=SessionId("idle")))
    world.run(1)
    assert parks(world) == []
    world.cell_ends("idle", persistent=6 * GiB)
    assert parks(world) == ["idle"]


def test_what_must_not_be_parked_is_not() -> None:
    world = gpu()
    holds(world, "idle", 6 * GiB)
    world.send(ev.ParkBarred(at=world.now, session=SessionId("idle"), why="it maps a bundle"))
    world.send(ev.ParkWanted(at=world.now, session=SessionId("idle")))
    assert parks(world) == []
    assert world.core.why_not_parked(world.core.sessions[SessionId("idle")]) == "it maps a bundle"


def test_a_parked_session_cannot_be_paused_too() -> None:
    world = gpu()
    parked_beside(world)
    world.submit("idle/2", "idle", 6 * GiB, 4 * GiB)
    world.send(ev.Suspended(at=world.now, session=SessionId("idle"), until=world.now + 9, reason=PauseReason.OWNER))  # fmt: skip
    assert world.core.sessions[SessionId("idle")].suspended_until is None


def test_a_broker_that_comes_back_knows_what_is_parked() -> None:
    """It charges nothing for it, and a job that says it runs goes on when its memory is back."""
    world = gpu(orphan_grace=1.0)
    name = SessionId("old")
    world.kernels["old"] = __import__("tests.core.tests_core_world", fromlist=["Kernel"]).Kernel(
        paused=True
    )
    world.send(ev.SessionOpened(at=0.0, session=name, user=UserId("ann"), persistent=5 * GiB, orphaned=True, parked=6 * GiB))  # fmt: skip
    assert world.core.book.table.used == 0
    world.send(ev.SessionReady(at=0.0, session=name, bare=False))
    world.send(ev.JobConfirmed(at=0.0, job=JobId("old/1"), session=name, persistent=5 * GiB, ephemeral=GiB, group=1, running=True, plain=False))  # fmt: skip
    assert world.core.jobs[JobId("old/1")].state is JobState.QUEUED
    world.run(2)
    assert world.running("old/1")
    assert not world.kernels["old"].paused


def test_a_restart_while_parked_leaves_nothing() -> None:
    world = gpu()
    parked_beside(world)
    world.send(ev.SessionRestarted(at=world.now, session=SessionId("idle")))
    record = world.core.sessions[SessionId("idle")]
    assert record.parked is None
    assert record.charged == 0


def test_a_signal_puts_first_who_was_displaced_in_the_middle_too() -> None:
    """Q9: its call waits in the driver, and sees the interrupt only when its memory is back."""
    world = gpu(residency=1.0)
    world.open("a", user="a")
    world.submit("a/1", "a", 0, 7 * GiB)
    world.run(2)
    waits(world, "b", 8 * GiB)
    job = world.core.jobs[JobId("a/1")]
    while job.state is not JobState.QUEUED:
        world.run(0.05)
    world.open("c", user="c")
    world.submit("c/1", "c", 0, 9 * GiB)
    head = world.core.book.queue.head
    assert head is not None
    assert head.id == JobId("c/1")
    world.send(ev.Exempted(at=world.now, session=SessionId("a"), until=world.now + 9))
    assert world.core.book.queue.head is job


def test_who_cannot_be_paused_keeps_nobody_else_from_being_parked() -> None:
    """It was asked, meets no boundary, and is profiled: another idle one is parked meanwhile."""
    world = gpu(residency=1.0)
    world.open("slow", user="slow", interval=0.05)
    world.submit("slow/1", "slow", 0, 7 * GiB)
    world.run(2)
    record = world.core.sessions[SessionId("slow")]
    world.kernels["slow"].interval = None
    waits(world, "b", 8 * GiB)
    world.run(0.3)
    assert record.id in world.core.leaving
    record.pausable = False
    world.run(1.5)
    assert not world.core.leaving
    assert parks(world) == []


def test_what_is_found_to_be_back_is_charged() -> None:
    """A worker of the broker before this one ended the restore: it runs, and its request waits for nothing."""
    world = gpu(orphan_grace=0.0)
    name = SessionId("old")
    world.send(ev.SessionOpened(at=0.0, session=name, user=UserId("ann"), orphaned=True, parked=6 * GiB))  # fmt: skip
    world.send(ev.SessionReady(at=0.0, session=name, bare=False))
    world.send(ev.CapacityChanged(at=0.0, capacity=5 * GiB))  # what it holds was taken for others'
    world.send(ev.CellStarted(at=0.0, session=name))
    assert request_of(name) in world.core.jobs
    record = world.core.sessions[name]
    world.send(ev.Restored(at=0.1, session=name, ticket=record.move))
    assert activity(world, "old") is Activity.IDLE
    assert record.charged + record.context == 6 * GiB
    assert request_of(name) not in world.core.jobs
    assert record.stopped is None


def test_what_an_earlier_broker_had_a_notebook_set_aside_waits_for_room_as_any_other() -> None:
    """Its P is on the ledger, and not on the device: others have the room, and its cell asks for it."""
    world = gpu(orphan_grace=0.0)
    name = SessionId("old")
    world.send(ev.SessionOpened(at=0.0, session=name, user=UserId("ann"), orphaned=True, persistent=6 * GiB))  # fmt: skip
    world.send(ev.SessionReady(at=0.0, session=name, bare=False))
    record = world.core.sessions[name]
    world.send(ev.CellStarted(at=0.0, session=name))  # before it could be said
    world.send(ev.FoundAside(at=0.0, session=name, size=5 * GiB))
    assert activity(world, "old") is Activity.RESTORING, "there is room"
    world.run(1)
    assert record.charged == 6 * GiB
    world.send(ev.CellEnded(at=world.now, session=name, persistent=6 * GiB))
    world.send(ev.FoundAside(at=world.now, session=name, size=5 * GiB))
    assert activity(world, "old") is Activity.PARKED
    assert record.charged == GiB
    waits(world, "b", 8 * GiB)
    world.run(0.1)
    assert world.running("b/1")


def test_who_wants_it_back_on_its_way_out_has_it_back() -> None:
    """And who wanted it parked at the end of the cell, and then not, keeps it."""
    world = gpu()
    holds(world, "idle", 6 * GiB)
    world.send(ev.CellStarted(at=world.now, session=SessionId("idle")))
    world.send(ev.ParkWanted(at=world.now, session=SessionId("idle")))
    world.send(ev.RestoreWanted(at=world.now, session=SessionId("idle")))
    world.cell_ends("idle", persistent=6 * GiB)
    assert parks(world) == []
    record = world.core.sessions[SessionId("idle")]
    world.core.handle(ev.ParkWanted(at=world.now, session=record.id))
    world.core.handle(ev.RestoreWanted(at=world.now, session=record.id))
    world.core.handle(ev.Parked(at=world.now, session=record.id, ticket=record.move, persistent=0, freed=6 * GiB))  # fmt: skip
    assert record.moving is Moving.BACK
