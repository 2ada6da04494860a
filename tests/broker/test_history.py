"""What is told of the last half minute: who had the device, drained, was kept paused or parked."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gpushare_kernel.broker.history import KEPT, MOST, History
from gpushare_kernel.core import events as ev
from gpushare_kernel.core.states import Phase
from gpushare_kernel.core.values import GiB, SessionId
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.snapshot import TurnView
from tests.broker.house import House
from tests.broker.test_desk import session_of, submit
from tests.core.tests_core_world import World


def watched(**settings: Any) -> tuple[World, History]:
    """A virtual device whose history is written down."""
    world, history = World(**settings), History()
    world.core.turns.noted = history.note
    return world, history


def total(turns: tuple[TurnView, ...], session: str, kind: str = "turn") -> float:
    return sum(t.began - t.ended for t in turns if t.session == session and t.kind == kind)


def session(name: str, phase: Phase = Phase.ON, **more: object) -> Any:
    return SimpleNamespace(id=name, phase=phase, parked=None, suspended_until=None, **more)


def test_two_that_share_the_host_have_turns_one_after_the_other() -> None:
    """Half of the time each, nobody beside the other, what began first comes first."""
    world, history = watched(compute=1.0)
    for name in "ab":
        world.open(name, user=name)
        world.submit(f"{name}/1", name, GiB, 0)
    world.run(20)
    turns = history.turns(world.now)
    assert [t.began for t in turns] == sorted((t.began for t in turns), reverse=True)
    assert total(turns, "a") == pytest.approx(10, abs=0.5)
    assert total(turns, "a") + total(turns, "b") == pytest.approx(20, abs=0.5)
    since_shared = [t for t in turns if t.began < 15]
    for one, other in itertools.pairwise(since_shared):
        assert other.began <= one.ended + 0.0011, "no two at once"
    assert [t.session for t in turns if t.ended == 0.0] == [turns[-1].session]


def test_a_drain_is_told_apart_from_the_turn_before_it() -> None:
    """On a GPU what was submitted still ends when the turn is over: 30 ms here."""
    world, history = watched(compute=1.0, divisible=False)
    world.drain = 0.03
    for name in "ab":
        world.open(name, user=name)
        world.submit(f"{name}/1", name, GiB, 0)
    world.run(10)
    turns = history.turns(world.now)
    drains = [t for t in turns if t.kind == "drain" and t.ended]
    assert len(drains) > 5
    assert all(t.began - t.ended == pytest.approx(0.03, abs=0.006) for t in drains)
    for drain in drains:
        (turn,) = (
            t for t in turns if t.session == drain.session and t.ended == pytest.approx(drain.began)
        )
        assert turn.kind == "turn"


def test_who_is_kept_paused_is_told_until_it_runs_again() -> None:
    """Its turn ends there, and begins anew."""
    world, history = watched(compute=4.0)
    world.open("a")
    world.submit("a/1", "a", GiB, 0)
    world.run(1.0)
    world.send(ev.Suspended(at=world.now, session=SessionId("a"), until=world.now + 5))
    world.finish_drains()
    world.run(2.0)
    assert [(t.kind, t.ended) for t in history.turns(world.now)][-1] == ("pause", 0.0)
    world.run(5.0, step=0.1)
    turns = history.turns(world.now)
    assert [t.kind for t in turns] == ["turn", "pause", "turn"]
    assert total(turns, "a", "pause") == pytest.approx(5.0, abs=0.1)
    world.send(ev.Suspended(at=world.now, session=SessionId("a"), until=world.now + 50))
    world.finish_drains()
    world.close("a")
    assert all(t.ended for t in history.turns(world.now)), "who is gone does nothing"


def test_who_is_parked_is_told_until_its_memory_is_back() -> None:
    """And not a moment longer than it is there."""
    world, history = watched(capacity=10 * GiB, compute=1.0, policy="srtf", can_park=True)
    world.open("long", user="ann", interval=0.05)
    world.submit("long/1", "long", 6 * GiB, GiB, time=3000.0)
    world.run(15)
    world.open("short", user="bob", interval=0.05)
    world.submit("short/1", "short", 5 * GiB, GiB, time=20.0)
    world.run(1.0)
    (parked,) = (t for t in history.turns(world.now) if t.kind == "park")
    assert (parked.session, parked.ended) == ("long", 0.0)
    world.end("short/1")
    world.send(ev.Released(at=world.now, session=SessionId("short"), persistent=0))
    world.run(0.3)
    turns = history.turns(world.now)
    (parked,) = (t for t in turns if t.kind == "park")
    assert parked.ended > 0.0
    assert (turns[-1].session, turns[-1].kind, turns[-1].ended) == ("long", "turn", 0.0)
    world.close("long")
    assert all(t.ended for t in history.turns(world.now))


def test_what_is_older_than_half_a_minute_is_not_told() -> None:
    """Who still runs began no earlier than that either."""
    history = History()
    old, long = session("old"), session("long")
    history.note(old, 100.0)
    history.note(long, 100.0)
    old.phase = Phase.OFF
    history.note(old, 101.0)
    assert len(history.turns(130.0)) == 2
    assert history.turns(140.0) == (TurnView("long", KEPT, 0.0, "turn"),)


def test_the_same_again_is_one_span_and_nothing_is_none() -> None:
    """Whoever notes too often does no harm."""
    history, one = History(), session("a")
    for at in (1.0, 2.0, 3.0):
        history.note(one, at)
    one.phase = Phase.LEAVING
    history.note(one, 3.0)
    one.phase = Phase.ON
    history.note(one, 3.0)  # it stays after all, in the same moment
    assert history.turns(4.0) == (
        TurnView("a", 3.0, 1.0, "turn"),
        TurnView("a", 1.0, 0.0, "turn"),
    )


@pytest.mark.parametrize("sessions", [1, 2, 40, 1000])
def test_it_is_bounded_and_costs_next_to_nothing(sessions: int) -> None:
    """Turns of a millisecond for minutes: 600 spans at most, the time that was had is not lost, microseconds a turn."""
    history = History()
    all_ = [session(f"s{n}", Phase.OFF) for n in range(sessions)]
    at, turns = 0.0, 30_000
    started = time.thread_time()
    for n in range(turns):
        one = all_[n % sessions]
        for phase, took in ((Phase.ON, 0.0008), (Phase.LEAVING, 0.0002), (Phase.OFF, 0.0)):
            one.phase = phase
            history.note(one, at)
            at += took
    cost = (time.thread_time() - started) / turns
    told = history.turns(at)
    assert 1 <= len(told) <= MOST
    assert all(0 <= t.ended <= t.began <= KEPT for t in told)
    assert cost < 100e-6, "7 us for three notes, on a machine that is busy"
    if sessions == 1:
        assert total(told, "s0") == pytest.approx(30.0, abs=0.1)


def test_the_broker_tells_it_of_a_device(house: House) -> None:
    """Who runs, and who ran and is gone: by id."""
    first = house.notebook()
    first.ask(submit("a", ephemeral=0))
    name = session_of(first)
    line = house.call(msg.Observe())

    def turns() -> tuple[TurnView, ...]:
        reply = line.ask(msg.GetSnapshot())
        assert isinstance(reply, msg.SnapshotReply)
        return reply.snapshot.devices[0].turns

    assert [(t.session, t.kind, t.ended) for t in turns()] == [(name, "turn", 0.0)]
    opened: msg.Opened = first.opened  # type: ignore[attr-defined]
    house.call(msg.Close(opened.session, opened.token))
    house.saw(lambda: not house.broker.scheduler.sessions)
    (gone,) = turns()
    assert (gone.session, gone.kind) == (name, "turn")
    assert gone.ended > 0.0
