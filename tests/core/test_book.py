"""The memory side: what is charged, what a declaration needs, what can never fit, contexts included (I1)."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpushare_kernel.core.book import MemoryBook
from gpushare_kernel.core.config import Config
from gpushare_kernel.core.records import Job, Session, User
from gpushare_kernel.core.values import GiB, JobId, LaneId, MiB, Need, SessionId, UserId


def book(capacity: int = 100, reserve: int = 0) -> MemoryBook:
    return MemoryBook(Config(capacity=capacity, compute=1.0, reserve=reserve))


def session(name: str = "s") -> Session:
    return Session(SessionId(name), User(UserId("ann")), 1)


def job(
    name: str,
    persistent: int,
    ephemeral: int,
    *,
    size: int | None = None,
    owner: str = "s",
    cooperative: bool = False,
) -> Job:
    need = Need(persistent, ephemeral)
    return Job(JobId(name), SessionId(owner), 1, need, size, 0.0, cooperative=cooperative)


def test_p_is_a_total_and_only_what_is_missing_is_added() -> None:
    """-p names what the session keeps in all: a second job of it adds nothing, a larger one the difference."""
    memory, one = book(), session()
    memory.place(one, job("a", 30, 10), 0.0)
    assert (one.charged, memory.table.used) == (30, 40)
    assert memory.added(one, Need(30, 5)) == 0
    assert memory.added(one, Need(45, 5)) == 15


def test_charged_is_what_was_declared_or_what_is_seen() -> None:
    """Whichever is more; measuring more than there is makes a deficit, nothing else does."""
    memory, one = book(), session()
    memory.charge(one, declared=40)
    memory.charge(one, measured=60)
    assert (one.charged, memory.table.persistent, memory.deficit) == (60, 60, False)
    memory.charge(one, measured=130)
    assert (memory.table.free, memory.deficit) == (-30, True)
    memory.charge(one, measured=10)
    assert (one.charged, memory.deficit) == (40, False)


def test_the_newcomers_own_context_is_counted_before_it_has_one() -> None:
    """The first job of a session brings its context along; the second does not."""
    memory, one, two = book(reserve=20), session("one"), session("two")
    assert memory.added(one, Need(10, 5)) == 30
    memory.place(one, job("a", 10, 5, cooperative=True), 0.0)
    assert (memory.table.reserve, memory.table.used) == (20, 35)
    assert memory.added(one, Need(10, 5)) == 0
    assert memory.place(two, job("b", 41, 10, cooperative=True), 0.0) is None, (
        "its context too: 35 + 20 + 41 + 5"
    )
    assert memory.place(two, job("b", 40, 10, cooperative=True), 0.0) is not None
    assert memory.table.lanes[LaneId(1)].size == 10
    memory.context(two, 0)
    assert memory.table.reserve == 20


def test_who_meets_no_boundary_has_a_lane_of_its_own() -> None:
    """Neither joins a lane nor is joined: lane mates would wait for its end."""
    memory = book()
    alone = job("a", 0, 60)
    assert memory.place(session("one"), alone, 0.0) is not None
    assert memory.place(session("two"), job("b", 0, 60), 0.0) is None
    assert memory.place(session("three"), job("c", 0, 60, cooperative=True), 0.0) is None
    memory.leave(alone)
    assert memory.place(session("four"), job("d", 0, 60, cooperative=True), 0.0) is not None
    assert memory.place(session("five"), job("e", 0, 60, cooperative=True), 0.0) is not None
    assert memory.place(session("six"), job("f", 0, 60), 0.0) is None


def test_a_single_size_covers_what_is_held_already() -> None:
    """%%gpulane 60: the session holds 25, the rest is this cell's; it never charges more P than is seen."""
    memory, one = book(), session()
    memory.charge(one, measured=25)
    need = memory.need(one, size=60, persistent=None, ephemeral=None)
    assert need == Need(25, 35)
    assert memory.need(one, size=20, persistent=None, ephemeral=None) == Need(25, 0)
    memory.place(one, job("a", 25, 35, size=60), 0.0)
    assert one.declared == 0


def test_what_turns_out_to_persist_is_no_longer_ephemeral() -> None:
    """At a boundary the split of one size is measured: P grows, the lane shrinks by as much, the sum stays."""
    memory, one = book(), session()
    work = job("a", 0, 60, size=60)
    memory.place(one, work, 0.0)
    memory.charge(one, measured=45)
    memory.resplit(one, work)
    assert (work.need, memory.table.in_lanes, memory.table.used) == (Need(45, 15), 15, 60)
    memory.charge(one, measured=70)
    memory.resplit(one, work)
    assert (work.need, memory.table.used) == (Need(70, 0), 70)


