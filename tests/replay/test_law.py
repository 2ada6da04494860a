"""The co-run law: its shares, what it promises, and how near it comes to what was measured."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_mixes.law import DIGITS, LSTM, badness, measured, table
from gpushare_kernel.replay.law import DRIVER, STREAMS, Law, max_min

DEMAND = st.floats(0.05, 1.0)


def test_alone_is_full_speed() -> None:
    assert DRIVER.speeds([0.3]) == [1.0]
    assert DRIVER.speeds([]) == []


def test_shares_are_max_min() -> None:
    assert max_min([0.1, 0.8, 0.8], 0.9) == pytest.approx([0.1, 0.4, 0.4])
    assert max_min([0.1, 0.2], 0.9) == pytest.approx([0.1, 0.2])


@given(st.lists(DEMAND, min_size=1, max_size=8))
def test_nobody_is_faster_than_alone_and_the_device_has_one_second_a_second(demands) -> None:
    for law in (DRIVER, STREAMS):
        speeds = law.speeds(demands)
        assert all(0 < speed <= 1 for speed in speeds)
        assert sum(s * d for s, d in zip(speeds, demands, strict=True)) <= 1 + 1e-9


@given(st.lists(DEMAND, min_size=1, max_size=7), DEMAND)
def test_one_more_makes_nobody_faster(demands, more) -> None:
    before = DRIVER.speeds(demands)
    after = DRIVER.speeds([*demands, more])
    assert all(b >= a - 1e-12 for b, a in zip(before, after, strict=False))


def test_no_constants_near_these_meet_what_was_measured_better() -> None:
    """They are the fit to the committed results, to two digits."""
    mixes, step = measured(), 1 / DIGITS
    best = badness(mixes, DRIVER, LSTM)
    for c, k, d in product((-step, 0.0, step), repeat=3):
        law = Law(DRIVER.together + c, DRIVER.friction + k)
        assert badness(mixes, law, LSTM + d) >= best - 1e-12


def test_two_small_jobs_on_the_p100_go_as_figure_13_says() -> None:
    """Salus: two alexnet_25 of 58.1 s take 89.1 s beside each other, of which 4.5 s are their start."""
    assert 4.5 + 58.1 / STREAMS.speeds([0.728, 0.728])[0] == pytest.approx(89.1, abs=0.3)


def test_another_law_may_be_given() -> None:
    assert Law(together=0.5, friction=0.0).speeds([1.0, 1.0]) == [0.25, 0.25]


def test_the_documented_fit_is_the_law_beside_the_committed_results() -> None:
    page = Path(__file__).parents[2] / "docs" / "replay.md"
    assert table(measured()) in page.read_text(encoding="utf-8")
