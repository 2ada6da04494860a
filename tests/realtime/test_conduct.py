"""P6: who overruns loses its class, and has it again after three jobs that did not."""

from __future__ import annotations

import pytest

from gpushare_kernel.realtime.conduct import AMENDS, QUIET, Allowance, Conduct, Telling
from gpushare_kernel.realtime.model import Kind


def test_a_task_loses_its_class_once_and_makes_amends() -> None:
    """Job 0 overruns in two layers; then AMENDS good ones are needed, in a row."""
    conduct = Conduct(Kind.RT)
    assert conduct.overran(0)
    assert not conduct.overran(0)
    assert (conduct.overruns, conduct.runs_as) == (1, Kind.BE)
    assert not conduct.ended(0)
    for number in range(1, AMENDS):
        assert not conduct.ended(number)
    assert not conduct.overran(AMENDS)  # it has no class to lose, but begins anew
    assert not conduct.ended(AMENDS)
    back = [conduct.ended(number) for number in range(AMENDS + 1, 2 * AMENDS + 1)]
    assert back == [False] * (AMENDS - 1) + [True]
    assert conduct.runs_as is Kind.RT
    assert conduct.overruns == 2


def test_best_effort_has_nothing_to_lose() -> None:
    """It is counted all the same."""
    conduct = Conduct(Kind.BE)
    assert not conduct.overran(0)
    assert conduct.runs_as is Kind.BE
    assert conduct.overruns == 1


def test_a_task_that_behaves_is_left_alone() -> None:
    """No job of it changes anything."""
    conduct = Conduct(Kind.RT)
    assert not any(conduct.ended(number) for number in range(10))
    assert conduct.runs_as is Kind.RT


def left(allowed: Allowance, layer: int, spent: float) -> float:
    return allowed.limit(layer, spent, blamed=False).seconds


def test_layers_share_what_they_have() -> None:
    """P6: a layer that is quick leaves its time to the others; bounds ask for the sums and for the longest piece only."""
    allowed = Allowance(3, [2.0, 1.0, 4.0, 3.0])
    assert [allowed.has(layer) for layer in (2, 3, 6, 7)] == [False, True, True, False]
    assert left(allowed, 3, 0.0) == 4.0  # no longer than the longest: others wait for a piece
    assert left(allowed, 4, 6.5) == pytest.approx(0.5)  # and the last one begins when it was proven
    assert left(allowed, 6, 6.5) == pytest.approx(3.5)
    limit = allowed.limit(5, 6.5, blamed=False)
    assert (limit.first, limit.spent, limit.worst) == (3, 6.5, 7.0)
    limit = allowed.limit(3, 0.0, blamed=False)
    assert (limit.first, limit.spent, limit.worst) == (3, 0.0, 2.0)


def test_a_stage_that_nobody_interrupts_is_one_piece() -> None:
    """Mode `stage`: only its sum is counted on."""
    allowed = Allowance(0, [2.0, 1.0, 4.0], pieces=False)
    assert [left(allowed, 0, 0.0), left(allowed, 1, 6.5), left(allowed, 2, 6.5)] == [7.0, 0.5, 0.5]


def test_who_has_overrun_is_judged_by_the_layer_from_then_on() -> None:
    """Its later layers are not to blame for an earlier one; but one that is too long by itself is."""
    assert Allowance(0, [2.0, 1.0]).limit(1, 9.0, blamed=True).seconds == 2.0


def test_who_flips_is_told_of_once_in_a_while() -> None:
    """A loss at once, and that it is over; then quiet: nobody reads that a loss is over that he was not told of."""
    telling = Telling()
    assert telling.lost("lost 1", 0.0) == "lost 1"
    assert telling.kept("kept 1", 0.3) == "kept 1"
    for at in (1.0, 5.0, 0.2 + QUIET):
        assert telling.lost(f"lost at {at}", at) is None
        assert telling.kept(f"kept at {at}", at) is None
    assert telling.lost("lost 2", 0.3 + QUIET) == "lost 2"
    assert telling.lost("lost 3", 0.4 + QUIET) is None


def test_a_loss_that_lasts_is_told_in_the_end() -> None:
    """It came while it was quiet; once told it is not told again."""
    telling = Telling()
    telling.lost("lost 1", 0.0)
    telling.kept("kept 1", 1.0)
    assert telling.lost("lost 2", 2.0) is None
    assert telling.overdue(5.0) is None
    assert telling.overdue(1.0 + QUIET) == "lost 2"
    assert telling.overdue(2.0 + 2 * QUIET) is None
    assert telling.kept("kept 2", 2.1 + 2 * QUIET) == "kept 2"


def test_losses_are_counted() -> None:
    """Whatever is told: a report says how often."""
    conduct = Conduct(Kind.RT)
    for first in (0, 10):
        conduct.overran(first)
        for number in range(first, first + AMENDS + 1):
            conduct.ended(number)
    assert (conduct.losses, conduct.runs_as) == (2, Kind.RT)


def test_a_class_is_had_again_when_no_job_without_it_is_left() -> None:
    """P6: a piece of one that is left would hold others up beside jobs that have the class: no bound counts both."""
    conduct = Conduct(Kind.RT)
    conduct.overran(0)
    conduct.ended(0, left=AMENDS + 2)
    assert not any(
        conduct.ended(number, left=AMENDS + 2 - number) for number in range(1, AMENDS + 2)
    )
    assert conduct.runs_as is Kind.BE
    assert conduct.ended(AMENDS + 2, left=0)
    assert conduct.runs_as is Kind.RT
