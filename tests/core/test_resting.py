"""Who rests is known without looking at everybody: the longest idle first, and only those from whom there is something to have."""

from __future__ import annotations

import pytest

from gpushare_kernel.core import instructions as do
from gpushare_kernel.core import parking
from gpushare_kernel.core.book import MemoryBook
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.records import Session, User
from gpushare_kernel.core.resting import Resting
from gpushare_kernel.core.values import GiB, SessionId, UserId
from tests.core.tests_core_world import World


def session(name: str, order: int, *, idle_since: float, held: int = 1) -> Session:
    """One that holds `held` bytes and has nothing to do."""
    made = Session(SessionId(name), User(UserId(name)), order, idle_since=idle_since)
    made.measured = held
    return made


def test_the_longest_idle_comes_first_and_of_equals_the_oldest() -> None:
    resting = Resting()
    for one in (session("late", 1, idle_since=3.0), session("b", 3, idle_since=1.0), session("a", 2, idle_since=1.0)):  # fmt: skip
        resting.note(one)
    assert [one.id for one in resting] == ["a", "b", "late"]


def test_who_works_again_has_another_place_afterwards() -> None:
    resting = Resting()
    first, second = session("a", 1, idle_since=1.0), session("b", 2, idle_since=2.0)
    for one in (first, second):
        resting.note(one)
    first.cell_open = True
    resting.note(first)
    assert [one.id for one in resting] == ["b"]
    first.cell_open, first.idle_since = False, 5.0
    resting.note(first)
    assert [one.id for one in resting] == ["b", "a"]


def test_who_holds_nothing_does_not_count() -> None:
    book = MemoryBook(Config(capacity=GiB, compute=1.0))
    one = session("a", 1, idle_since=0.0, held=0)
    book.charge(one, measured=5)
    assert len(book.resting) == 1
    book.charge(one, measured=0)
    book.context(one, 0)
    assert not len(book.resting)


def test_beyond_the_limit_the_longest_idle_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rest: only so many are weighed against each other, and whoever cannot be parked takes no place among them."""
    monkeypatch.setattr(parking, "MOST_SEEN", 2)
    world = World(compute=1.0, capacity=6 * GiB, can_park=True, park_cost=0.001)
    for n in range(5):
        world.open(f"s{n}", f"u{n}")
        world.submit(f"j{n}", f"s{n}", GiB, 0)
        world.run(0.2)
        world.end(f"j{n}", persistent=GiB)
    world.core.sessions[SessionId("s0")].barred = "it may not"
    world.run(3.0)
    world.open("new", "nan")
    world.submit("n1", "new", 3 * GiB, 0)
    world.run(1.0)
    parked = [one.session for one in world.log if isinstance(one, do.Park)]
    assert parked == ["s1", "s2"]
    assert world.running("n1")
