"""Turns on a virtual host: fair, weighted, work-conserving, free of charge when alone."""

from __future__ import annotations

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core import instructions as do
from gpushare_kernel.core.values import MiB, SessionId


def used(world: World, *names: str) -> list[float]:
    return [world.kernels[name].device_time for name in names]


def test_alone_nothing_is_ever_paused() -> None:
    """Alone on a device: no pause, no cost."""
    world = World()
    world.open("a", demand=2.0)
    world.cell("a")
    world.run(20)
    assert used(world, "a") == [pytest.approx(40)]
    assert not any(isinstance(i, do.Pause | do.Ask) for i in world.log)


def test_all_that_fit_run_together() -> None:
    """Two one-thread kernels on two cores never wait after their demand is known."""
    world = World()
    for name in "ab":
        world.open(name, user=name)
        world.cell(name)
    world.run(10)
    assert sum(used(world, "a", "b")) >= 19.8


def test_three_kernels_of_one_user_against_one_of_another_is_half_and_half() -> None:
    """I6: max-min by user, then by session."""
    world = World()
    for name in ("a1", "a2", "a3"):
        world.open(name, user="ann")
        world.cell(name)
    world.open("b", user="bob")
    world.cell("b")
    world.run(20)
    a, b = sum(used(world, "a1", "a2", "a3")), used(world, "b")[0]
    assert a + b >= 0.98 * 40
    assert abs(a / (a + b) - 0.5) < 0.01
    assert max(used(world, "a1", "a2", "a3")) - min(used(world, "a1", "a2", "a3")) < 0.5


def test_what_one_cannot_use_goes_to_others() -> None:
    """I6: a user with one thread on four cores leaves three to the other."""
    world = World(compute=4.0)
    world.open("b", user="bob")
    world.cell("b")
    for n in range(6):
        world.open(f"a{n}", user="ann")
        world.cell(f"a{n}")
    world.run(20)
    assert used(world, "b")[0] >= 19.0
    assert sum(used(world, *(f"a{n}" for n in range(6)))) >= 56.0


@pytest.mark.parametrize(
    ("weights", "share"), [((3.0, 1.0), 0.75), ((1.0, 1.0), 0.5), ((0.3, 0.7), 0.3)]
)
def test_weights_divide_the_own_share(weights: tuple[float, float], share: float) -> None:
    """Two kernels of one user that use every core divide by weight."""
    world = World()
    for name, weight in zip("ab", weights, strict=True):
        world.open(name, demand=2.0, weight=weight)
        world.cell(name)
    world.run(30)
    a, b = used(world, "a", "b")
    assert a + b >= 0.97 * 60
    assert abs(a / (a + b) - share) < 0.01


def test_a_late_newcomer_gets_a_turn_at_once_and_no_back_pay() -> None:
    """Credit is bounded: who slept starts one turn ahead, not an hour."""
    world = World()
    for name in "ab":
        world.open(name, user=name, demand=2.0)
    world.cell("a")
    world.run(30)
    before = world.now
    world.cell("b")
    world.run(0.5)
    assert world.kernels["b"].device_time > 0.1
    world.run(9.5)
    b = used(world, "b")[0]
    assert abs(b / (2 * (world.now - before)) - 0.5) < 0.03


def test_an_idle_cell_costs_nobody_anything() -> None:
    """A cell that sleeps has next to no demand: it runs beside a full device."""
    world = World()
    world.open("a", demand=2.0)
    world.open("b", demand=0.001, user="bob")
    world.cell("a")
    world.submit("b/1", "b")
    world.run(10)
    assert used(world, "a")[0] >= 19.5
    assert not world.kernels["b"].paused


def test_half_empty_cores_are_filled() -> None:
    """A two-thread and a one-thread kernel on two cores: equal use, and no core idles."""
    world = World()
    world.open("a", demand=2.0, user="ann")
    world.open("b", demand=1.0, user="bob")
    world.cell("a")
    world.cell("b")
    world.run(20)
    a, b = used(world, "a", "b")
    assert a + b >= 0.9 * 40
    assert min(a, b) >= 0.42 * (a + b)


