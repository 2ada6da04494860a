"""Who goes first under each policy, for the memory and for turns, and what changes when another is chosen."""

from __future__ import annotations

import pytest
from tests_core_world import World  # type: ignore[import-not-found]

from gpushare_kernel.core import events as ev
from gpushare_kernel.core.policies import PATIENT
from gpushare_kernel.core.reasons import why
from gpushare_kernel.core.values import GiB, JobState, WaitReason


def waiting(world: World) -> list[str]:
    return [str(job.id) for job in world.core.book.queue]


def full(policy: str, **settings: object) -> World:
    """One job of ann has all the memory; four wait, each with its size, time and user."""
    world = World(capacity=10 * GiB, compute=1.0, policy=policy, **settings)
    world.open("hog", user="ann", interval=0.05)
    world.submit("hog/1", "hog", 0, 10 * GiB, time=1.0)
    world.run(0.5)
    for name, user, size, time in (
        ("a", "ann", 8, 500.0),
        ("b", "bob", 9, 30.0),
        ("c", "cem", 2, None),
        ("d", "bob", 4, 200.0),
    ):
        world.open(name, user=user, interval=0.05)
        world.submit(f"{name}/1", name, size * GiB, 0, time=time)
    return world


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("fifo", ["a/1", "b/1", "c/1", "d/1"]),
        ("srtf", ["b/1", "c/1", "d/1", "a/1"]),
        ("pack", ["b/1", "a/1", "d/1", "c/1"]),
        ("fair", ["a/1", "b/1", "c/1", "d/1"]),
    ],
)
def test_the_memory_queue_follows_the_policy(policy: str, order: list[str]) -> None:
    """Arrival, least remaining, largest, or the user who had least; places are counted in that order."""
    world = full(policy)
    assert waiting(world) == order
    jobs = [world.core.jobs[name] for name in order]  # type: ignore[index]
    if policy != "fifo":
        assert [why(world.core, job).ahead for job in jobs] == [0, 1, 2, 3]


def test_by_arrival_it_is_as_salus_ran_it() -> None:
    """Whatever the policy: in the order of arrival, and whatever fits passes."""
    world = full("srtf", by_policy=False)
    assert waiting(world) == ["a/1", "b/1", "c/1", "d/1"]
    world.end("hog/1")
    assert [name for name in "abcd" if world.core.jobs[f"{name}/1"].lane is not None] == ["a", "c"]  # type: ignore[index]


@pytest.mark.parametrize("policy", ["fifo", "srtf", "pack", "fair"])
def test_a_job_beside_another_of_its_session_comes_first(policy: str) -> None:
    """S6: the other may hold its lane until this one has ended (threads of one kernel); then it would wait for itself."""
    world = World(capacity=10 * GiB, compute=1.0, policy=policy)
    world.open("hog", user="ann")  # it meets no boundary: its lane is its own
    world.submit("hog/1", "hog", 0, 10 * GiB, time=1e6)
    world.run(0.5)
    world.open("a", user="bob", interval=0.05)
    world.submit("a/1", "a", 0, 9 * GiB, time=1.0)
    world.submit("hog/2", "hog", 0, GiB, time=1e6)
    assert waiting(world) == ["hog/2", "a/1"]
    for other in ("pack", "srtf", "fifo", "fair", policy):
        world.send(ev.PolicyChanged(at=world.now, policy=other))
        assert waiting(world) == ["hog/2", "a/1"], other


def test_fair_lets_in_who_had_least() -> None:
    """Who was given much of the device in competition stands behind who was not."""
    world = World(capacity=10 * GiB, compute=1.0, policy="fair")
    for name in "ab":
        world.open(name, user=name, interval=0.05)
        world.submit(f"{name}/1", name, 0, 5 * GiB)
    world.run(1)
    world.open("c", user="c", interval=0.05)
    world.run(9)
    for name in "ac":
        world.open(f"{name}2", user=name, interval=0.05)
        world.submit(f"{name}2/1", f"{name}2", 5 * GiB, GiB)
    assert waiting(world) == ["c2/1", "a2/1"]


def test_who_has_waited_an_hour_is_passed_by_nobody_who_came_later() -> None:
    """FAIR: whoever used more than all newcomers still has its memory in the end."""
    world = full("fair")
    world.core.sessions["a"].user.vtime = 1e6  # type: ignore[index]
    world.core.book.queue.rerank(world.core.sessions["a"].user)  # type: ignore[index]
    assert waiting(world)[-1] == "a/1"
    world.run(PATIENT + 1, step=1.0)
    world.open("new", user="new", interval=0.05)
    world.submit("new/1", "new", 2 * GiB, 0)
    assert waiting(world)[0] == "a/1"
    assert waiting(world)[-1] == "new/1"


