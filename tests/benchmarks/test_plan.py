"""Which rows a call runs: those asked for, not done yet, and short enough for the time that is left."""

from __future__ import annotations

import pytest

from benchmarks.gpu.plan import PARKING_TESTS, ROWS, TESTS, Budget, Plan, Row, chosen

LONG, SHORT, LAST = Row("gpu_long", 100.0), Row("gpu_short", 10.0, quick=5.0), Row("gpu_last", 20.0)
ALL = (LONG, SHORT, LAST)


def plan(end: float, *done: str) -> Plan:
    return Plan(ALL, done, Budget(end))


def test_rows_run_in_the_table_s_order():
    """Whatever the order they are named in; the prefix may be left out."""
    assert chosen(["last", "gpu_long"], ALL) == [LONG, LAST]
    assert chosen([], ALL) == list(ALL)


def test_a_name_that_is_no_row_is_refused():
    """With the names that are."""
    with pytest.raises(ValueError, match=r"no row lnog\. There are gpu_long, gpu_short"):
        chosen(["lnog"], ALL)


def test_every_row_has_a_folder_and_the_table_has_every_row():
    """No row is forgotten by the script, none is made up."""
    from benchmarks.gpu.checkout import ROOT

    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("gpu_*/run.py")}
    assert {row.name for row in ROWS} == folders | {TESTS, PARKING_TESTS}
    assert all((ROOT / "benchmarks" / name / "README.md").is_file() for name in folders)


def test_a_row_that_does_not_fit_is_passed_over():
    """A short one may still go; the long one is for another call."""
    made = plan(50.0)
    assert made.next((), now=0.0) is SHORT
    assert made.next([SHORT.name], now=0.0) is LAST
    assert made.next([SHORT.name, LAST.name], now=0.0) is None
    assert made.left([SHORT.name, LAST.name]) == [LONG]


def test_nothing_starts_when_the_time_is_nearly_used():
    """Not even the shortest."""
    assert plan(50.0).next((), now=45.0) is None


def test_what_is_done_is_not_run_again():
    """A result of an earlier call stands."""
    made = plan(1000.0, LONG.name, SHORT.name)
    assert made.waiting() == [LAST]
    assert made.next((), now=0.0) is LAST


def test_a_row_is_ended_before_the_call_is():
    """Its limit is twice its estimate and some, and never beyond the call's end."""
    budget = Budget(end=100.0)
    assert budget.limit(SHORT, now=0.0) == 50.0
    assert budget.limit(SHORT, now=70.0) == 30.0


def test_a_quick_run_plans_with_quick_rows():
    """So that all of them fit a call."""
    assert SHORT.takes(quick=True) == 5.0
    assert Row("gpu_x", 20.0, quick=45.0).takes(quick=True) == 20.0
    assert Budget(end=7.0, quick=True).fits(SHORT, now=0.0)
    assert not Budget(end=7.0).fits(SHORT, now=0.0)
