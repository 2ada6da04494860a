"""The scheduler as a whole: lanes change hands, restarts, losses and deficits, and the same events give the same instructions."""

from __future__ import annotations

import random

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.errors import InternalError, UserError
from gpushare_kernel.core.scheduler import Scheduler
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.validate import validate
from gpushare_kernel.core.values import (
    GiB,
    JobId,
    JobState,
    LaneId,
    Need,
    PauseStatus,
    Presence,
    SessionId,
    Usage,
    UserId,
)


def occupant(world: World, lane: int = 1) -> str:
    job = world.core.book.table.lanes[LaneId(lane)].occupant
    return "" if job is None else str(job.id)


def lane_mates(interval: float | None = 0.01, **settings: object) -> World:
    """Two jobs in one lane on a machine with room for both to run."""
    world = World(capacity=10 * GiB, compute=4.0, **settings)
    for name in "ab":
        world.open(name, user=name, interval=interval)
        world.submit(f"{name}/1", name, 0, 6 * GiB, cooperative=True)
    assert len(world.core.book.table.lanes) == 1
    return world


# --- lanes change hands --------------------------------------------------------------------------------------


def test_a_lane_passes_only_when_its_memory_was_given_back() -> None:
    """Asked for the lane, the occupant meets a boundary untrimmed: nobody else has its E on the device. Then trimmed."""
    world = lane_mates(interval=None)
    world.run(1.5)
    assert world.asked["a/1"] == (False, True)
    world.kernels["a"].interval = 0.01
    world.boundary("a/1", trimmed=False)
    assert occupant(world) == "a/1"
    assert not world.running("b/1")
    assert world.running("a/1"), "it keeps its lane and its turn"
    world.kernels["a"].interval = None
    world.run(0.1)
    assert world.asked["a/1"] == (False, True), "and is asked again"
    world.kernels["a"].interval = 0.01
    world.run(0.1)
    assert occupant(world) == "b/1"
    assert world.running("b/1")
    assert not world.running("a/1")


def test_lane_mates_alternate_after_a_lanes_turn() -> None:
    """Inside FAIR each has the lane for `lane_turn`, and both get forward alike."""
    world = lane_mates(lane_turn=0.5)
    seen = []
    for _ in range(60):
        world.run(0.1)
        if not seen or seen[-1] != occupant(world):
            seen.append(occupant(world))
    assert seen[:4] == ["a/1", "b/1", "a/1", "b/1"]
    a, b = (world.kernels[name].device_time for name in "ab")
    assert a == pytest.approx(b, abs=0.6)
    assert not any(isinstance(i, do.Pause) for i in world.log)


def test_under_fifo_a_lane_stays_with_the_first() -> None:
    """Its mate waits until it ends, however long; a trimmed boundary changes nothing."""
    world = lane_mates(lane_turn=0.5, policy="fifo")
    world.run(5.0)
    assert occupant(world) == "a/1"
    assert not any(isinstance(i, do.Ask) for i in world.log)
    world.boundary("a/1", trimmed=True)
    assert occupant(world) == "a/1"
    assert world.running("a/1")
    world.end("a/1")
    assert world.running("b/1")


def test_switching_to_fair_wakes_the_lane() -> None:
    """Lane mates that FIFO let wait are not forgotten by the next policy."""
    world = lane_mates(lane_turn=0.5, policy="fifo")
    world.run(3.0)
    world.send(ev.PolicyChanged(at=world.now, policy="fair"))
    world.run(0.5)
    assert occupant(world) == "b/1"


def test_the_occupants_end_passes_the_lane_at_once() -> None:
    """No turn to wait for: what was the lane's is its mate's."""
    world = lane_mates()
    world.end("a/1")
    assert world.running("b/1")