def test_neither_size_means_default_needs_and_one_of_two_the_other_as_it_is() -> None:
    """Plain cells: 64 + 64 MiB. -e alone keeps P as it is, -p alone has no E."""
    memory, one = book(GiB), session()
    assert memory.need(one, size=None, persistent=None, ephemeral=None) == Need(64 * MiB, 64 * MiB)
    memory.charge(one, measured=7)
    assert memory.need(one, size=None, persistent=None, ephemeral=5) == Need(7, 5)
    assert memory.need(one, size=None, persistent=9, ephemeral=None) == Need(9, 0)


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    """What is asked for, its parts, what there is, and the most that could be asked for."""
    memory, one = book(8 * GiB, reserve=GiB), session()
    assert memory.never_fits(one, Need(5 * GiB, 2 * GiB)) is None
    refusal = memory.never_fits(one, Need(5 * GiB, 3 * GiB))
    assert refusal is not None
    for part in (
        "it needs 9.0 GiB",
        "5.0 GiB to keep, 3.0 GiB while it runs, 1.0 GiB for the kernel itself",
        "the device has 8.0 GiB in all",
        "Ask for 7.0 GiB or less",
    ):
        assert part in refusal
    refusal = memory.never_fits(one, Need(5 * GiB, 2 * GiB + 20 * MiB))
    assert refusal is not None, "numbers that would round alike are in MiB"
    assert "it needs 8212 MiB (" in refusal
    assert "the device has 8192 MiB in all. Ask for 7.0 GiB or less." in refusal
    memory.context(one, 2 * GiB)
    assert memory.never_fits(one, Need(5 * GiB, 2 * GiB)) is not None, "its context is known by now"


def test_what_already_stays_counts_for_what_can_never_fit() -> None:
    """A session that holds 6 of 8 cannot ask for 3 more, whatever it declares."""
    memory, one = book(8 * GiB), session()
    memory.charge(one, measured=6 * GiB)
    assert memory.never_fits(one, Need(0, 3 * GiB)) is not None


def test_what_runs_already_is_taken_as_it_is() -> None:
    """A plain cell may make a deficit: then nothing is granted until it is gone."""
    memory, one, two = book(), session("one"), session("two")
    memory.place(one, job("a", 40, 40), 0.0)
    plain = job("plain", 20, 30, owner="two")
    plain.plain = True
    lane = memory.force(two, plain, 0.0)
    assert lane.private
    assert (memory.table.free, memory.deficit) == (-30, True)
    waiting = job("b", 0, 0, owner="two")
    memory.queue.push(waiting, two, 0.0)
    assert list(memory.admit({one.id: one, two.id: two}, 0.0, lambda _: True, 0.0)) == []
    memory.leave(plain)
    assert not memory.deficit
    assert list(memory.admit({one.id: one, two.id: two}, 0.0, lambda _: True, 0.0)) == [waiting]


def test_a_confirmed_lane_mate_never_shrinks_the_lane() -> None:
    """After a restart the jobs of one lane come back in any order, the small one last too."""
    memory, one = book(), session()
    lane = memory.force(one, job("large", 0, 50), 0.0)
    assert memory.force(one, job("small", 0, 10), 0.0, beside=lane) is lane
    assert lane.size == 50
    assert memory.force(one, job("larger", 0, 60), 0.0, beside=lane).size == 60
    assert memory.table.in_lanes == 60


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 3), st.booleans()),
        max_size=30,
    )
)
def test_grants_never_exceed_capacity(steps: list[tuple[int, int, int, bool]]) -> None:
    """I1 on every path and in any order: what `place` grants fits, contexts and P and lanes together."""
    memory = book(reserve=7)
    sessions = [session(str(n)) for n in range(4)]
    placed: list[Job] = []
    for n, (persistent, ephemeral, which, leaves) in enumerate(steps):
        if leaves and placed:
            memory.leave(placed.pop(0))
            continue
        one = job(str(n), persistent, ephemeral, owner=str(which))
        if memory.place(sessions[which], one, 0.0) is not None:
            placed.append(one)
        held = sum(s.charged + s.context for s in sessions)
        assert held + memory.table.in_lanes == memory.table.used <= 100
        assert not memory.deficit


@pytest.mark.parametrize("capacity", [0, 50, 200])
def test_capacity_moves(capacity: int) -> None:
    """Foreign use takes, and gives back; less than is promised is a deficit."""
    memory, one = book(), session()
    memory.place(one, job("a", 40, 20), 0.0)
    memory.capacity(capacity)
    assert memory.table.free == capacity - 60
    assert memory.deficit == (capacity < 60)


def test_a_context_takes_what_was_measured_once_it_was() -> None:
    """The estimate is for newcomers until then; a capacity that grows is one that a job may ask for."""
    memory, one = book(reserve=20), session()
    assert memory.added(one, Need(10, 0)) == 30
    memory.capacity(150, 35)
    assert memory.added(one, Need(10, 0)) == 45
    assert memory.never_fits(one, Need(100, 15)) is None
    assert memory.never_fits(one, Need(100, 16)) is not None
    memory.place(one, job("a", 10, 0), 0.0)
    assert one.context == 35
    memory.capacity(100)
    assert (memory.reserve, memory.whole) == (35, 100)
