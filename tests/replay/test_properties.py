"""What holds for every trace, policy, admission and parking: all jobs end, work is conserved, and again is the same."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpushare_kernel.core.policies import AGEING, POLICIES
from gpushare_kernel.core.values import MiB
from gpushare_kernel.replay.costs import FREE, MEASURED
from gpushare_kernel.replay.engine import Engine, Settings, replay
from gpushare_kernel.replay.law import DRIVER, Law
from gpushare_kernel.replay.trace import TraceJob

CAPACITY = 1000 * MiB
KNOWN = ("fair", "fifo", "pack", "srtf")
SLICED = Law(together=1.0, friction=0.0)
"""Whoever runs beside others goes so much slower: nothing is gained and nothing lost."""

A_TURN = MEASURED.handover + MEASURED.trim + MEASURED.pause + MEASURED.resume
A_MOVE = MEASURED.park(CAPACITY) + MEASURED.restore(CAPACITY)
"""Seconds that the device stands idle for one turn, and for one park and restore, at most."""


@st.composite
def queues(draw: st.DrawFn) -> list[TraceJob]:
    """Up to thirty jobs of one user that say how long they take, from a blink to minutes."""
    jobs, at = [], 0.0
    for n in range(draw(st.integers(3, 30))):
        at += draw(st.sampled_from([0.0, 0.5, 3.0, 20.0, 60.0]))
        duration = draw(st.sampled_from([0.2, 1.0, 4.0, 12.0, 60.0, 200.0]))
        persistent, ephemeral = (draw(st.sampled_from(sizes)) * MiB for sizes in ([0, 50, 200], [0, 100, 400, 800]))  # fmt: skip
        iteration = min(duration, draw(st.sampled_from([0.01, 0.1, 0.7])))
        jobs.append(TraceJob(name=f"j{n}", submitted=at, duration=duration, persistent=persistent, ephemeral=ephemeral, iteration=iteration, demand=1.0, declared=duration))  # fmt: skip
    return jobs


@st.composite
def traces(draw: st.DrawFn, *, light: bool = True) -> list[TraceJob]:
    """Up to ten jobs of three users, many of which do not fit beside each other."""
    jobs, at = [], 0.0
    for n in range(draw(st.integers(1, 10))):
        at += draw(st.sampled_from([0.0, 0.0, 0.5, 3.0]))
        duration = draw(st.sampled_from([0.2, 1.0, 4.0, 12.0]))
        persistent = draw(st.sampled_from([0, 50, 200])) * MiB
        jobs.append(
            TraceJob(
                name=f"j{n}",
                submitted=at,
                duration=duration,
                user=draw(st.sampled_from(["", "ann", "bob"])),
                persistent=persistent,
                ephemeral=draw(st.sampled_from([0, 100, 400, 800])) * MiB,
                iteration=min(duration, draw(st.sampled_from([0.01, 0.1, 0.7]))),
                demand=draw(st.sampled_from([0.2, 0.5, 1.0])) if light else 1.0,
                declared=draw(st.sampled_from([None, duration, duration / 2])),
            )
        )
    return jobs


def options(**more: object) -> st.SearchStrategy[Settings]:
    return st.builds(
        Settings,
        policy=st.sampled_from(KNOWN),
        admission=st.sampled_from(["policy", "arrival"]),
        parking=st.booleans(),
        single_lane=st.booleans(),
        capacity=st.just(CAPACITY),
        **{name: st.just(value) for name, value in more.items()},
    )


@settings(deadline=None, max_examples=120)
@given(traces(), options())
def test_all_jobs_end_and_none_runs_before_its_lane(jobs: list[TraceJob], chosen: Settings) -> None:
    engine = Engine(jobs, chosen)
    outcome = engine.run()
    assert [job.name for job in outcome.jobs] == [job.name for job in jobs]
    for job in outcome.jobs:
        assert job.submitted <= job.lane_at <= job.first_run < job.ended
        assert job.stretches[0][0] == job.first_run
        assert job.stretches[-1][1] == job.ended
        for (_, end), (begin, _) in zip(job.stretches, job.stretches[1:], strict=False):
            assert end < begin
        for begin, end in job.parks:
            assert not any(b < end and begin < e for b, e in job.stretches)
    assert not engine.core.sessions
    assert engine.core.book.table.free == CAPACITY


@settings(deadline=None, max_examples=120)
@given(traces(), options(costs=FREE))
def test_work_done_is_work_asked(jobs: list[TraceJob], chosen: Settings) -> None:
    """Device time is duration x demand, to the last: nothing is lost in a turn, a pause or a park."""
    for asked, job in zip(jobs, replay(jobs, chosen).jobs, strict=True):
        assert job.device_time == pytest.approx(asked.duration * asked.demand)


@settings(deadline=None, max_examples=120)
@given(traces(light=False), options(law=SLICED))
def test_the_makespan_is_the_work_and_its_costs(jobs: list[TraceJob], chosen: Settings) -> None:
    """Where running together gains nothing: never less than the work, never more than the work, its costs and the waits for jobs to come."""
    outcome = replay(jobs, chosen)
    work = sum(job.duration for job in jobs)
    assert outcome.busy >= work - 1e-6
    moves = sum(len(job.parks) for job in outcome.jobs)
    costs = sum(job.turns for job in outcome.jobs) * A_TURN + moves * A_MOVE
    last = max(job.submitted for job in jobs) - jobs[0].submitted
    assert outcome.summary()["makespan_s"] <= work + last + costs + 1e-6


@settings(deadline=None, max_examples=40)
@given(traces(), options())
def test_again_is_the_same(jobs: list[TraceJob], chosen: Settings) -> None:
    first, second = (msgspec.json.encode(replay(jobs, chosen).jobs) for _ in range(2))
    assert first == second


def test_the_policies_are_those_we_know() -> None:
    assert set(KNOWN) <= set(POLICIES)
    assert MEASURED != FREE
    assert DRIVER.together < SLICED.together


@settings(deadline=None, max_examples=60)
@given(jobs=queues(), parking=st.booleans())
def test_nobody_waits_for_more_under_srtf_than_its_bound_says(
    jobs: list[TraceJob], *, parking: bool
) -> None:
    """S2: who needs r seconds has its first turn before all who were submitted r / AGEING after it, whatever memory and lanes do."""
    done = replay(jobs, Settings(policy="srtf", parking=parking, capacity=CAPACITY, costs=MEASURED))
    needs = {job.name: job.duration for job in jobs}
    for first in done.jobs:
        for other in done.jobs:
            if other.first_run <= first.first_run:
                assert other.submitted - first.submitted <= needs[first.name] / AGEING


@pytest.mark.parametrize("long", [2, 3])
def test_whoever_is_displaced_for_somebody_does_not_go_before_it(long: int) -> None:
    """S2, S5: two or three leave for one short job: the first that is out does not take back what the others are to make room with."""
    sizes = {2: (400, 600), 3: (200, 600)}[long]
    jobs = [TraceJob(name=f"long{n}", submitted=float(n), duration=2000.0, persistent=sizes[0] * MiB, ephemeral=100 * MiB, iteration=0.1, demand=1.0, declared=2000.0) for n in range(long)]  # fmt: skip
    short = TraceJob(name="short", submitted=60.0, duration=1.0, persistent=sizes[1] * MiB, ephemeral=300 * MiB, iteration=0.1, demand=1.0, declared=1.0)  # fmt: skip
    done = replay([*jobs, short], Settings(policy="srtf", parking=True, capacity=CAPACITY, costs=MEASURED))  # fmt: skip
    record = next(one for one in done.jobs if one.name == "short")
    assert record.first_run - short.submitted < 10.0