def test_a_cooperative_job_leaves_at_its_boundary_and_is_not_paused() -> None:
    """Short boundaries: the word is set, no signal is sent."""
    world = World()
    for name in "ab":
        world.open(name, demand=2.0, interval=0.01, user=name)
        world.submit(f"{name}/1", name)
    world.run(10)
    assert not any(isinstance(i, do.Pause) for i in world.log)
    a, b = used(world, "a", "b")
    assert abs(a - b) <= 0.5
    assert a + b >= 19


def test_a_job_that_misses_its_boundary_is_paused_from_outside() -> None:
    """No neighbour waits longer than the boundary grace for a job that does not come."""
    world = World()
    for name in "ab":
        world.open(name, demand=2.0, interval=0.01, user=name)
        world.submit(f"{name}/1", name)
    world.run(1)
    world.kernels["a"].interval = None
    world.run(10)
    assert any(isinstance(i, do.Pause) and i.session == "a" for i in world.log)
    assert world.kernels["b"].device_time >= 9


def test_a_drain_holds_up_the_next_turn_and_is_charged() -> None:
    """On a device whose pauses take 40 ms nobody is granted before the former one stands still."""
    world = World(compute=1.0)
    world.drain = 0.04
    for name in "ab":
        world.open(name, user=name)
        world.cell(name)
    world.run(20)
    a, b = used(world, "a", "b")
    assert abs(a - b) < 0.3
    assert a + b >= 19.9


def test_an_exempt_session_is_resumed_at_once_and_left_alone() -> None:
    """Before a signal or a shutdown the session is resumed, and is not paused until its time is over."""
    world = World()
    for name in "ab":
        world.open(name, demand=2.0, user=name)
        world.cell(name)
    world.run(1)
    stopped = next(name for name in "ab" if world.kernels[name].paused)
    world.send(ev.Exempted(at=world.now, session=SessionId(stopped), until=world.now + 1))
    # A second signal, or a guardian that is replaced, takes nothing of it away.
    world.send(ev.Exempted(at=world.now, session=SessionId(stopped), until=world.now + 0.2))
    assert not world.kernels[stopped].paused
    for _ in range(20):
        world.run(0.045)
        assert not world.kernels[stopped].paused
    world.run(1.5)
    assert any(isinstance(i, do.Pause) and i.session == stopped for i in world.log[-60:])


def test_who_is_continued_by_somebody_else_is_stopped_again() -> None:
    """A paused session that uses the device is seen, charged and paused again."""
    world = World()
    for name in "ab":
        world.open(name, demand=2.0, user=name)
        world.cell(name)
    world.run(1)
    for _ in range(30):
        world.run(0.05)
        for kernel in world.kernels.values():
            if kernel is world.kernels["a"]:
                kernel.paused = False
    a, b = used(world, "a", "b")
    assert a < 1.3 * b


def test_fifo_keeps_the_first_until_it_ends() -> None:
    """FIFO: one after the other."""
    world = World(policy="fifo")
    for name in "abc":
        world.open(name, demand=2.0, user=name)
        world.submit(f"{name}/1", name)
    world.run(3)
    assert [world.running(f"{n}/1") for n in "abc"] == [True, False, False]
    world.end("a/1")
    world.run(0.1)
    assert [world.running(f"{n}/1") for n in "bc"] == [True, False]


def test_the_policy_can_be_switched_while_it_runs() -> None:
    """From FIFO to FAIR: the others get their share from the next turn on."""
    world = World(policy="fifo")
    for name in "ab":
        world.open(name, demand=2.0, user=name)
        world.submit(f"{name}/1", name)
    world.run(2)
    world.send(ev.PolicyChanged(at=world.now, policy="fair"))
    start = used(world, "a", "b")
    world.run(4)
    a, b = (now - then for now, then in zip(used(world, "a", "b"), start, strict=True))
    assert abs(a - b) <= 0.5


