"""How long a job still waits: the sum where one runs after the other, an estimate where they share, None where nobody knows."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.values import GiB, JobId, Wait, WaitReason


def host(policy: str, **settings: object) -> World:
    return World(capacity=10 * GiB, compute=1.0, policy=policy, **settings)


def reason(world: World, job: str) -> Wait:
    return why(world.core, world.core.jobs[JobId(job)])


def submit(world: World, name: str, time: float | None, size: int = GiB, **more: object) -> None:
    world.open(name, user=name, **{k: more.pop(k) for k in ("interval",) if k in more})
    world.submit(f"{name}/1", name, 0, size, time=time, **more)


def run_out(world: World, until: str, times: dict[str, float]) -> float:
    """Let everybody run for its time; return when `until` runs."""
    while not world.running(f"{until}/1"):
        assert world.now < 1000, f"{until} never ran"
        world.run(0.02)
        for name, time in times.items():
            job = world.core.jobs.get(JobId(f"{name}/1"))
            if job is not None and job.served(world.core.sessions[job.session], world.now) >= time:
                world.end(f"{name}/1")
    return world.now


def test_fifo_is_the_sum_of_those_before() -> None:
    """What the first has had already is not counted again."""
    world = host("fifo")
    for name, time in (("a", 10.0), ("b", 5.0), ("c", 7.0), ("d", 1.0)):
        submit(world, name, time)
    assert [(w.eta, w.exact) for w in (reason(world, f"{n}/1") for n in "bcd")] == [
        (10.0, True), (15.0, True), (22.0, True),
    ]  # fmt: skip
    world.run(4.0)
    world.sample()
    assert reason(world, "d/1").eta == pytest.approx(18.0, abs=0.2)


@pytest.mark.parametrize("policy", ["fifo", "srtf"])
@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
@settings(max_examples=12, deadline=None)
def test_the_sum_is_when_it_runs(policy: str, seconds: list[int]) -> None:
    """One after the other, whoever comes first: read at the beginning, true in the end."""
    world = host(policy)
    times = {f"s{n}": float(s) for n, s in enumerate(seconds)}
    for name, time in times.items():
        submit(world, name, time, interval=0.01)
    world.run(0.01)
    waits = {name: reason(world, f"{name}/1") for name in times if not world.running(f"{name}/1")}
    assert len(waits) == len(times) - 1
    last, wait = max(waits.items(), key=lambda entry: entry[1].eta or 0.0)
    assert wait.exact
    assert wait.eta is not None
    assert run_out(world, last, times) == pytest.approx(wait.eta, abs=0.1 * len(times) + 0.1)


def test_under_srtf_those_behind_count_where_they_hold_the_memory() -> None:
    """A short job that nobody makes room for waits until the long ones have ended that have its memory."""
    world = host("srtf")
    submit(world, "long", 50.0, 6 * GiB)
    submit(world, "short", 5.0, 6 * GiB)
    assert reason(world, "short/1").reason is WaitReason.MEMORY
    assert reason(world, "short/1").eta == pytest.approx(50.0)
    submit(world, "shorter", 2.0, 6 * GiB)
    assert reason(world, "short/1").eta == pytest.approx(52.0)
    assert reason(world, "shorter/1").eta == pytest.approx(50.0)


def test_memory_that_idle_notebooks_keep_has_no_end() -> None:
    """Nobody knows when they give it back, however short the others are."""
    world = host("fifo")
    world.open("idle", user="bob")
    world.submit("idle/1", "idle", 8 * GiB, 0)
    world.end("idle/1", persistent=8 * GiB)
    submit(world, "a", 5.0)
    submit(world, "b", 5.0, 4 * GiB)
    assert (reason(world, "b/1").eta, reason(world, "b/1").exact) == (None, False)


def test_what_was_declared_and_never_used_comes_back_too() -> None:
    """At the end of its session's last job."""
    world = host("fair")
    world.open("a", user="a")
    world.submit("a/1", "a", 6 * GiB, 0, time=10.0)
    submit(world, "b", 1.0, 8 * GiB)
    assert reason(world, "b/1").eta == pytest.approx(10.0)


def test_shared_equally_the_shortest_ends_first() -> None:
    """Three of 1, 2 and 6 s: the first has ended after 3 s, the second after 5, the third after 9."""
    world = host("fair")
    for name, time in (("a", 6.0), ("b", 1.0), ("c", 2.0)):
        submit(world, name, time, 3 * GiB)
    for name, size, eta in (("w", 4 * GiB, 3.0), ("x", 3 * GiB, 5.0), ("y", 3 * GiB, 9.0)):
        submit(world, name, 1.0, size)
        wait = reason(world, f"{name}/1")
        assert (wait.reason, wait.exact) == (WaitReason.MEMORY, False)
        assert wait.eta == pytest.approx(eta)


@pytest.mark.parametrize("policy", ["fifo", "srtf", "fair"])
def test_one_unknown_time_in_the_way_and_nothing_is_known(policy: str) -> None:
    """Neither of those without a time nor of those who overran theirs; who comes first is not in the way of itself."""
    world = host(policy)
    submit(world, "a", None, 8 * GiB)
    submit(world, "b", 5.0, 8 * GiB)
    assert reason(world, "b/1").eta is None
    world = host(policy)
    submit(world, "a", 1.0, 8 * GiB)
    submit(world, "b", 5.0, 8 * GiB)
    assert reason(world, "b/1").eta == pytest.approx(1.0)
    world.run(2.0)
    assert reason(world, "b/1").eta is None


def test_lane_mates_wait_for_lane_turns() -> None:
    """Each has the lane for its turn: what is left of this one, and one for each before."""
    world = host("fair", lane_turn=2.0)
    for name in "abc":
        submit(world, name, 60.0, 6 * GiB, interval=0.01)
    waits = [reason(world, f"{n}/1") for n in "bc"]
    assert [w.reason for w in waits] == [WaitReason.OCCUPANCY] * 2
    assert [w.eta for w in waits] == [pytest.approx(2.0), pytest.approx(4.0)]


def test_a_turn_is_short() -> None:
    """Where turns go round, it is theirs who run."""
    world = host("fair", turn=0.5)
    for name in "ab":
        submit(world, name, None)
    waits = [w for n in "ab" if (w := reason(world, f"{n}/1")).reason is WaitReason.TURN]
    assert (waits[0].eta, waits[0].exact) == (0.5, False)