def test_a_lane_is_divided_by_users_then_by_jobs() -> None:
    """I6 holds in a lane too: one user's three jobs have it as long as another's one, and none of them is forgotten."""
    world = World(capacity=10 * GiB, compute=4.0, lane_turn=0.2)
    for name, user in (("a1", "ann"), ("a2", "ann"), ("a3", "ann"), ("b", "bob")):
        world.open(name, user=user, interval=0.01)
        world.submit(f"{name}/1", name, 0, 6 * GiB, cooperative=True)
    assert len(world.core.book.table.lanes) == 1
    world.run(24.0, step=0.01)
    used = {name: kernel.device_time for name, kernel in world.kernels.items()}
    assert used["b"] == pytest.approx(12.0, abs=1.0)
    assert all(used[name] == pytest.approx(4.0, abs=0.7) for name in ("a1", "a2", "a3"))


def test_a_newcomer_in_a_lane_is_not_owed_the_time_before() -> None:
    """It gets its turns, not the lane for itself until it has caught up."""
    world = lane_mates(lane_turn=0.2)
    world.run(20.0, step=0.01)
    world.open("c", user="cat", interval=0.01)
    world.submit("c/1", "c", 0, 6 * GiB)
    before = {name: kernel.device_time for name, kernel in world.kernels.items()}
    world.run(6.0, step=0.01)
    for name, kernel in world.kernels.items():
        assert kernel.device_time - before[name] == pytest.approx(2.0, abs=0.5)


def test_one_timer_a_lane_however_often_it_is_met() -> None:
    """Grants and newcomers do not pile up deadlines."""
    world = lane_mates(lane_turn=1000.0)
    for _ in range(50):
        world.boundary("a/1", trimmed=False)
    assert len(world.core._deadlines._timers) == 1


def test_a_lane_stays_where_it_is_as_long_as_memory_is_missing_in_fact() -> None:
    """The occupant trimmed and still holds more than there is room for: its mate waits, and the lane is asked for again."""
    world = lane_mates(lane_turn=0.5)
    world.kernels["a"].interval = None
    world.run(0.6)
    assert world.asked["a/1"] == (False, True)
    world.boundary("a/1", trimmed=True, persistent=5 * GiB)
    assert world.core.book.deficit
    assert occupant(world) == "a/1"
    assert world.running("a/1")
    world.run(0.4)
    assert "a/1" not in world.asked, "not at once"
    world.run(0.2)
    assert world.asked["a/1"] == (False, True)
    world.boundary("a/1", trimmed=True, persistent=GiB)
    assert occupant(world) == "b/1"
    assert world.running("b/1")


def test_what_was_declared_and_never_used_lapses_while_somebody_waits() -> None:
    """At the end of its last job: charged is what is measured. With nobody waiting it stays for the next cell."""
    world = World(capacity=10 * GiB)
    for name in "ab":
        world.open(name, user=name)
    for number in "12":
        world.submit(f"a/{number}", "a", 6 * GiB, 0)
    world.end("a/1", persistent=GiB)
    world.submit("b/1", "b", 8 * GiB, 0)
    assert not world.running("b/1")
    assert world.core.sessions[SessionId("a")].charged == 6 * GiB, "a job of it runs"
    world.end("a/2", persistent=GiB)
    assert world.core.sessions[SessionId("a")].charged == GiB
    assert world.running("b/1")
    world.end("b/1")
    assert world.core.sessions[SessionId("b")].charged == 8 * GiB


def test_a_cell_that_declares_its_work_keeps_what_it_held() -> None:
    """A plain job gives way to a declared one: its session has had work all the time, nothing lapses between."""
    world = World(capacity=10 * GiB)
    world.open("a")
    world.open("b", user="bob")
    world.submit("a/1", "a", 4 * GiB, 0)
    world.end("a/1")
    world.cell("a")
    world.run(1.0)
    assert world.core.sessions[SessionId("a")].plain_job is not None
    world.submit("b/1", "b", 8 * GiB, 0)
    world.submit("a/2", "a", size=5 * GiB)
    assert world.core.sessions[SessionId("a")].charged == 4 * GiB
    assert world.core.jobs[JobId("a/2")].need == Need(4 * GiB, GiB)


# --- who waits, and who is refused ------------------------------------------------------------------------


