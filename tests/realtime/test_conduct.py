"""P6: who overruns loses its class, and has it again after three jobs that did not."""

from __future__ import annotations

from gpushare_kernel.realtime.conduct import AMENDS, Conduct
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
