"""What is computed of windows."""

from __future__ import annotations

import pytest

from benchmarks.common import Figure
from benchmarks.gpu import reckoning as st
from benchmarks.gpu.mixes import ARMS, of_mix
from benchmarks.gpu.pauses import Line, Pause, unexplained
from benchmarks.gpu.windows import Mark, Seen, between


def seen(*rates: float) -> Seen:
    return Seen(list(rates), [None] * len(rates))


def test_a_share_error_is_that_of_the_worst():
    """In points, against the weights."""
    assert st.share_error([76.0, 24.0], (3, 1)) == pytest.approx(1.0)
    assert st.share_error([30.0, 30.0, 40.0], (1, 1, 1)) == pytest.approx(6.6667, abs=1e-3)


def test_ratios_compare_what_was_measured_side_by_side():
    """A window of one arm by the window of the other in the same round; unequal numbers are a mistake."""
    assert st.ratios([9.0, 8.0], [10.0, 8.0]) == [0.9, 1.0]
    with pytest.raises(ValueError, match="longer"):
        st.ratios([1.0], [1.0, 2.0])


def test_progress_is_measured_against_a_fair_share():
    """A job at a quarter of its rate alone among four has exactly its share."""
    assert st.progress_of_share([25.0, 50.0, 25.0, 0.0], [100.0] * 4) == [1.0, 2.0, 1.0, 0.0]
    assert st.total_progress([25.0, 50.0], [100.0, 100.0]) == 0.75


def test_a_job_s_value_is_its_median_over_the_rounds():
    """One bad window of one job does not count."""
    assert st.by_job([[1.0, 2.0], [0.1, 2.0], [1.0, 2.2]]) == [1.0, 2.0]


def test_pooled_shares_weigh_windows_by_what_was_done_in_them():
    """A window in which little was done says little about 30 s."""
    assert st.pooled([[50.0, 50.0], [90.0, 10.0]], [3.0, 1.0]) == [60.0, 40.0]


def test_what_lies_between_two_marks_is_a_rate():
    """Steps and device seconds are differences; who has no account stays without one."""
    before = Mark(10.0, [100, 0], [1.0, None])
    after = Mark(12.0, [300, 10], [2.5, None])
    found = between(before, after)
    assert found.rates == [100.0, 5.0]
    assert found.device == [1.5, None]
    assert found.total == 105.0


def test_the_ledger_s_shares_are_those_of_device_seconds():
    """What the broker counted, in percent."""
    assert Seen([1.0, 1.0], [3.0, 1.0]).ledger == [75.0, 25.0]


def test_a_mix_is_judged_by_its_worst_job_and_by_its_sum():
    """Each job's median against its share, and the sum of all progress against free co-run, in each arm of ours."""
    windows = {
        "seen": [seen(25.0, 24.0), seen(25.0, 20.0), seen(25.0, 24.0)],
        "enforced": [seen(25.0, 10.0)] * 3,
        "free": [seen(50.0, 10.0)] * 3,
    }
    alone = {"a": [50.0] * 3, "b": [50.0] * 3}
    found = {figure.name: figure for figure in of_mix(("a", "b"), windows, alone)}
    assert found["a_b_seen_jobs_of_share"].values == pytest.approx([1.0, 0.96])
    assert found["a_b_seen_jobs_of_share"].met
    assert not found["a_b_enforced_jobs_of_share"].met
    assert found["a_b_seen_of_free"].median == pytest.approx(0.98 / 1.2)
    assert found["a_b_free_jobs_of_share"].target == ""
    assert "a_b_free_of_free" not in found
    assert set(windows) == set(ARMS)


class TestPauses:
    """Which pauses were explained."""

    PAUSE = Pause(10.0, 18.0)

    def test_one_that_nobody_explained_counts(self):
        """Eight seconds without a word."""
        assert unexplained([self.PAUSE], []) == [self.PAUSE]

    @pytest.mark.parametrize("at", [10.0, 14.0, 18.0, 19.5])
    def test_a_line_during_it_or_right_after_it_explains_it(self, at):
        """ "Waiting ..." while it lasts, "Was paused for 8 s" once it is over."""
        assert not unexplained([self.PAUSE], [Line(at, "Was paused for 8 s: others had a turn.")])

    @pytest.mark.parametrize(
        "line",
        [
            Line(9.0, "Waiting for GPU memory: needs 6.0 GiB, 2.1 free."),
            Line(21.0, "Was paused for 8 s: others had their turn."),
            Line(14.0, "Shared with 3 people: about 1/4 speed"),
            Line(14.0, "epoch 3, loss 0.4"),
        ],
    )
    def test_another_line_does_not(self, line):
        """One of another time, one that says a cell is slow, and the cell's own output."""
        assert unexplained([self.PAUSE], [line]) == [self.PAUSE]

    def test_a_short_one_needs_no_word(self):
        """Turns are pauses, too."""
        assert not unexplained([Pause(10.0, 14.9)], [])


def test_a_figure_of_the_worst_value_is_missed_by_one():
    """`jobs_of_share` holds for each job, not for the median of them."""
    assert not Figure("x", "", [1.0, 1.0, 0.9], at_least=0.95, worst=True).met
    assert Figure("x", "", [1.0, 1.0, 0.9], at_least=0.95).met