def test_what_can_never_fit_is_refused_and_leaves_nothing() -> None:
    """The message has the numbers; no job, no lane, no place in the queue."""
    world = World(capacity=10 * GiB)
    world.open("a")
    world.submit("a/1", "a", 8 * GiB, 3 * GiB)
    assert "11.0 GiB" in world.refused["a/1"]
    assert "10.0 GiB" in world.refused["a/1"]
    assert not world.core.jobs
    assert world.core.book.table.used == 0


@pytest.mark.parametrize("weight", [0.0, -1.0, 0.009, 101.0, float("nan"), float("inf")])
def test_a_weight_that_means_nothing_changes_nothing(weight: float) -> None:
    """Refused before anything is noted: no session, no user, no job of it."""
    world = World()
    world.open("a")
    for event in (
        ev.SessionOpened(at=1.0, session=SessionId("x"), user=UserId("new"), weight=weight),
        ev.SessionOpened(at=1.0, session=SessionId("x"), user=UserId("new"), user_weight=weight),
        ev.JobSubmitted(
            at=1.0, job=JobId("a/1"), session=SessionId("a"), ephemeral=1, weight=weight
        ),
        ev.WeightChanged(at=1.0, session=SessionId("a"), weight=weight),
    ):
        with pytest.raises(UserError, match=r"between 0\.01 and 100"):
            world.core.handle(event)
        validate(world.core)
    assert set(world.core.sessions) == {"a"}
    assert set(world.core.users) == {"ann"}
    assert not world.core.jobs
    assert world.core.sessions[SessionId("a")].weight == 1.0


def test_a_job_weight_lasts_as_long_as_the_job() -> None:
    """--weight is this cell's; set_weight is the session's."""
    world = World()
    world.open("a", weight=2.0)
    session = world.core.sessions[SessionId("a")]
    world.submit("a/1", "a", 0, GiB, weight=5.0)
    assert session.weight == 5.0
    world.end("a/1")
    assert session.weight == 2.0


def test_an_unknown_policy_is_refused_and_the_old_one_goes_on() -> None:
    """Nothing has changed then."""
    world = World()
    with pytest.raises(UserError, match="lottery"):
        world.core.handle(ev.PolicyChanged(at=1.0, policy="lottery"))
    assert world.core.turns.accounts.policy.name == "fair"


def test_time_does_not_fall() -> None:
    """A clock that runs backwards is a bug of ours, and is said."""
    world = World()
    world.send(ev.Sampled(at=5.0))
    with pytest.raises(InternalError, match=r"time fell from 5.0 to 4.0"):
        world.core.handle(ev.Sampled(at=4.0))


def test_leaving_the_queue_gives_the_place_up() -> None:
    """Interrupt: out of the queue, told once; a job that runs is not cancelled by it."""
    world = World(capacity=10 * GiB)
    for name in "ab":
        world.open(name, user=name)
        world.submit(f"{name}/1", name, 8 * GiB, 0)
    world.send(ev.JobCancelled(at=world.now, job=JobId("b/1")))
    world.send(ev.JobCancelled(at=world.now, job=JobId("b/1")))
    world.send(ev.JobCancelled(at=world.now, job=JobId("a/1")))
    assert world.dropped == {"b/1"}
    assert [i for i in world.log if isinstance(i, do.Drop)] == [
        do.Drop(JobId("b/1"), SessionId("b"))
    ]
    assert world.running("a/1")


def test_ending_a_job_that_was_never_granted_is_leaving_the_queue() -> None:
    """The end of a client that gave up in the same moment."""
    world = World(capacity=10 * GiB)
    for name in "ab":
        world.open(name, user=name)
        world.submit(f"{name}/1", name, 8 * GiB, 0)
    world.end("b/1")
    assert "b/1" in world.dropped
    assert len(world.core.book.queue) == 0


def test_the_queue_keeps_its_order_and_lets_small_ones_pass_a_while() -> None:
    """A big job is passed PATIENCE times; then the others wait for it although they would fit."""
    world = World(capacity=10 * GiB, compute=64.0)
    world.open("holder")
    world.submit("holder/1", "holder", 5 * GiB, 0)
    world.open("big")
    world.submit("big/1", "big", 8 * GiB, 0)
    running = []
    for n in range(12):
        name = f"s{n}"
        world.open(name, user=name)
        world.submit(f"{name}/1", name, 256 * 2**20, 0)
        running.append(world.core.jobs[JobId(f"{name}/1")].state is not JobState.QUEUED)
    assert running == [True] * 8 + [False] * 4
    world.close("holder")
    waiting = [str(job.id) for job in world.core.book.queue]
    assert waiting == ["s8/1", "s9/1", "s10/1", "s11/1"], "8 GiB are free: the big one is in"


