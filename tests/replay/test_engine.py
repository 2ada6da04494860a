"""The replay's engine: work is conserved, lanes come before work, and the same input gives the same outcome."""

from __future__ import annotations

import pytest

from gpushare_kernel.core.values import GiB
from gpushare_kernel.replay.costs import FREE
from gpushare_kernel.replay.engine import Settings, auto_turn, replay
from gpushare_kernel.replay.trace import BadTrace, TraceJob


def test_one_job_alone_takes_its_duration() -> None:
    outcome = replay([TraceJob("a", 5.0, 12.0)], Settings())
    assert outcome.jobs[0].submitted == outcome.jobs[0].first_run == 5.0
    assert outcome.jobs[0].ended == pytest.approx(17.0)
    assert outcome.summary()["makespan_s"] == pytest.approx(12.0)


def test_fair_lets_two_jobs_end_together() -> None:
    jobs = [TraceJob("a", 0.0, 10.0), TraceJob("b", 0.0, 10.0)]
    first, second = replay(jobs, Settings(policy="fair", costs=FREE)).jobs
    assert first.ended == pytest.approx(20.0, abs=0.3)
    assert second.ended == pytest.approx(20.0, abs=0.3)


def test_a_turn_ends_at_a_boundary() -> None:
    jobs = [TraceJob("a", 0.0, 9.0, iteration=3.0), TraceJob("b", 0.0, 1.0)]
    settings = Settings(policy="fair", boundary_grace=1e9, costs=FREE)
    first, second = replay(jobs, settings).jobs
    assert len(first.stretches) > 1
    for begin, end in first.stretches:
        assert (end - begin) / 3.0 == pytest.approx(round((end - begin) / 3.0))
    assert second.first_run == pytest.approx(3.0)


def test_without_room_a_job_waits_for_its_lane() -> None:
    big = {"persistent": 3 * GiB, "ephemeral": 4 * GiB}
    jobs = [TraceJob("a", 0.0, 10.0, **big), TraceJob("b", 1.0, 10.0, **big)]
    second = replay(jobs, Settings(capacity=8 * GiB, costs=FREE)).jobs[1]
    assert second.lane_at == second.first_run == pytest.approx(10.0)
    assert second.queued == pytest.approx(9.0)


def test_who_never_fits_is_refused_before_anything_runs() -> None:
    jobs = [TraceJob("a", 0.0, 1.0), TraceJob("b", 0.0, 1.0, ephemeral=20 * GiB)]
    with pytest.raises(BadTrace, match=r"job b never fits: it needs 20\.0 GiB .* 16\.0 GiB"):
        replay(jobs, Settings())


def test_turns_grow_with_the_work() -> None:
    assert auto_turn([TraceJob("a", 0.0, 5.0)]) == 0.1
    assert auto_turn([TraceJob("a", 0.0, 40_000.0)]) == pytest.approx(2.0)
