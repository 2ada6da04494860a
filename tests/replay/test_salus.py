"""The rebuilt trace of Salus' Table 1."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpushare_kernel.replay.engine import Settings, replay
from gpushare_kernel.replay.salus import (
    CAPACITY,
    LARGEST_P,
    SMALLEST_P,
    TRACE,
    read_salus,
    read_workloads,
)
from gpushare_kernel.replay.sources import read_source
from gpushare_kernel.replay.trace import BadTrace

DATA = Path(__file__).parents[2] / "benchmarks" / "salus_table" / "data"


def test_there_are_33_workloads_and_p_leads_through_both_ends() -> None:
    found = {workload.name: workload for workload in read_workloads(DATA)}
    assert len(found) == 33
    assert found["googlenet_25"].persistent == pytest.approx(SMALLEST_P)
    assert found["resnet152_75"].persistent == pytest.approx(LARGEST_P)
    assert all(one.persistent <= min(one.peak, LARGEST_P) for one in found.values())
    assert all(0 < one.demand <= 1 for one in found.values())


def test_a_seed_draws_the_memory_and_nothing_else() -> None:
    first, again, other = (read_salus(DATA, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [(job.submitted, job.duration) for job in first] == [
        (job.submitted, job.duration) for job in other
    ]


def test_folder_and_file_are_the_same_trace() -> None:
    assert read_source(DATA).jobs == read_source(DATA / TRACE).jobs
    assert read_source(DATA).capacity == CAPACITY
    assert all(job.declared is None for job in read_source(DATA, declare=False).jobs)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    shutil.copy(DATA / TRACE, tmp_path)
    with pytest.raises(
        BadTrace,
        match=r"fig1_fig14_memory_digitized\.csv cannot be read .* benchmarks/salus_table/data does",
    ):
        read_salus(tmp_path, 0)


def test_fifo_gives_the_published_figures_within_one_percent() -> None:
    """Table 1 of the paper: makespan, average queue, average and 95th percentile of the completion time, in minutes."""
    jobs = read_salus(DATA, 0)
    figures = replay(jobs, Settings(policy="fifo", capacity=CAPACITY)).summary()
    published = {"makespan_s": 303.4, "avg_queue_s": 167.6, "avg_jct_s": 170.6, "p95_jct_s": 251.1}
    for key, minutes in published.items():
        assert figures[key] / 60 == pytest.approx(minutes, rel=0.01), key