# --- deficits ---------------------------------------------------------------------------------------------------


def test_nothing_is_granted_in_a_deficit_and_plain_cells_still_start() -> None:
    """Foreign use takes what was promised: declared jobs wait until it is gone, a plain cell does not ask."""
    world = World(capacity=10 * GiB, compute=64.0)
    for name in "abc":
        world.open(name, user=name)
    world.submit("a/1", "a", 6 * GiB, 0)
    world.send(ev.CapacityChanged(at=world.now, capacity=4 * GiB))
    assert world.core.book.deficit
    assert world.running("a/1"), "who runs is not stopped for it"
    world.submit("b/1", "b", 0, 0)
    world.cell("c")
    world.run(1.0)
    assert world.core.jobs[JobId("b/1")].state is JobState.QUEUED, "not even what asks for nothing"
    assert world.core.sessions[SessionId("c")].plain_job is not None
    world.cell_ends("c")
    world.send(ev.CapacityChanged(at=world.now, capacity=7 * GiB))
    world.run(1.0)
    assert world.running("b/1")
    assert not world.core.book.deficit


def test_sixteen_plain_kernels_never_wait_for_memory() -> None:
    """Default needs on a small device: a deficit, no refusal, nobody queued; declared jobs wait for it."""
    world = World(capacity=1 * GiB, compute=64.0)
    for n in range(16):
        world.open(f"s{n}", user=f"u{n}")
        world.cell(f"s{n}")
    world.run(1.0)
    assert all(s.plain_job is not None for s in world.core.sessions.values())
    assert world.core.book.deficit
    world.open("declared")
    world.submit("declared/1", "declared", 0, GiB // 4)
    assert not world.running("declared/1")
    for n in range(16):
        world.cell_ends(f"s{n}")
        world.send(ev.Released(at=world.now, session=SessionId(f"s{n}"), persistent=0))
    assert world.running("declared/1")


def test_release_gives_back_what_is_declared_and_not_used() -> None:
    """Between cells only: a running job's P is its own."""
    world = World(capacity=10 * GiB)
    world.open("a")
    world.submit("a/1", "a", 6 * GiB, 0)
    a = world.core.sessions[SessionId("a")]
    world.send(ev.Released(at=world.now, session=a.id, persistent=0))
    assert a.charged == 6 * GiB
    world.end("a/1", persistent=2 * GiB)
    world.open("b", user="bob")
    world.submit("b/1", "b", 7 * GiB, 0)
    assert not world.running("b/1")
    world.send(ev.Released(at=world.now, session=a.id))
    assert a.charged == 2 * GiB
    assert world.running("b/1")


# --- a broker that came back --------------------------------------------------------------------------------------


def orphans(world: World, *names: str, persistent: int = 0) -> None:
    from tests_core_world import Kernel

    for name in names:
        world.send(
            ev.SessionOpened(
                at=world.now, session=SessionId(name), user=UserId(name), persistent=persistent, orphaned=True,
            )
        )  # fmt: skip
        world.kernels[name] = Kernel(2.0)


def confirm(world: World, job: str, ephemeral: int, group: int, *, running: bool = True) -> None:
    session = SessionId(job.split("/", maxsplit=1)[0])
    if world.core.sessions[session].presence is Presence.ORPHANED:
        world.send(ev.SessionReady(at=world.now, session=session, bare=False, context=0))
    if running:
        world.kernels[session].running.add(job)
    world.send(
        ev.JobConfirmed(
            at=world.now, job=JobId(job), session=session, persistent=GiB, ephemeral=ephemeral, group=group, running=running,
        )
    )  # fmt: skip


def test_lane_mates_meet_again_after_a_restart() -> None:
    """One ran, the others waited at a boundary: the same lane, as large as before whoever confirms last, one occupant."""
    world = World(capacity=20 * GiB)
    orphans(world, "a", "b", "c", "d")
    confirm(world, "a/1", 6 * GiB, group=7)
    confirm(world, "b/1", 8 * GiB, group=7, running=False)
    confirm(world, "c/1", 2 * GiB, group=7, running=False)
    confirm(world, "d/1", 3 * GiB, group=9)
    assert sorted(lane.size for lane in world.core.book.table.lanes.values()) == [3 * GiB, 8 * GiB]
    assert occupant(world) == "a/1"
    assert set(world.core.book.table.lanes[LaneId(1)].members) == {"a/1", "b/1", "c/1"}
    world.end("a/1")
    assert world.running("b/1") or world.running("c/1")


@pytest.mark.parametrize("running", [True, False])
def test_what_was_seen_at_work_before_it_was_confirmed_is_not_counted_twice(
    *, running: bool
) -> None:
    """A command whose starter comes back a moment later: its work has a lane of its own by then."""
    world = World(capacity=10 * GiB)
    orphans(world, "a")
    a = SessionId("a")
    world.send(ev.SessionReady(at=world.now, session=a, bare=True, context=0))
    for n in range(3):
        world.send(ev.Sampled(at=float(n), used={a: Usage(float(n), float(n))}))
    assert [job.plain for job in world.core.jobs.values()] == [True]
    world.now = 2.0
    confirm(world, "a/1", 0, group=1, running=running)
    assert list(world.core.jobs) == ["a/1"]
    assert len(world.core.book.table.lanes) == 1
    assert world.core.sessions[a].charged == GiB


def test_two_that_claim_to_run_in_one_lane_get_one_each() -> None:
    """Whatever clients say: a lane has one occupant. The sum may be a deficit, and is known as one."""
    world = World(capacity=10 * GiB)
    orphans(world, "a", "b")
    confirm(world, "a/1", 6 * GiB, group=7)
    confirm(world, "b/1", 6 * GiB, group=7)
    assert len(world.core.book.table.lanes) == 2
    assert world.core.book.deficit


def test_during_the_grace_nobody_is_paused_and_nothing_is_admitted() -> None:
    """Five seconds to confirm; what the ledger says is charged from the start."""
    world = World(capacity=10 * GiB)
    orphans(world, "a", "b", persistent=4 * GiB)
    assert world.core.book.table.persistent == 8 * GiB
    confirm(world, "a/1", 0, group=1)
    confirm(world, "b/1", 0, group=2)
    world.open("new", user="new")
    world.submit("new/1", "new", 0, GiB)
    world.run(4.9)
    assert not world.running("new/1")
    assert not any(isinstance(i, do.Pause) for i in world.log)
    world.run(1.0)
    assert world.core.jobs[JobId("new/1")].granted is not None
    assert any(isinstance(i, do.Pause) for i in world.log), "three wide ones take turns again"


def test_the_grace_is_over_when_everybody_has_said_what_they_hold() -> None:
    """And not before: while one is missing, the same word changes nothing."""
    world = World(capacity=10 * GiB)
    orphans(world, "a", "b")
    world.open("new", user="new")
    world.submit("new/1", "new", 0, GiB)
    confirm(world, "a/1", 0, group=1)
    world.send(ev.AllBack(at=world.now))
    assert world.core.jobs[JobId("new/1")].state is JobState.QUEUED
    confirm(world, "b/1", 0, group=2)
    world.send(ev.AllBack(at=world.now))
    assert world.core.jobs[JobId("new/1")].state is JobState.ADMITTED
    world.run(1.0)
    assert any(isinstance(i, do.Pause) for i in world.log)
    world.send(ev.AllBack(at=world.now))  # once more is as good as once


def test_a_job_confirmed_at_its_boundary_goes_on_when_it_is_due() -> None:
    """It waits inside our client and gets its grant like any other."""
    world = World(capacity=10 * GiB)
    orphans(world, "a")
    confirm(world, "a/1", GiB, group=1, running=False)
    assert world.running("a/1")


# --- losses -------------------------------------------------------------------------------------------------------


def test_a_lost_device_resumes_everybody_and_admits_nobody() -> None:
    """Until it is back; then all goes on."""
    world = World(capacity=10 * GiB)
    for name in "ab":
        world.open(name, user=name, demand=2.0)
        world.cell(name)
    world.run(1.0)
    assert any(kernel.paused for kernel in world.kernels.values())
    world.send(ev.DeviceLost(at=world.now, lost=True))
    assert not any(kernel.paused for kernel in world.kernels.values())
    world.open("c")
    world.submit("c/1", "c", 0, GiB)
    world.run(2.0)
    assert not world.running("c/1")
    assert not any(kernel.paused for kernel in world.kernels.values())
    world.send(ev.DeviceLost(at=world.now, lost=False))
    world.run(1.0)
    assert world.core.jobs[JobId("c/1")].granted is not None


def test_a_closed_session_leaves_nothing_and_its_neighbours_move_up() -> None:
    """Its jobs, lane, P, place and pause are gone; who waited for them gets them. Twice is once."""
    world = World(capacity=10 * GiB)
    world.open("a", user="ann")
    world.submit("a/1", "a", 6 * GiB, 4 * GiB)
    world.submit("a/2", "a", 7 * GiB, 0)
    world.open("b", user="bob")
    world.submit("b/1", "b", 8 * GiB, 0)
    world.close("a")
    assert world.dropped == {"a/2"}, "who waited is told, who ran is gone"
    assert world.running("b/1")
    assert world.core.book.table.used == 8 * GiB
    world.send(ev.SessionClosed(at=world.now, session=SessionId("a")))
    assert set(world.core.sessions) == {"b"}


def test_a_paused_session_that_closes_is_resumed_for_its_children() -> None:
    """Whoever stands still of it is let go on."""
    world = World()
    for name in "ab":
        world.open(name, user=name, demand=2.0)
        world.cell(name)
    world.run(1.0)
    paused = next(name for name, kernel in world.kernels.items() if kernel.paused)
    world.close(paused)
    assert do.Resume(SessionId(paused)) in world.log[-4:]


def test_answers_that_come_late_change_nothing() -> None:
    """A pause that was taken back answers with an old ticket; sessions may be gone by then."""
    world = World()
    for name in "ab":
        world.open(name, user=name, demand=2.0)
        world.cell(name)
    world.run(1.0)
    on = next(s for s in world.core.sessions.values() if s.phase is Phase.ON)
    for late in (on.ticket, on.ticket - 1, 99):
        world.send(ev.Paused(at=world.now, session=on.id, ticket=late, status=PauseStatus.PAUSED))
    assert on.phase is Phase.ON
    for gone in (
        ev.Paused(at=world.now, session=SessionId("z"), ticket=1, status=PauseStatus.GONE),
        ev.JobEnded(at=world.now, job=JobId("z/1"), persistent=0),
        ev.JobCancelled(at=world.now, job=JobId("z/1")),
        ev.BoundaryReached(
            at=world.now, job=JobId("z/1"), trimmed=True, persistent=0, interval=0.1
        ),
        ev.Sampled(at=world.now, used={SessionId("z"): Usage(1.0, 1.0)}),
        ev.SessionClosed(at=world.now, session=SessionId("z")),
    ):
        world.send(gone)


@pytest.mark.parametrize(
    "status", [PauseStatus.UNSUPPORTED, PauseStatus.FORBIDDEN, PauseStatus.BROKEN]
)
def test_who_cannot_be_paused_runs_beside_the_others_and_is_not_asked_again(
    status: PauseStatus,
) -> None:
    """A profiler, another's process, a broken context: the others take turns as if it were not there."""
    world = World()
    for name in "ab":
        world.open(name, user=name, demand=2.0)
        world.cell(name)
    world.drain = 1e9
    world.run(1.0)
    pause = next(i for i in world.log if isinstance(i, do.Pause))
    world.drain = 0.0
    world.drains.clear()
    world.send(ev.Paused(at=world.now, session=pause.session, ticket=pause.ticket, status=status))
    session = world.core.sessions[pause.session]
    assert (session.pausable, session.phase, session.stopped) == (False, Phase.ON, None)
    world.run(2.0)
    assert sum(i.session == pause.session for i in world.log if isinstance(i, do.Pause)) == 1


def test_a_drain_that_does_not_end_is_tried_with_longer_limits() -> None:
    """Its submitted work is longer than the limit: twice as long, after a moment; in the end it runs beside the others."""
    world = World()
    for name in "ab":
        world.open(name, user=name, demand=2.0)
        world.cell(name)
    world.drain = 1e9
    world.run(1.0)
    pause = next(i for i in reversed(world.log) if isinstance(i, do.Pause))
    session = world.core.sessions[pause.session]
    limits = [pause.limit]
    while session.pausable:
        world.log.clear()
        ticket = session.ticket
        world.send(
            ev.Paused(at=world.now, session=session.id, ticket=ticket, status=PauseStatus.BUSY)
        )
        assert not [i for i in world.log if isinstance(i, do.Pause)], "not at once"
        world.run(1.5)
        limits += [i.limit for i in world.log if isinstance(i, do.Pause)]
    assert limits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0][: len(limits)]
    assert len(limits) > 4
    assert (session.phase, session.stopped, session.pause_limit) == (Phase.ON, None, 0.0)
    world.cell_ends(session.id)
    assert session.pausable, "with its work that is over"


