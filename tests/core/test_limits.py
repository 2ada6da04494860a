"""What an administrator allows: caps, budgets that are used up, maintenance (docs/admin/groups.md, maintenance.md)."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.strategies import DataObject

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.accounts import BACKGROUND
from gpushare_kernel.core.budget import budget
from gpushare_kernel.core.parking import REST
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.returning import request_of
from gpushare_kernel.core.values import Activity, GiB, JobId, MiB, SessionId, UserId, WaitReason
from tests.core.test_parking import activity, gpu, holds, parks, waits
from tests.core.tests_core_world import Kernel, World
from tests.core.tests_gpu_world import GpuWorld


def limits(world: World, user: str, **more: Any) -> None:
    world.send(ev.UserLimits(at=world.now, user=UserId(user), group="students", **more))


def maintenance(world: World, *, on: bool, note: str = "") -> None:
    world.send(ev.Draining(at=world.now, on=on, note=note))


def waits_for(world: World, job: str) -> WaitReason:
    return why(world.core, world.core.jobs[JobId(job)]).reason


def let_in(world: World, job: str) -> bool:
    """Whether it has its memory."""
    record = world.core.jobs.get(JobId(job))
    return record is not None and record.lane is not None


def two_of_ann() -> World:
    """Ann may hold 4 of 10 GiB and holds 3; her second notebook asks for 2."""
    world = World()
    limits(world, "ann", memory=4 * GiB)
    world.open("a1"), world.open("a2"), world.open("b", "bob")
    world.submit("a1/j", "a1", 3 * GiB, 0)
    world.submit("a2/j", "a2", 2 * GiB, 0)
    return world


def set_aside(world: World, name: str, size: int, context: int = 0) -> None:
    """`name` keeps `size` bytes, which are parked now; its context is not."""
    holds(world, name, size)
    session = world.core.sessions[SessionId(name)]
    world.send(ev.SessionReady(at=world.now, session=session.id, bare=False, context=context))
    world.send(ev.ParkWanted(at=world.now, session=session.id))
    done = ev.Parked(at=world.now, session=session.id, ticket=session.move, freed=size, contexts=bool(context))  # fmt: skip
    world.moves = []
    world.send(done)
    assert session.parked is not None


# --- caps --------------------------------------------------------------------------------------------------


def test_who_would_hold_more_than_its_group_allows_waits_for_its_own() -> None:
    """Free memory does not help; what it reads has the cap, what is left of it, and its own notebook alone."""
    world = two_of_ann()
    wait = why(world.core, world.core.jobs[JobId("a2/j")])
    assert (wait.reason, wait.needs, wait.free, wait.cap, wait.group, wait.ahead) == (
        WaitReason.CAP, 2 * GiB, GiB, 4 * GiB, "students", 0)  # fmt: skip
    assert [(one.name, one.size, one.own) for one in wait.holders] == [("a1", 3 * GiB, True)]


def test_it_is_in_nobodys_way_and_comes_in_when_its_user_holds_less() -> None:
    """Others pass it as if it were not there, however often."""
    world = two_of_ann()
    for number in range(20):
        world.submit(f"b/{number}", "b", 6 * GiB, GiB)
        assert let_in(world, f"b/{number}")
        world.run(0.5)
        world.end(f"b/{number}", persistent=6 * GiB)
    assert not let_in(world, "a2/j")
    world.end("a1/j", persistent=0)
    world.send(ev.Released(at=world.now, session=SessionId("a1"), persistent=0))
    assert let_in(world, "a2/j")


def test_a_cap_that_is_raised_lets_in_who_waited_and_one_that_is_lowered_touches_nobody() -> None:
    """A timetable does that twice a day."""
    world = two_of_ann()
    limits(world, "ann", memory=2 * GiB, memory_ever=8 * GiB)
    assert let_in(world, "a1/j")
    limits(world, "ann", memory=8 * GiB, memory_ever=8 * GiB)
    assert let_in(world, "a2/j")


def test_what_no_hour_of_the_timetable_allows_is_refused_with_the_numbers() -> None:
    """Rule, value, next step; what another hour allows waits."""
    world = World()
    limits(world, "ann", memory=2 * GiB, memory_ever=4 * GiB)
    world.open("a")
    world.submit("a/0", "a", 5 * GiB, 0)
    assert world.refused["a/0"] == (
        "this can never fit: it needs 5.0 GiB, and each of the group students may hold 4.0 GiB of this device in all. "
        "Ask for 4.0 GiB or less, or have your administrator raise it."
    )
    world.submit("a/1", "a", 3 * GiB, 0)
    assert waits_for(world, "a/1") is WaitReason.CAP


def test_who_gives_up_leaves_nothing_behind() -> None:
    world = two_of_ann()
    world.send(ev.JobCancelled(at=world.now, job=JobId("a2/j")))
    assert "a2/j" in world.dropped
    assert not world.core.held_back


def test_lane_mates_of_one_user_are_counted_once() -> None:
    """Of those that share a lane one has its memory on the device at a time."""
    world = World()
    limits(world, "ann", memory=4 * GiB)
    world.open("a1", interval=0.01), world.open("a2", interval=0.01)
    world.submit("a1/j", "a1", 0, 2 * GiB)
    world.submit("a2/j", "a2", 0, 2 * GiB)
    user = world.core.users[UserId("ann")]
    lanes = world.core.book.table.in_lanes
    assert world.core.held_by(user) == lanes <= 4 * GiB


def test_own_idle_notebooks_are_parked_for_who_waits_for_its_cap() -> None:
    """Nobody else's are: they are in nobody's way."""
    world = gpu()
    holds(world, "bob", 2 * GiB)
    limits(world, "ann", memory=4 * GiB)
    world.open("a1", "ann"), world.open("a2", "ann")
    world.submit("a1/0", "a1", 3 * GiB, 0)
    world.run(0.05)
    world.end("a1/0", persistent=3 * GiB)
    world.submit("a2/0", "a2", 3 * GiB, 0)
    world.run(3 * REST)
    assert parks(world) == ["a1"]
    assert world.running("a2/0")


def test_no_more_is_set_aside_than_the_group_allows() -> None:
    """What is parked lies in the host's memory, which others need too."""
    world = gpu()
    world.open("a1", "ann"), world.open("a2", "ann")
    for name in ("a1", "a2"):
        world.submit(f"{name}/0", name, 3 * GiB, 0)
        world.run(0.05)
        world.end(f"{name}/0", persistent=3 * GiB)
    limits(world, "ann", parked=4 * GiB)
    for name in ("a1", "a2"):
        world.send(ev.ParkWanted(at=world.now, session=SessionId(name)))
        world.run(0.1)
    assert parks(world) == ["a1"]
    assert world.core.why_not_parked(world.core.sessions[SessionId("a2")]) == (
        "each of the group students may have 4.0 GiB set aside, and 3.0 GiB are"
    )