def test_people_are_told_that_they_share_once() -> None:
    """After 20 s of sharing a line is due, once a cell."""
    world = World()
    for name in "abc":
        world.open(name, demand=2.0, user=name)
        world.cell(name)
    world.run(60)
    told = [i for i in world.log if isinstance(i, do.Slow) and i.session == "a"]
    assert len(told) == 1
    assert told[0].people == 2
    assert told[0].fraction == pytest.approx(1 / 3, abs=0.05)


def test_who_was_told_of_a_pause_is_told_no_speed() -> None:
    """SRTF let the other one go first: how long it stood still is all there is to say, and 1/26 speed is not true any more."""
    world = World(compute=1.0, policy="srtf")
    for name, time in (("a", 100.0), ("b", 25.0)):
        world.open(name)
        world.submit(f"{name}/1", name, 1, time=time)
        world.run(1.0)
    world.run(24.0)
    world.end("b/1")
    world.run(30.0)
    (told,) = [i for i in world.log if isinstance(i, do.Slow) and i.session == "a"]
    assert told.paused == pytest.approx(25.0, abs=0.5)


def test_a_background_thread_becomes_a_job_and_falls_quiet() -> None:
    """What no cell announced takes turns too, and stops being a job when it stops working."""
    world = World()
    kernel = world.open("a", demand=1.0)
    world.send(ev.Sampled(at=world.now, used={SessionId("a"): world.usage("a")}))
    kernel.plain = True
    world.run(1)
    world.send(ev.Sampled(at=world.now, used={SessionId("a"): world.usage("a")}))
    assert not world.core.sessions[SessionId("a")].jobs, "its interpreter starts: nobody's work"
    world.cell("a")
    world.cell_ends("a")
    kernel.plain = True
    world.run(1)
    world.send(ev.Sampled(at=world.now, used={SessionId("a"): world.usage("a")}))
    assert world.core.sessions[SessionId("a")].plain_job is not None
    kernel.plain = False
    world.run(5)
    assert world.core.sessions[SessionId("a")].plain_job is None


def test_a_restart_ends_jobs_and_keeps_the_account() -> None:
    """A kernel restart keeps id, user and charge of time; it frees P and E and resumes."""
    world = World()
    world.open("a", demand=2.0)
    world.submit("a/1", "a", 100 * MiB, 100 * MiB)
    world.run(5)
    world.kernels["a"].running.clear()
    world.send(ev.SessionRestarted(at=world.now, session=SessionId("a")))
    session = world.core.sessions[SessionId("a")]
    assert not session.jobs
    assert session.charged == 0
    assert world.core.book.table.used == 0
    assert session.user.device_time > 4


def test_a_lane_inside_a_plain_cell_replaces_the_plain_job_and_is_followed_by_it() -> None:
    """A cell that declares part of its work is one job at a time, never counted twice."""
    world = World()
    world.open("a")
    world.cell("a")
    world.run(0.2)
    session = world.core.sessions[SessionId("a")]
    assert session.plain_job is not None
    world.submit("a/1", "a", 0, 10 * MiB)
    assert [*session.jobs] == ["a/1"]
    world.end("a/1")
    world.run(0.3)
    assert session.plain_job is not None
    world.cell_ends("a")
    assert not session.jobs
    assert world.core.book.table.in_lanes == 0


def test_a_session_that_waits_for_its_lane_is_not_taken_for_a_background_thread() -> None:
    """What it used before it yielded is its declared job's."""
    world = World()
    for name in "ab":
        world.open(name, user=name, interval=0.02)
        world.submit(f"{name}/1", name, 0, 6 * 1024 * MiB)
    world.run(0.7)
    world.kernels["b"].device_time += 0.5  # on its way into the boundary, not sampled yet
    world.send(ev.Sampled(at=world.now, used={SessionId(n): world.usage(n) for n in "ab"}))
    world.run(0.7)
    world.kernels["a"].device_time += 0.5
    world.send(ev.Sampled(at=world.now, used={SessionId(n): world.usage(n) for n in "ab"}))
    assert {job for s in world.core.sessions.values() for job in s.jobs} == {"a/1", "b/1"}