# --- I10 --------------------------------------------------------------------------------------------------------


class Recorder(Scheduler):
    """A scheduler that writes down what it was told and what it said."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tape: list[tuple[ev.Event, list[do.Instruction]]] = []

    def handle(self, event: ev.Event) -> list[do.Instruction]:
        out = super().handle(event)
        self.tape.append((event, [*out]))
        return out


@pytest.mark.parametrize("seed", range(4))
def test_the_same_events_give_the_same_instructions(seed: int) -> None:
    """I10: a recorded day of everything replays in a fresh scheduler, instruction by instruction."""
    dice = random.Random(seed)
    world = World(capacity=8 * GiB, lane_turn=0.3)
    recorder = Recorder(world.core.config)
    world.core = recorder
    world.drain = 0.004
    live: list[str] = []
    for n in range(150):
        what = dice.choice(
            ["open", "submit", "submit", "cell", "end", "run", "run", "close", "policy", "capacity"]
        )
        jobs = [j for j in recorder.jobs.values() if not j.plain]
        if what == "open" or not live:
            live.append(f"s{n}")
            world.open(
                live[-1],
                user=dice.choice("abc"),
                demand=dice.choice([0.3, 1.0, 2.0]),
                interval=dice.choice([None, 0.01]),
            )
        elif what == "submit":
            name = dice.choice(live)
            world.submit(f"{name}/{n}", name, dice.randint(0, 3) * GiB, dice.randint(0, 5) * GiB)
        elif what == "cell":
            world.cell(dice.choice(live))
        elif what == "end" and jobs:
            world.end(dice.choice(jobs).id, persistent=dice.randint(0, 2) * GiB)
        elif what == "close" and len(live) > 3:
            world.close(live.pop(dice.randrange(len(live))))
        elif what == "policy":
            world.send(ev.PolicyChanged(at=world.now, policy=dice.choice(["fair", "fifo"])))
        elif what == "capacity":
            world.send(ev.CapacityChanged(at=world.now, capacity=dice.randint(4, 8) * GiB))
        world.run(0.2)
    fresh = Scheduler(world.core.config)
    assert len(recorder.tape) > 300, "a day worth recording"
    for event, said in recorder.tape:
        assert fresh.handle(event) == said


def test_a_job_cannot_be_granted_twice() -> None:
    """A grant is a promise about one job: afterwards it runs until its boundary or end."""
    world = lane_mates()
    world.run(3.0)
    for job in ("a/1", "b/1"):
        grants = sum(isinstance(i, do.Grant) and i.job == job for i in world.log)
        assert grants == world.core.jobs[JobId(job)].turns
        assert world.core.jobs[JobId(job)].state in {JobState.RUNNING, JobState.ADMITTED}