def test_what_is_set_aside_just_below_a_cap_comes_back() -> None:
    """A plain cell gets as much beside it as the cap leaves: 100 of its 256 MiB."""
    world = gpu()
    limits(world, "ann", memory=4 * GiB)
    set_aside(world, "ann", 4 * GiB - 100 * MiB)
    world.cell("ann")
    assert activity(world, "ann") is Activity.RESTORING
    assert world.core.held_by(world.core.users[UserId("ann")]) == 4 * GiB
    world.run(0.1)
    assert world.core.sessions[SessionId("ann")].charged == 4 * GiB - 100 * MiB


@pytest.mark.parametrize("context", [0, GiB // 2])
def test_what_is_set_aside_under_a_cap_that_was_lowered_since_comes_back_alone(
    context: int,
) -> None:
    """Its state is its own (I8); beside another notebook of the same user it waits. A context that stayed there is its own, too."""
    world = gpu()
    set_aside(world, "ann", 3 * GiB, context=context)
    world.open("ann2", "ann")
    world.submit("ann2/0", "ann2", GiB, 0)
    limits(world, "ann", memory=2 * GiB)
    world.cell("ann")
    assert waits_for(world, request_of(SessionId("ann"))) is WaitReason.CAP
    world.close("ann2")
    world.run(0.1)
    assert world.core.sessions[SessionId("ann")].charged == 3 * GiB


def test_a_displaced_job_goes_on_whose_users_cap_was_lowered_since() -> None:
    """It had begun, so another notebook of hers is not in its way: a cap holds for what comes next."""
    world = gpu(residency=1.0)
    world.open("ann2", "ann"), world.open("ann", "ann")
    world.send(ev.ParkBarred(at=0.0, session=SessionId("ann2"), why="it is profiled"))
    world.submit("ann2/0", "ann2", GiB, 0)
    world.run(0.05)
    world.end("ann2/0", persistent=GiB)
    world.submit("ann/0", "ann", 0, 7 * GiB)
    world.run(2)
    waits(world, "bob", 8 * GiB)
    while not world.running("bob/1"):
        world.run(0.05)
    assert parks(world) == ["ann"]
    limits(world, "ann", memory=2 * GiB, memory_ever=8 * GiB)
    assert not let_in(world, "ann/0")
    world.end("bob/1")
    assert let_in(world, "ann/0")


def test_a_client_is_told_no_more_than_its_group_allows() -> None:
    """What a plain cell may take is what is left of the cap, also where it has the device to itself."""
    world = gpu()
    world.open("a", "ann"), world.open("a2", "ann")
    one = world.core.sessions[SessionId("a")]
    assert budget(world.core, one) is None
    limits(world, "ann", memory=4 * GiB)
    assert budget(world.core, one) == 4 * GiB
    world.submit("a2/0", "a2", 3 * GiB, 0)
    assert budget(world.core, one) == GiB


# --- weights and budgets -----------------------------------------------------------------------------------------


def test_a_weight_counts_from_the_moment_it_comes() -> None:
    """Three to one, then one to one: what was used before is not paid back."""
    world = World(compute=1.0)
    a, b = world.open("a", "ann"), world.open("b", "bob")
    limits(world, "ann", weight=3.0)
    for name in ("a", "b"):
        world.submit(f"{name}/0", name, GiB, 0)
    world.run(20.0)
    assert a.device_time / (a.device_time + b.device_time) == pytest.approx(0.75, abs=0.02)
    limits(world, "ann", weight=1.0)
    before = a.device_time, b.device_time
    world.run(20.0)
    got = a.device_time - before[0], b.device_time - before[1]
    assert got[0] / sum(got) == pytest.approx(0.5, abs=0.02)


def test_who_is_over_its_budget_runs_when_nobody_else_wants_the_device() -> None:
    """It is not refused; with somebody else there it stands still, but for a turn after each half minute (I3)."""
    world = World(compute=1.0)
    a = world.open("a", "ann")
    limits(world, "ann", over_budget=True)
    world.submit("a/0", "a", GiB, 0)
    world.run(5.0)
    assert a.device_time == pytest.approx(5.0, abs=0.1)
    b = world.open("b", "bob")
    world.submit("b/0", "b", GiB, 0)
    world.run(3 * BACKGROUND)
    assert b.device_time / BACKGROUND + 0.1 >= 3
    assert 0.1 < a.device_time - 5.0 < 1.5
    limits(world, "ann")  # a new day
    before = a.device_time
    world.run(10.0)
    assert a.device_time - before == pytest.approx(5.0, abs=0.3)


def test_idle_cores_are_no_ones() -> None:
    """On a device that is divided, who is over its budget has what others leave, once it is known how much that one can use."""
    world = World(compute=2.0)
    limits(world, "ann", over_budget=True)
    a, b = world.open("a", "ann"), world.open("b", "bob")
    for name in ("a", "b"):
        world.submit(f"{name}/0", name, GiB, 0)
    world.run(BACKGROUND + 1.0)
    before = a.device_time, b.device_time
    world.run(10.0)
    got = a.device_time - before[0], b.device_time - before[1]
    assert got == (pytest.approx(10, abs=0.2), pytest.approx(10, abs=0.2))


def test_a_gpu_goes_to_those_within_their_budgets() -> None:
    """Two within divide it as ever."""
    world = GpuWorld()
    limits(world, "ann", over_budget=True)
    one = {name: world.start(name, "heavy") for name in ("ann", "bob", "cyd")}
    world.run(20.0)
    done = {name: kernel.done for name, kernel in one.items()}
    assert done["ann"] < 0.5
    assert done["bob"] / (done["bob"] + done["cyd"]) == pytest.approx(0.5, abs=0.03)


def test_the_rest_stay_equal_beside_who_is_over_its_budget() -> None:
    """Its small account must not pass for the present: a newcomer would have an hour's credit."""
    world = World(compute=1.0)
    limits(world, "ann", over_budget=True)
    world.open("a", "ann")
    b = world.open("b", "bob")
    for name in ("a", "b"):
        world.submit(f"{name}/0", name, GiB, 0)
    world.run(25.0)
    c = world.open("c", "cyd")
    world.submit("c/0", "c", GiB, 0)
    before = b.device_time
    world.run(4.0)
    assert b.device_time - before == pytest.approx(2.0, abs=0.3)
    assert c.device_time == pytest.approx(2.0, abs=0.3)


def test_memory_goes_to_those_within_their_budgets_first() -> None:
    """Who came first and is over its budget waits behind them, and comes when they have theirs."""
    world = World()
    world.open("a", "ann"), world.open("b", "bob"), world.open("c", "cyd")
    limits(world, "ann", over_budget=True)
    world.submit("c/0", "c", 8 * GiB, 0)
    world.submit("a/0", "a", 6 * GiB, 0)
    world.submit("b/0", "b", 6 * GiB, 0)
    world.close("c")
    assert (world.running("b/0"), world.running("a/0")) == (True, False)
    assert why(world.core, world.core.jobs[JobId("a/0")]).over_budget
    world.close("b")
    assert world.running("a/0")


# --- maintenance ---------------------------------------------------------------------------------------------------


def test_what_runs_goes_on_and_nothing_new_begins() -> None:
    """Who waits reads why; when it is over they come in as they came."""
    world = World()
    world.open("a", "ann"), world.open("b", "bob"), world.open("c", "cyd")
    world.submit("a/0", "a", GiB, 0)
    maintenance(world, on=True, note="a new driver, back at 16:00")
    for name in ("b", "c"):
        world.submit(f"{name}/0", name, GiB, 0)
    assert (world.running("a/0"), world.running("b/0")) == (True, False)
    wait = why(world.core, world.core.jobs[JobId("b/0")])
    assert (wait.reason, wait.note) == (WaitReason.MAINTENANCE, "a new driver, back at 16:00")
    world.run(1.0)
    world.submit("a/1", "a", 2 * GiB, 0)
    assert let_in(world, "a/1"), "inside one that runs"
    for job in ("a/1", "a/0"):
        world.end(job)
    assert not any(let_in(world, f"{name}/0") for name in "bc")
    maintenance(world, on=False)
    assert all(let_in(world, f"{name}/0") for name in "bc")


def test_who_waited_when_it_began_waits_on() -> None:
    world = World()
    world.open("a", "ann"), world.open("b", "bob")
    world.submit("a/0", "a", 8 * GiB, 0)
    world.submit("b/0", "b", 8 * GiB, 0)
    maintenance(world, on=True)
    world.close("a")
    assert waits_for(world, "b/0") is WaitReason.MAINTENANCE
    maintenance(world, on=False)
    assert world.running("b/0")


def test_idle_memory_is_set_aside_and_what_runs_follows_at_its_end() -> None:
    """Where the device can; the next cell waits for the end of the maintenance, with its state kept."""
    world = gpu()
    holds(world, "ann", 2 * GiB)
    world.open("bob", "bob")
    world.submit("bob/0", "bob", 2 * GiB, 0)
    maintenance(world, on=True)
    world.run(0.1)
    assert parks(world) == ["ann"]
    world.end("bob/0", persistent=2 * GiB)
    world.run(0.1)
    assert parks(world) == ["ann", "bob"]
    world.submit("ann/2", "ann", 0, GiB)
    assert waits_for(world, "ann/2") is WaitReason.MAINTENANCE
    maintenance(world, on=False)
    world.run(0.1)
    assert world.running("ann/2")


def test_its_end_does_not_take_back_what_somebody_asked_for_by_hand() -> None:
    """Ann's cell runs; she has asked that its memory be set aside after it."""
    world = gpu()
    world.open("ann", "ann"), world.open("bob", "bob")
    for name in ("ann", "bob"):
        world.submit(f"{name}/0", name, 2 * GiB, 0)
    world.send(ev.ParkWanted(at=world.now, session=SessionId("ann")))
    maintenance(world, on=True)
    maintenance(world, on=False)
    for name in ("ann", "bob"):
        world.end(f"{name}/0", persistent=2 * GiB)
    world.run(0.1)
    assert parks(world) == ["ann"]


def test_a_notebook_that_comes_during_one_is_set_aside() -> None:
    """A broker was started again, and its client attaches: it holds memory, and nothing of it runs."""
    world = gpu()
    world.send(
        ev.SessionOpened(
            at=0.0, session=SessionId("a"), user=UserId("ann"), orphaned=True, persistent=2 * GiB
        )
    )
    world.kernels["a"] = Kernel()
    maintenance(world, on=True)
    assert parks(world) == []
    world.send(ev.SessionReady(at=0.0, session=SessionId("a"), bare=False, context=0))
    assert parks(world) == ["a"]


def test_who_ends_during_one_is_not_set_aside() -> None:
    """There is nothing left to park."""
    world = gpu()
    world.open("ann", "ann")
    world.submit("ann/0", "ann", 2 * GiB, 0)
    maintenance(world, on=True)
    world.close("ann")
    assert parks(world) == []


def test_a_cell_that_waits_for_what_is_set_aside_can_be_interrupted() -> None:
    """It waits inside the driver, and sees the signal when it is back: nothing an administrator said is in its way."""
    world = gpu()
    holds(world, "ann", 2 * GiB)
    maintenance(world, on=True)
    world.run(0.1)
    world.cell("ann")
    assert waits_for(world, request_of(SessionId("ann"))) is WaitReason.MAINTENANCE
    world.send(ev.Exempted(at=world.now, session=SessionId("ann"), until=world.now + 5))
    world.run(0.1)
    assert world.core.sessions[SessionId("ann")].charged == 2 * GiB
    assert not world.kernels["ann"].paused
    world.cell_ends("ann", persistent=2 * GiB)
    assert parks(world) == ["ann", "ann"], "the maintenance goes on"


def test_who_was_held_back_and_is_interrupted_is_next() -> None:
    """Also before those who waited already."""
    world = gpu()
    set_aside(world, "ann", 6 * GiB)
    world.open("ann2", "ann"), world.open("bob", "bob"), world.open("cyd", "cyd")
    world.submit("ann2/0", "ann2", GiB, 0)
    world.submit("bob/0", "bob", 5 * GiB, 0)
    limits(world, "ann", memory=2 * GiB)
    world.submit("cyd/0", "cyd", 8 * GiB, 0)
    world.cell("ann")
    assert waits_for(world, request_of(SessionId("ann"))) is WaitReason.CAP
    world.send(ev.Exempted(at=world.now, session=SessionId("ann"), until=world.now + 5))
    head = world.core.book.queue.head
    assert head is not None
    assert head.id == request_of(SessionId("ann"))


def test_who_is_interrupted_before_a_maintenance_comes_back_in_it() -> None:
    """The signal was first; there was no room yet."""
    world = gpu()
    set_aside(world, "ann", 6 * GiB)
    waits(world, "bob", 8 * GiB)
    world.cell("ann")
    world.send(ev.Exempted(at=world.now, session=SessionId("ann"), until=world.now + 5))
    maintenance(world, on=True)
    world.end("bob/1")
    world.run(0.1)
    assert world.core.sessions[SessionId("ann")].charged == 6 * GiB


# --- a command that holds memory for what it starts ----------------------------------------------------------------


def test_what_runs_below_a_command_takes_from_what_that_holds() -> None:
    """On a GPU that is full otherwise a kernel's first use, and a cell that declares, come in at once; beyond it they wait."""
    world = gpu()
    world.open("hog", "bob")
    world.submit("hog/0", "hog", 5 * GiB, 0)
    world.open("run", "ann")
    world.submit("run/held", "run", 5 * GiB, 0)
    assert world.core.book.table.free == 0
    world.submit("run/plain", "run", plain=True)
    assert let_in(world, "run/plain")
    world.submit("run/cell", "run", size=4 * GiB)
    assert let_in(world, "run/cell")
    assert world.core.book.table.free == 0
    world.submit("run/more", "run", size=6 * GiB)
    assert waits_for(world, "run/more") is WaitReason.MEMORY


# --- whatever comes -----------------------------------------------------------------------------------------------

USERS = ("ann", "bob", "cyd")
sizes = st.integers(0, 4).map(lambda n: n * GiB)


def one_step(data: DataObject, world: World, user: str, number: int) -> None:
    """Somebody begins or ends something, or an administrator acts."""
    match data.draw(st.sampled_from(["submit", "submit", "end", "limits", "drain"])):
        case "submit":
            session = data.draw(st.sampled_from([f"{user}1", f"{user}2"]))
            world.submit(f"{session}/{number}", session, 0, data.draw(sizes))
        case "end":
            running = sorted(job for job in world.core.jobs if world.running(job))
            if running:
                world.end(data.draw(st.sampled_from(running)))
        case "limits":
            cap, over = data.draw(st.none() | sizes), data.draw(st.booleans())
            limits(world, user, memory=cap, memory_ever=8 * GiB, over_budget=over)
        case "drain":
            maintenance(world, on=data.draw(st.booleans()))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_grant_takes_a_user_beyond_its_cap_and_everybody_comes_in_at_last(
    data: DataObject,
) -> None:
    """Any order of work, caps, budgets and maintenance. At the end nothing is in the way, and all have run."""
    world = World(capacity=8 * GiB)
    for user in USERS:
        world.open(f"{user}1", user), world.open(f"{user}2", user)
    users = [world.core.users[UserId(name)] for name in USERS]
    for number in range(data.draw(st.integers(5, 30))):
        held = [world.core.held_by(user) for user in users]
        one_step(data, world, data.draw(st.sampled_from(USERS)), number)
        for user, before in zip(users, held, strict=True):
            assert user.cap is None or world.core.held_by(user) <= max(user.cap, before)
        world.run(0.05)
    maintenance(world, on=False)
    for name in USERS:
        limits(world, name)
    for _ in range(200):
        for job in [job for job in world.core.jobs if world.running(job)]:
            world.end(job)
        world.run(0.2)
        if not world.core.jobs:
            break
    assert not world.core.jobs
    assert not world.core.held_back
