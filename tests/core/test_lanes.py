"""Algorithm 1 against its three conditions written out, and lanes that follow their members (I1, I2)."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpushare_kernel.core.errors import InvariantBroken
from gpushare_kernel.core.lanes import LaneTable, Placement
from gpushare_kernel.core.records import Job, User
from gpushare_kernel.core.values import JobId, LaneId, Need, SessionId, UserId

sizes = st.integers(0, 24)


def job(name: object, ephemeral: int) -> Job:
    """A job that has been admitted on paper."""
    need = Need(0, ephemeral)
    return Job(JobId(str(name)), SessionId("s"), 0, need, None, 0.0)


def algorithm_1(table: LaneTable, persistent: int, ephemeral: int) -> Placement | None:
    """The three paths as docs/core.md states them, by trying every lane."""
    held = table.persistent + table.reserve + persistent
    lanes = sum(lane.size for lane in table.lanes.values())
    shared = [lane for lane in table.lanes.values() if not lane.private]
    if held + lanes + ephemeral <= table.capacity:
        return Placement(None, ephemeral)
    large = [lane for lane in shared if lane.size >= ephemeral and held + lanes <= table.capacity]
    if large:
        best = min(large, key=lambda lane: (lane.size, lane.id))
        return Placement(best.id, best.size)
    for lane in sorted(shared, key=lambda lane: (lane.size, lane.id)):
        size = max(ephemeral, *(member.need.ephemeral for member in lane.members.values()))
        if held + lanes - lane.size + size <= table.capacity:
            return Placement(lane.id, size)
    return None


def check(table: LaneTable) -> None:
    """What holds of every table: the sum is right, no lane is below its largest E, each has an occupant of its own."""
    assert table.in_lanes == sum(lane.size for lane in table.lanes.values())
    for lane in table.lanes.values():
        assert lane.members
        assert lane.size == max(member.need.ephemeral for member in lane.members.values())
        if lane.occupant is not None:
            assert lane.occupant.id in lane.members


@given(
    capacity=st.integers(0, 64),
    reserve=st.integers(0, 4),
    jobs=st.lists(st.tuples(sizes, sizes, st.booleans(), st.booleans()), max_size=14),
    query=st.tuples(sizes, sizes),
)
def test_every_path_is_the_one_that_is_written_down(
    capacity: int,
    reserve: int,
    jobs: list[tuple[int, int, bool, bool]],
    query: tuple[int, int],
) -> None:
    """Whatever came and went before: `find` answers as the three conditions do, and its grants never exceed capacity."""
    table = LaneTable(capacity)
    table.reserve = reserve
    placed: list[Job] = []
    for number, (persistent, ephemeral, private, leaves) in enumerate(jobs):
        if leaves and placed:
            table.leave(placed.pop(ephemeral % len(placed)))
            check(table)
            continue
        found = table.find(persistent, ephemeral, private=private)
        if private:
            fits = table.free - persistent >= ephemeral
            assert found == (Placement(None, ephemeral) if fits else None)
        else:
            assert found == algorithm_1(table, persistent, ephemeral)
        if found is None:
            continue
        one = job(number, ephemeral)
        table.persistent += persistent
        lane = table.place(one, found, 0.0, private=private)
        placed.append(one)
        assert lane.size >= ephemeral
        assert table.used <= max(capacity, reserve)
        check(table)
    assert table.find(*query) == algorithm_1(table, *query)


def test_a_lane_that_is_large_enough_is_no_use_without_room_for_p() -> None:
    """The slide's line 7 forgets the newcomer's P: it would put 3 + 5 beside 2 + 6 on a device of 10."""
    table = LaneTable(10)
    table.persistent = 2
    table.place(job("big", 6), Placement(None, 6), 0.0)
    assert table.lanes[LaneId(1)].size >= 5, "the slide is content with this"
    assert table.find(3, 5) is None
    assert table.find(2, 5) == Placement(LaneId(1), 6)


def test_a_growing_lane_counts_p_too() -> None:
    """The third path: 2 + p + 9 in the place of 6 must stay within 12."""
    table = LaneTable(12)
    table.persistent = 2
    table.place(job("big", 6), Placement(None, 6), 0.0)
    assert table.find(1, 9) == Placement(LaneId(1), 9)
    assert table.find(2, 9) is None


def test_the_best_fitting_lane_is_taken_and_the_smallest_that_can_grow() -> None:
    """Neither the largest lane is given to a small job, nor the largest lane grown for a large one."""
    table = LaneTable(14)
    for name, size in (("a", 3), ("b", 5), ("c", 6)):
        table.place(job(name, size), Placement(None, size), 0.0)
    assert table.find(0, 4) == Placement(LaneId(2), 5)
    assert table.find(0, 7) is None
    table.capacity = 16
    assert table.find(0, 7) == Placement(LaneId(2), 7), "5 -> 7 fits, 3 -> 7 does not"


def test_a_private_lane_is_nobody_elses() -> None:
    """Plain cells cannot be trimmed: nobody is put behind one, and it is put behind nobody."""
    table = LaneTable(10)
    table.place(job("plain", 8), Placement(None, 8), 0.0, private=True)
    assert table.find(0, 4) is None
    assert table.find(0, 2) == Placement(None, 2)
    table.place(job("declared", 2), Placement(None, 2), 0.0)
    assert table.find(0, 2, private=True) is None


def test_a_lane_shrinks_when_its_largest_member_leaves() -> None:
    """What the large one asked for is free again, and the small one keeps its own."""
    table = LaneTable(10)
    small, large = job("small", 2), job("large", 7)
    table.place(small, Placement(None, 2), 1.0)
    table.place(large, Placement(LaneId(1), 7), 2.0)
    assert table.free == 3
    left = table.leave(large)
    assert left is not None
    assert (left.size, left.occupant, left.since) == (2, small, 1.0)
    assert table.free == 8
    assert table.leave(small) is None
    assert (table.free, table.lanes) == (10, {})


def test_the_first_member_occupies_and_the_others_wait_in_the_order_they_came() -> None:
    """One occupant at a time (I2); who leaves it gives it up."""
    table = LaneTable(10)
    first, second, third = (job(n, 2) for n in range(3))
    lane = table.place(first, Placement(None, 2), 0.0)
    table.place(second, Placement(lane.id, 2), 1.0)
    table.place(third, Placement(lane.id, 2), 2.0)
    assert lane.occupant is first
    assert lane.waiters == [second, third]
    table.occupy(lane, third, 5.0)
    assert (lane.occupant, lane.since) == (third, 5.0)
    table.leave(third)
    assert lane.occupant is None


def test_a_lane_cannot_pass_to_somebody_who_is_not_in_it() -> None:
    """A bug of ours is said, not carried out."""
    table = LaneTable(10)
    lane = table.place(job("a", 2), Placement(None, 2), 0.0)
    with pytest.raises(InvariantBroken, match="lane 1 cannot pass to b"):
        table.occupy(lane, job("b", 2), 0.0)


def test_joining_a_lane_never_makes_it_smaller() -> None:
    """Whatever size a placement names, the lane holds its largest member."""
    table = LaneTable(10)
    table.place(job("large", 7), Placement(None, 7), 0.0)
    lane = table.place(job("small", 2), Placement(LaneId(1), 2), 0.0)
    assert lane.size == 7


def test_what_each_user_had_of_a_lane_is_counted_by_its_weight_and_only_while_it_was_shared() -> (
    None
):
    """Six seconds at weight 3 are two; alone in the lane nobody takes anything from anybody."""
    ann, bob = User(UserId("ann"), weight=3.0), User(UserId("bob"))
    table = LaneTable(10)
    first, second = job("a", 2), job("b", 2)
    lane = table.place(first, Placement(None, 2), 10.0)
    lane.give_up(ann, 14.0)
    assert lane.held == {}
    table.place(second, Placement(lane.id, 2), 14.0)
    assert table.crowded == {lane.id: lane}
    lane.give_up(ann, 16.0)
    assert lane.held == {"ann": 2.0}
    assert (first.lane_left, lane.since) == (16.0, 16.0)
    lane.give_up(ann, 19.0)
    assert lane.held == {"ann": 3.0}
    owners = {first.id: ann, second.id: bob}
    assert lane.heir(lambda one: owners[one.id]) is second
    table.leave(first)
    assert table.crowded == {}


def test_nobody_gives_up_a_lane_that_nobody_has() -> None:
    """A lane between two occupants is charged to no user."""
    table, ann = LaneTable(10), User(UserId("ann"))
    first = job("a", 2)
    lane = table.place(first, Placement(None, 2), 0.0)
    for name in ("b", "c"):
        table.place(job(name, 2), Placement(lane.id, 2), 0.0)
    table.leave(first)
    assert lane.occupant is None
    lane.give_up(ann, 5.0)
    assert lane.held == {}


def test_the_heir_is_of_the_user_who_had_the_lane_least() -> None:
    """Then who waits for it longest, then who came first; a newcomer begins with the least of the others."""
    ann, bob, new = (User(UserId(name)) for name in ("ann", "bob", "new"))
    table = LaneTable(10)
    jobs = {name: job(name, 2) for name in ("a1", "b1", "b2", "n1")}
    for order, one in enumerate(jobs.values()):
        one.order = order
    owners = {"a1": ann, "b1": bob, "b2": bob, "n1": new}
    lane = table.place(jobs["a1"], Placement(None, 2), 0.0)
    for name in ("b1", "b2", "n1"):
        table.place(jobs[name], Placement(lane.id, 2), 0.0)
    lane.held = {ann.id: 9.0, bob.id: 4.0}
    jobs["b1"].lane_left = 3.0
    assert lane.heir(lambda one: owners[str(one.id)]) is jobs["b2"]
    assert lane.held == {"ann": 9.0, "bob": 4.0, "new": 4.0}
    jobs["b2"].lane_left = 3.0
    assert lane.heir(lambda one: owners[str(one.id)]) is jobs["n1"]


def test_a_table_says_that_it_has_changed() -> None:
    """Whoever keeps what follows from lanes knows when to look again; a lane that anybody may share is in the list of those."""
    table = LaneTable(10)
    assert (table.version, [*table.shared]) == (0, [])
    one, alone = job("a", 2), job("b", 3)
    lane = table.place(one, Placement(None, 2), 0.0)
    table.place(alone, Placement(None, 3), 0.0, private=True)
    assert [*table.shared] == [lane]
    seen = table.version
    assert seen > 0
    alone.need = Need(0, 1)
    table.refit(table.lanes[LaneId(2)])
    assert table.version > seen, "what is free has changed"
    seen = table.version
    table.refit(table.lanes[LaneId(2)])
    assert table.version == seen
    table.leave(alone)
    assert table.version > seen
    assert [*table.shared] == [lane]
    table.leave(one)
    assert [*table.shared] == []


def test_who_joins_is_news_also_where_the_lane_stays_as_it_is() -> None:
    """A lane of several is a crowded one, for as long as it is; a size said again is none that has changed."""
    table, large = LaneTable(10**9), 10**6
    first, second = job("a", large), job("b", 2)
    lane = table.place(first, Placement(None, large), 0.0)
    assert table.crowded == {}
    seen = table.version
    table.place(second, Placement(lane.id, large), 0.0)
    assert table.version > seen
    assert table.crowded == {lane.id: lane}
    seen = table.version
    first.need = Need(0, 10 ** len("abcdef"))  # equal, and another object
    table.refit(lane)
    assert table.version == seen
    table.leave(second)
    assert table.crowded == {}


def test_who_leaves_is_not_the_occupant() -> None:
    """The lane stays with whoever has it."""
    table = LaneTable(10)
    first, second = job("a", 2), job("b", 2)
    lane = table.place(first, Placement(None, 2), 0.0)
    table.place(second, Placement(lane.id, 2), 0.0)
    table.leave(second)
    assert lane.occupant is first


@pytest.mark.parametrize(("ephemeral", "where"), [(6, LaneId(2)), (7, LaneId(2)), (8, None)])
def test_of_lanes_that_are_too_small_the_smallest_that_can_grow_is_taken(
    ephemeral: int, where: LaneId | None
) -> None:
    """Growing a lane of 4 to 7 takes the 3 bytes that are free, and not one more."""
    table = LaneTable(9)
    table.place(job("a", 2), Placement(None, 2), 0.0)
    table.place(job("b", 4), Placement(None, 4), 0.0)
    found = table.find(0, ephemeral)
    assert (found and found.lane) == where
