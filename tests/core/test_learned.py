"""What runs have shown, and what the next is taken to need: the margin, the median, where it holds."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gpushare_kernel.core.learned import GRAIN, KEPT, Learned, Place, Run, with_margin
from gpushare_kernel.core.values import GiB, MiB, TiB


@pytest.mark.parametrize(
    ("seen", "asked"),
    [
        ([4000 * MiB], 5000 * MiB),  # one run shows no spread: a quarter
        ([4000 * MiB, 4000 * MiB], 4400 * MiB),  # no spread: a tenth
        ([3000 * MiB, 4000 * MiB], 5000 * MiB),  # a quarter was seen
        ([0, 1000 * MiB], 1250 * MiB),  # never more than a quarter
        ([800 * MiB, 1024 * MiB, 700 * MiB], 1152 * MiB),  # an eighth, without the largest
        ([GiB] * 7 + [40 * GiB], 44 * GiB),  # one run out of line does not count twice
        ([40 * GiB] + [GiB] * 7, 44 * GiB),
        ([GiB, 2 * GiB, 40 * GiB], 50 * GiB),
        ([40 * GiB] * 2 + [GiB] * 6, 50 * GiB),
        ([10 * MiB], 10 * MiB + GRAIN),  # what is measured is as coarse as that
        ([0, 0], GRAIN),
    ],
)
def test_the_margin(seen: list[int], asked: int) -> None:
    """The most that was seen x (1 + spread), within bounds."""
    assert with_margin(seen) == asked


@given(st.lists(st.integers(0, TiB), min_size=2, max_size=KEPT))
def test_the_margin_is_a_tenth_at_least_and_a_quarter_at_most(seen: list[int]) -> None:
    """Whatever was seen."""
    most = max(seen)
    assert most + most // 10 <= with_margin(seen) <= most + max(GRAIN, most // 4)


def test_old_runs_stop_counting() -> None:
    """The last eight are kept; how often it ran in all is counted on."""
    learned = Learned(1, (Run(8 * GiB, 0, 900.0),))
    for n in range(KEPT):
        learned = learned.and_then(Run(GiB, 512 * MiB, 10.0 + n, 0.5))
    assert (learned.count, len(learned.runs)) == (KEPT + 1, KEPT)
    assert learned.persistent == GiB + GiB // 10
    assert learned.least == (GiB, 512 * MiB)
    assert (learned.time, learned.iteration) == (14.0, 0.5)
    assert learned.last == Run(GiB, 512 * MiB, 17.0, 0.5)


def test_what_was_never_seen_is_not_known() -> None:
    """A run that never had the device has no time, one without boundaries no iteration."""
    learned = Learned(1, (Run(GiB, 0, 0.0),))
    assert (learned.time, learned.iteration) == (None, None)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (Place("cuda", "H100", ("torch 2.9.0",)), ""),
        (Place("cuda", "H100"), ""),
        (Place("cuda", "H100", ("jax 0.8",)), ""),
        (Place("cuda", "H100", ("jax 0.8", "torch 2.8.0")), "torch 2.8.0"),
        (Place("cuda", "A100", ("torch 2.9.0",)), "A100"),
        (Place("host", "H100"), "H100"),
    ],
)
def test_what_is_otherwise_elsewhere(other: Place, says: str) -> None:
    """The device first; versions count where both sides know them."""
    assert Place("cuda", "H100", ("torch 2.9.0",)).differs(other) == says


def test_frameworks_that_are_met_later_are_added() -> None:
    """The first run of a kernel imports what the next begins with."""
    early, late = Place("cuda", "H100", ("cupy 13",)), Place("cuda", "H100", ("torch 2.9.0",))
    assert early.joined(late) == Place("cuda", "H100", ("cupy 13", "torch 2.9.0"))