def test_another_policy_orders_who_waits_anew() -> None:
    """Live, for memory and turns; and back."""
    world = full("fifo")
    world.send(ev.PolicyChanged(at=world.now, policy="srtf"))
    assert waiting(world) == ["b/1", "c/1", "d/1", "a/1"]
    world.send(ev.PolicyChanged(at=world.now, policy="PACK"))
    assert waiting(world) == ["b/1", "a/1", "d/1", "c/1"]


def test_fifo_runs_one_at_a_time() -> None:
    """As published: the next has its memory when the one before has ended, and is told that it waits for its turn."""
    world = World(capacity=10 * GiB, compute=4.0, policy="fifo")
    for name in "abc":
        world.open(name, user=name, demand=1.0)
        world.submit(f"{name}/1", name, 0, GiB)
    world.run(1)
    assert [world.running(f"{name}/1") for name in "abc"] == [True, False, False]
    wait = why(world.core, world.core.jobs["c/1"])  # type: ignore[index]
    assert (wait.reason, wait.ahead) == (WaitReason.TURN, 2)
    world.end("a/1")
    world.run(0.1)
    assert world.running("b/1")


def test_pack_has_all_in_the_memory_and_changes_turns_rarely() -> None:
    """As many run as there are cores, the others in turn, a second each; nobody's share is steered."""
    world = World(capacity=10 * GiB, compute=2.0, policy="pack")
    for name in "abcdef":
        world.open(name, user="ann", demand=1.0)
        world.submit(f"{name}/1", name, 0, GiB)
    assert not len(world.core.book.queue)
    world.run(31)
    got = [kernel.device_time for kernel in world.kernels.values()]
    assert sum(got) >= 0.97 * 2 * 31  # each was measured alone at first
    assert min(got) >= 0.7 * sum(got) / 6
    assert sum(session.turns for session in world.core.sessions.values()) <= 80


def test_srtf_keeps_memory_for_who_comes_next() -> None:
    """Nothing can take it back: beside one that fills the cores only somebody better comes in, who runs at once."""
    world = World(capacity=10 * GiB, compute=1.0, policy="srtf")
    for name, time in (("a", 100.0), ("b", 200.0), ("c", 300.0), ("d", 5.0)):
        world.open(name, user=name, interval=0.01)
        world.submit(f"{name}/1", name, 0, GiB, time=time)
        world.run(1)
    assert waiting(world) == ["b/1", "c/1"]
    assert world.running("d/1")
    world.end("d/1")
    world.end("a/1")
    world.run(1)
    assert world.running("b/1")
    assert waiting(world) == ["c/1"]


def test_srtf_leaves_no_device_idle_for_memory_that_idle_notebooks_keep() -> None:
    """Who is first waits for what nobody at work will give back: the others go on meanwhile, also beside a cell that does little."""
    world = World(capacity=10 * GiB, compute=1.0, policy="srtf")
    world.open("idle", user="ann", interval=0.01)
    world.submit("idle/1", "idle", 5 * GiB, 0, time=1.0)
    world.run(0.5)
    world.end("idle/1", persistent=5 * GiB)
    world.open("light", user="ann", demand=0.005)
    world.submit("light/1", "light", 0, 0)
    world.run(5)
    for name, size, time in (("first", 6, 1.0), ("next", 2, 50.0)):
        world.open(name, user=name, interval=0.01)
        world.submit(f"{name}/1", name, 0, size * GiB, time=time)
    world.run(0.2)
    assert waiting(world) == ["first/1"]
    assert world.running("next/1")


def test_a_shorter_job_takes_the_turn_at_the_next_boundary() -> None:
    """SRTF: not at the turn's end; the long one goes on when it is over."""
    world = World(capacity=10 * GiB, compute=1.0, policy="srtf", turn=100.0)
    world.open("long", user="ann", interval=0.01)
    world.submit("long/1", "long", 0, GiB, time=3000.0)
    world.run(2)
    world.open("short", user="bob", interval=0.01)
    world.submit("short/1", "short", 0, GiB, time=2.0)
    world.run(0.02)
    assert world.running("short/1")
    assert not world.running("long/1")
    world.run(2)
    world.end("short/1")
    world.run(0.02)
    assert world.running("long/1")


