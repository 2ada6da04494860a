"""The replay's engine: work is conserved, lanes come before work, and the same input gives the same outcome."""

from __future__ import annotations

import dataclasses

import pytest

from gpushare_kernel.core.values import GiB
from gpushare_kernel.replay.costs import FREE, MEASURED
from gpushare_kernel.replay.engine import Settings, auto_turn, replay
from gpushare_kernel.replay.report import waits_text
from gpushare_kernel.replay.rows import BadTrace
from gpushare_kernel.replay.trace import TraceJob


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


def test_a_turn_costs_its_hand_over() -> None:
    jobs = [TraceJob(name, 0.0, 10.0, iteration=0.01) for name in "ab"]
    outcome = replay(jobs, Settings(policy="fair"))
    turns = sum(job.turns for job in outcome.jobs)
    assert turns > 100
    late = outcome.summary()["makespan_s"] - 20.0
    assert late == pytest.approx(turns * MEASURED.handover, rel=0.1)


def test_who_is_paused_from_outside_pays_for_it() -> None:
    jobs = [TraceJob(name, 0.0, 10.0, iteration=0.3) for name in "ab"]
    outcome = replay(jobs, Settings(policy="fair"))
    turns = sum(job.turns for job in outcome.jobs)
    late = outcome.summary()["makespan_s"] - 20.0
    assert late == pytest.approx(turns * MEASURED.resume, rel=0.1)


def test_a_short_job_has_the_memory_of_a_long_one_parked() -> None:
    sizes = {"persistent": 2 * GiB, "ephemeral": 5 * GiB}
    jobs = [
        TraceJob("long", 0.0, 1000.0, declared=1000.0, **sizes),
        TraceJob("short", 100.0, 10.0, declared=10.0, **sizes),
    ]
    settings = Settings(policy="srtf", capacity=8 * GiB)
    long, short = replay(jobs, settings).jobs
    assert short.first_run == pytest.approx(1000.0, abs=1.0)
    assert long.parks == ()
    long, short = replay(jobs, dataclasses.replace(settings, parking=True)).jobs
    park, restore = MEASURED.park(2 * GiB), MEASURED.restore(2 * GiB)
    assert short.first_run == pytest.approx(100.0 + park, abs=0.3)
    ((begin, end),) = long.parks
    assert end - begin == pytest.approx(park + 10.0 + restore, abs=0.3)
    assert long.ended == pytest.approx(1010.0 + park + restore, abs=0.3)
    assert long.longest_wait == pytest.approx(park + 10.0 + restore, abs=0.3)


def test_realtime_goes_first() -> None:
    jobs = [
        TraceJob("a", 0.0, 10.0),
        TraceJob("b", 1.0, 10.0),
        TraceJob("r", 2.0, 1.0, realtime=True),
    ]
    done = {job.name: job for job in replay(jobs, Settings(policy="srtf", costs=FREE)).jobs}
    assert done["r"].ended == pytest.approx(3.0, abs=0.3)


def test_weights_of_a_recorded_day_count() -> None:
    """By user first, then among a user's own."""
    jobs = [
        TraceJob("a", 0.0, 60.0, "ann", user_weight=3.0, weight=2.0),
        TraceJob("a'", 0.0, 60.0, "ann", user_weight=3.0),
        TraceJob("b", 0.0, 20.0, "bob"),
    ]
    outcome = replay(jobs, Settings(policy="fair", costs=FREE))
    ended = {job.name: job.ended for job in outcome.jobs}
    assert ended["b"] == pytest.approx(80.0, abs=1.0)  # a quarter of the time for 20 s of work
    assert ended["a"] == pytest.approx(110.0, abs=1.0)  # 1/2 until then, and 2/3 of the rest


def test_who_stood_still_longest_is_told_where_anybody_did() -> None:
    alone = replay([TraceJob("a", 0.0, 10.0)], Settings(policy="fifo", costs=FREE))
    both = [TraceJob("a", 0.0, 10.0), TraceJob("b", 0.0, 10.0, user="ann")]
    assert waits_text({"fifo": alone}) == ""
    told = waits_text({"alone": alone, "fifo": replay(both, Settings(policy="fifo", costs=FREE))})
    assert told == "Who stood still longest: fifo: b of ann, 10.0 s."
