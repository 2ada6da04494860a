"""Costs and places: N2, N6."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpushare_kernel.nwv import matching
from gpushare_kernel.nwv.assignment import exact, greedy, polished
from gpushare_kernel.nwv.matching import (  # fmt: skip
    Cut,
    costs_between,
    left_side,
    pair_costs,
    place,
    right_side,
    total_cost,
)
from tests.nwv.small import untimed

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, pages: int, size: int = 6, first: int = 0, spread: float = 2.0) -> Cut:
    """Return a model of random values and heavy-tailed Fisher."""
    source = torch.Generator().manual_seed(seed)
    fisher = (spread * torch.randn(pages, size, generator=source)).exp()
    values = torch.randn(pages, size, generator=source)
    return Cut(values, fisher / fisher.mean(), range(first, first + pages))


def several(seed: int, sizes: list[int]) -> dict[str, Cut]:
    """Return models of so many pages."""
    return {f"m{n}": drawn(seed + n, size, first=1000 * n) for n, size in enumerate(sizes)}


@untimed
@given(SEEDS, st.integers(1, 12), st.integers(1, 12))
def test_one_product_is_the_cost_of_every_pair(seed: int, m: int, n: int) -> None:
    """N6, against the sum as the paper writes it."""
    one, other = drawn(seed, m), drawn(seed + 1, n)
    found = costs_between(left_side(one.values, one.fisher), right_side(other.values, other.fisher))
    for row in range(m):
        direct = pair_costs(one, torch.full((n,), row), other, torch.arange(n))
        assert torch.allclose(found[row], direct, rtol=1e-6, atol=1e-6)


@untimed
@given(SEEDS)
def test_sides_of_several_occupants_add_up(seed: int) -> None:
    """A page with three on it costs what the three cost."""
    new, *there = [drawn(seed + n, 4) for n in range(4)]
    sides = sum(right_side(one.values, one.fisher) for one in there)
    found = costs_between(left_side(new.values, new.fisher), sides)  # type: ignore[arg-type]
    every = torch.arange(4)
    for row in range(4):
        direct = sum(pair_costs(new, torch.full((4,), row), one, every) for one in there)
        assert torch.allclose(found[row], direct, rtol=1e-6, atol=1e-6)  # type: ignore[arg-type]


@untimed
@given(SEEDS, st.lists(st.integers(1, 15), min_size=1, max_size=4), st.integers(0, 20), st.integers(0, 8), st.sampled_from(["best", "random", "identity"]))  # fmt: skip
def test_no_model_has_a_page_twice(seed: int, sizes: list[int], spare: int, own: int, method: matching.Method) -> None:  # fmt: skip
    """N2, whatever the method and the room."""
    cuts = several(seed, sizes)
    count = max(sizes) + spare
    found = place(cuts, count, method=method, own=own)
    for name, table in found.tables.items():
        assert len(table) == len(cuts[name].values)
        assert len(set(table.tolist())) == len(table)
        assert 0 <= int(table.min()) <= int(table.max()) < count
    assert found.cost == pytest.approx(total_cost(cuts, found.tables, count))


@untimed
@given(SEEDS)
def test_two_models_are_matched_as_well_as_can_be(seed: int) -> None:
    """Against every assignment of four pages."""
    from itertools import permutations

    cuts = several(seed, [4, 4])
    best = min(
        total_cost(cuts, {"m0": torch.arange(4), "m1": torch.tensor(one)}, 4)
        for one in permutations(range(4))
    )
    assert place(cuts, 4).cost == pytest.approx(best)


@untimed
@given(SEEDS)
def test_matching_costs_less_than_chance(seed: int) -> None:
    """Against true occupants: of three models too."""
    cuts = several(seed, [40, 36, 30])
    assert place(cuts, 44).cost < 0.9 * place(cuts, 44, method="random", seed=seed).cost


def test_with_room_for_all_nothing_is_shared_but_what_is_equal() -> None:
    """N3: equal pages meet, others do not, and it costs nothing."""
    one, other = drawn(0, 5), drawn(1, 5, first=100)
    other = Cut(other.values, other.fisher, [100, 2, 102, 4, 104])
    found = place({"a": one, "b": other}, 8)
    both = set(found.tables["a"].tolist()) & set(found.tables["b"].tolist())
    assert both == {int(found.tables["a"][2]), int(found.tables["a"][4])}
    assert found.cost == 0


def test_equal_pages_meet_where_there_is_little_room() -> None:
    """Whatever they would cost elsewhere."""
    one, other = drawn(0, 6), drawn(1, 6, first=100)
    other = Cut(other.values, other.fisher, [100, 101, 3, 103, 0, 105])
    found = place({"a": one, "b": other}, 7)
    assert int(found.tables["b"][2]) == int(found.tables["a"][3])
    assert int(found.tables["b"][4]) == int(found.tables["a"][0])


def test_the_most_important_pages_stay_private() -> None:
    """Where there is room, and no more of them than that."""
    cuts = several(3, [10, 10])
    heavy = cuts["m1"].fisher
    heavy[7] *= 1000
    found = place(cuts, 11, own=4)
    assert int(found.tables["m1"][7]) not in found.tables["m0"].tolist()
    assert len(set(torch.cat(list(found.tables.values())).tolist())) == 11


@untimed
@given(SEEDS, st.integers(20, 60), st.integers(0, 20), st.floats(0.5, 3))
def test_greedy_with_swaps_is_an_assignment_near_the_best(seed: int, rows: int, spare: int, tail: float) -> None:  # fmt: skip
    """Swaps never make it dearer."""
    p, q = drawn(seed, rows, spread=tail), drawn(seed + 1, rows + spare, spread=tail)
    costs = costs_between(left_side(p.values, p.fisher), right_side(q.values, q.fisher))
    every = torch.arange(rows)
    first = greedy(costs)
    found = polished(costs, first)
    assert len(set(found.tolist())) == rows
    total = float(costs[every, found].sum())
    assert total <= float(costs[every, first].sum()) * (1 + 1e-9)
    assert total <= 1.5 * float(costs[every, exact(costs)].sum())


def test_very_many_pages_are_matched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page once, and far cheaper than chance."""
    p, q = drawn(0, 300), drawn(1, 310)
    left, right = left_side(p.values, p.fisher), right_side(q.values, q.fisher)
    costs, every = costs_between(left, right), torch.arange(300)
    whole = float(costs[every, exact(costs)].sum())
    monkeypatch.setattr(matching, "WHOLE", 100)
    monkeypatch.setattr(matching, "BLOCK", 64)
    found = matching.matched(left, right)
    assert len(set(found.tolist())) == 300
    total = float(costs[every, found].sum())
    assert whole <= total < 0.7 * float(costs[every, every].sum())