def test_a_longer_job_waits_for_the_shorter_one() -> None:
    """And costs it nothing."""
    world = World(capacity=10 * GiB, compute=1.0, policy="srtf")
    world.open("short", user="ann", interval=0.01)
    world.submit("short/1", "short", 0, GiB, time=60.0)
    world.run(1)
    world.open("long", user="bob", interval=0.01)
    world.submit("long/1", "long", 0, GiB, time=3000.0)
    world.run(10)
    assert world.kernels["long"].device_time == 0.0
    assert world.kernels["short"].device_time >= 10.9


def test_without_times_who_was_served_least_comes_first() -> None:
    """SRTF knows nothing: a newcomer catches up with the old one, then they alternate, rarely."""
    world = World(capacity=10 * GiB, compute=1.0, policy="srtf")
    world.open("old", user="ann", interval=0.01)
    world.submit("old/1", "old", 0, GiB)
    world.run(20)
    world.open("new", user="bob", interval=0.01)
    world.submit("new/1", "new", 0, GiB)
    world.run(19)
    assert world.kernels["new"].device_time > 18.0
    turns = world.core.sessions["old"].turns  # type: ignore[index]
    world.run(40)
    old, new = (world.kernels[name].device_time for name in ("old", "new"))
    assert abs(old - new) < 0.2 * old
    assert world.core.sessions["old"].turns - turns < 20  # type: ignore[index]


def test_equals_do_not_take_the_turn_from_each_other_at_every_event() -> None:
    """Without times whoever runs falls behind at once: it keeps its turn to the end all the same."""
    world = World(capacity=10 * GiB, compute=1.0, policy="srtf")
    for name in "abc":
        world.open(name, user=name, interval=0.001)
        world.submit(f"{name}/1", name, 0, GiB)
    world.run(2)
    turns = sum(session.turns for session in world.core.sessions.values())
    for n in range(100):
        world.open(f"x{n}", user="x")
        world.submit(f"x{n}/1", f"x{n}", 0, GiB, time=1e5)
        world.run(0.05)
    assert sum(session.turns for session in world.core.sessions.values()) - turns <= 50


def test_in_a_shared_lane_the_better_one_goes_first() -> None:
    """SRTF: the occupant gives the lane up at its boundary, and has it back afterwards."""
    world = World(capacity=10 * GiB, compute=1.0, policy="srtf")
    world.open("long", user="ann", interval=0.01)
    world.submit("long/1", "long", 0, 9 * GiB, time=3000.0)
    world.run(1)
    world.open("short", user="bob", interval=0.01)
    world.submit("short/1", "short", 0, 8 * GiB, time=2.0)
    world.run(0.1)
    assert world.running("short/1")
    world.end("short/1")
    world.run(0.1)
    assert world.running("long/1")
    assert world.core.jobs["long/1"].state is JobState.RUNNING  # type: ignore[index]


@pytest.mark.parametrize("time", [3000.0, None])
def test_in_a_shared_lane_a_better_one_is_not_kept_waiting_by_a_worse_one(
    time: float | None,
) -> None:
    """SRTF: it asks for the lane as it comes, also where the lane is to be looked at later for another one's sake."""
    world = World(capacity=10 * GiB, compute=1.0, policy="srtf", can_park=True, lane_turn=5.0)
    for name, needs in (("long", time), ("worse", 4000.0)):
        world.open(name, user=name, interval=0.01)
        world.submit(f"{name}/1", name, 0, 9 * GiB, time=needs)
        world.run(1)
    world.open("short", user="short", interval=0.01)
    world.submit("short/1", "short", 0, 8 * GiB, time=2.0)
    assert len(world.core.book.table.lanes) == 1
    world.run(0.1)
    assert world.running("short/1")


def test_patience_is_over_with_its_policy_for_who_was_held_back_meanwhile_too() -> None:
    """It waits beside the queue when the policy changes, and comes into it where the new one puts it."""
    world = World(capacity=10 * GiB, compute=1.0, policy="fair")
    for name, size, time in (("hog", 10, 1e5), ("long", 9, 1e6)):
        world.open(name, user=name, interval=0.05)
        world.submit(f"{name}/1", name, 0 if name == "hog" else size * GiB, size * GiB if name == "hog" else 0, time=time)  # fmt: skip
    world.run(PATIENT + 1, step=1.0)
    assert world.core.jobs["long/1"].promoted  # type: ignore[index]
    world.send(ev.Draining(at=world.now, on=True))
    assert waiting(world) == []
    world.send(ev.PolicyChanged(at=world.now, policy="srtf"))
    world.send(ev.Draining(at=world.now, on=False))
    world.open("short", user="s", interval=0.05)
    world.submit("short/1", "short", 9 * GiB, 0, time=2.0)
    assert waiting(world) == ["short/1", "long/1"]
