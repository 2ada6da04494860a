"""How fast a session goes on: only time in which its boundaries could be met counts."""

from __future__ import annotations

from gpushare_kernel.core.pace import MEMORY, Pace


def test_whose_loop_begins_late_is_not_taken_for_slow() -> None:
    """Two seconds of loading on the device, then 100 steps a second: its pace is 100, not a mean of both."""
    pace = Pace()
    pace.rate = pace.solo
    for _ in range(20):
        pace.seconds = MEMORY / 20
        pace.take(0)
    for _ in range(3):
        pace.seconds = 0.1
        pace.take(10)
    assert pace.seen
    assert 90 < pace.solo.value < 110


def test_who_goes_slower_is_noticed() -> None:
    """A loop that counts and then stalls is slow: only before its first step is time left out."""
    pace = Pace()
    pace.rate = pace.solo
    pace.seconds = 1.0
    pace.take(100)
    pace.seconds = 1.0
    assert pace.take(10), "another pace"
    assert pace.solo.value < 60
