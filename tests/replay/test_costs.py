"""What moves and turns cost in a replay is what was measured and committed, and nothing else."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from gpushare_kernel.replay.costs import FREE, MEASURED, Costs

ROOT = Path(__file__).parents[2]
SOURCES = {
    "handover": ("handover", "boundary_to_grant", 1e-6),
    "pause": ("gpu_switching", "conv_pause", 1e-3),
    "resume": ("gpu_switching", "conv_resume", 1e-3),
    "checkpoint": ("gpu_arena", "checkpoint_0GiB_none", 1.0),
    "thaw": ("gpu_arena", "restore_0GiB_none", 1.0),
    "park_rate": ("gpu_parked_cell", "park_rate", 1e9),
    "restore_rate": ("gpu_parked_cell", "restore_rate", 1e9),
}
"""Cost -> row, figure, and its unit in seconds or bytes a second."""
NOT_TIMED = {"trim", "stays"}


def median(row: str, figure: str) -> float:
    found = json.loads((ROOT / "benchmarks" / "results" / f"{row}.json").read_text())
    return float(found["medians"][figure])


@pytest.mark.parametrize("cost", SOURCES)
def test_each_cost_is_a_committed_median_to_three_digits(cost: str) -> None:
    row, figure, unit = SOURCES[cost]
    assert getattr(MEASURED, cost) == pytest.approx(float(f"{median(row, figure) * unit:.3g}"), rel=1e-9)  # fmt: skip


def test_no_cost_is_without_a_source() -> None:
    assert {field.name for field in fields(Costs)} == SOURCES.keys() | NOT_TIMED


def test_what_is_not_timed_apart_was_not_seen_in_a_total_either() -> None:
    """A trim: two share a lane that passes on once a second."""
    assert MEASURED.trim == 0.0
    assert median("gpu_lane_mates", "total_of_alone") == pytest.approx(1.0, abs=5e-4)


@pytest.mark.parametrize(("row", "figure"), [(row, figure) for row, figure, _ in SOURCES.values()])
def test_the_docs_and_the_code_name_where_each_is_from(row: str, figure: str) -> None:
    code = (ROOT / "gpushare_kernel" / "replay" / "costs.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    for text in (code, page):
        assert row in text
        assert figure in text


def test_a_small_move_takes_what_the_driver_takes_and_a_large_one_goes_by_its_size() -> None:
    assert MEASURED.park(1) == MEASURED.checkpoint
    assert MEASURED.park(4 * 10**9) == pytest.approx(4 / 2.14)
    assert MEASURED.restore(1) == MEASURED.thaw
    assert MEASURED.restore(4 * 10**9) == pytest.approx(4 / 3.85)
    assert FREE.park(10**12) == FREE.restore(10**12) == 0.0
