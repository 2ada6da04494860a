"""The map of an arena: whatever is leased and given back, in whatever order, no byte is in two places (docs/arena.md)."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpushare_kernel.broker.extents import BLOCK, Extents, Rest, Span, rounded

STEP = 8 * BLOCK


def span(start: int, end: int) -> Span:
    """In blocks."""
    return Span(start * BLOCK, end * BLOCK)


def test_it_is_first_fit_and_free_neighbours_are_one() -> None:
    """A2: the first hole that is large enough; two neighbours that were given back are one extent again."""
    there = Extents(STEP)
    one, two, three = (there.take(2 * BLOCK)[0] for _ in range(3))
    assert (one, two, three) == (span(0, 2), span(2, 4), span(4, 6))
    assert there.size == STEP
    there.release(one, 1.0)
    there.release(two, 2.0)
    found, holes = there.take(4 * BLOCK)
    assert (found, holes) == (span(0, 4), ())
    assert there.resting == 0


def test_what_has_memory_comes_first() -> None:
    """A2: a hole that lies before it would have to be populated."""
    there = Extents(STEP)
    one, _, three = (there.take(2 * BLOCK)[0] for _ in range(3))
    there.release(one, 1.0)
    there.drained(there.drain(there.rests[0], BLOCK * 2))
    there.release(three, 2.0)
    assert there.take(BLOCK) == (span(4, 5), ())
    assert there.take(2 * BLOCK) == (span(0, 2), (span(0, 2),))


def test_it_grows_by_steps_from_its_free_end() -> None:
    """A2: what is free at the end is used first, and only the rest of it is a hole."""
    there = Extents(STEP)
    first = there.take(7 * BLOCK)[0]
    there.release(first, 1.0)
    found, holes = there.take(10 * BLOCK)
    assert found == span(0, 10)
    assert holes == (span(7, 10),)
    assert there.size == 2 * STEP


def test_a_part_of_a_rest_goes_back_from_its_end() -> None:
    """A3: only what is beyond a budget, and the rest of it stays as old as it was."""
    there = Extents(STEP)
    there.release(there.take(6 * BLOCK)[0], 3.0)
    gone = there.drain(there.rests[0], BLOCK + 1)
    assert gone == span(4, 6)
    assert there.rests == [Rest(0, 4 * BLOCK, 3.0)]
    assert there.holes() == [span(6, 8)]
    assert there.take(5 * BLOCK)[0] == span(6, 11)  # what drains is leased to nobody
    there.drained(gone)
    assert there.holes() == [span(4, 6), span(11, 16)]


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (BLOCK, 1), (BLOCK + 1, 2)])
def test_sizes_are_whole_blocks(size: int, expected: int) -> None:
    """A2."""
    assert rounded(size) == expected * BLOCK


class Machine(RuleBasedStateMachine):
    """Leases and ends of leases, beside a model that knows of each block whether it has memory."""

    def __init__(self) -> None:
        super().__init__()
        self.there = Extents(STEP)
        self.now = 0.0
        self.leases: list[Span] = []
        self.going: list[Span] = []
        self.backed: set[int] = set()

    def _blocks(self, span: Span) -> set[int]:
        return {*range(span.start // BLOCK, span.end // BLOCK)}

    @rule(blocks=st.integers(1, 12))
    def take(self, blocks: int) -> None:
        """Lease, and populate exactly what is said to be a hole."""
        found, holes = self.there.take(blocks * BLOCK)
        assert found.size == blocks * BLOCK
        missing = {block for hole in holes for block in self._blocks(hole)}
        assert missing == self._blocks(found) - self.backed
        self.backed |= missing
        self.leases.append(found)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, *, keep: bool) -> None:
        """End a lease: its memory rests, or goes back."""
        self.now += 1.0
        found = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        if keep:
            self.there.release(found, self.now)
        else:
            self.there.discard(found)
            self.going.append(found)

    @precondition(lambda self: self.there.resting)
    @rule(most=st.integers(1, 9 * BLOCK))
    def drain(self, most: int) -> None:
        """Give some of the oldest rest back."""
        oldest = self.there.rests[0]
        found = self.there.drain(oldest, most)
        assert found.size == min(rounded(most), oldest.end - oldest.start)
        self.going.append(found)

    @precondition(lambda self: self.going)
    @rule()
    def drained(self) -> None:
        """It has gone."""
        found = self.going.pop(0)
        self.backed -= self._blocks(found)
        self.there.drained(found)

    @invariant()
    def nothing_is_in_two_places(self) -> None:
        """And rests are what has memory and no lease."""
        self.there.check()
        mine = {block for lease in self.leases for block in self._blocks(lease)}
        going = {block for lease in self.going for block in self._blocks(lease)}
        assert len(mine) * BLOCK == self.there.leased == sum(lease.size for lease in self.leases)
        assert len(self.backed - mine - going) * BLOCK == self.there.resting
        holes = {block for hole in self.there.holes() for block in self._blocks(hole)}
        assert not holes & (self.backed | mine | going)
        assert self.there.empty == (not self.backed and not self.leases and not self.going)


TestMachine = Machine.TestCase
