"""The rebuilt trace of Salus' Table 1."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpushare_kernel.replay.engine import Settings, replay
from gpushare_kernel.replay.rows import BadTrace
from gpushare_kernel.replay.salus import (
    CAPACITY,
    LARGEST_P,
    MEMORY,
    SMALLEST_P,
    TRACE,
    WORKLOADS,
    read_salus,
    read_workloads,
)
from gpushare_kernel.replay.sources import read_source

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
        match=r"fig1_fig14_memory_digitized\.csv is missing\. .* benchmarks/salus_table/data does",
    ):
        read_salus(tmp_path, 0)


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        (TRACE, "est_submit_s", "submit", rf"{TRACE}, row 1: the header must name .* and est_submit_s is missing\."),
        (TRACE, "\n0,0,49", "\n0,y,49", rf"{TRACE}, row 2: est_submit_s must be a number, and it is 'y'\. Write"),
        (TRACE, "\n0,0,49", "\n0,0,-1", rf"{TRACE}, row 2: est_duration_s must be above 0, and it is '-1'\. Mend"),
        (TRACE, "\n0,0,49", "\n1,0,49", rf"{TRACE}, row 3: job_id '1' is there twice \(first in row 2\)\."),
        (TRACE, "\n0,0,49", "\n0,9999999,49", rf"{TRACE}, row 3: est_submit_s .* comes after 1e\+07\. Sort the file by est_submit_s\."),
        (TRACE, "\n0,0,49", "\n0,0,1e300", rf"{TRACE}, row 2: est_duration_s must be at most 1e\+09 seconds \(30 years\), and it is '1e300'"),
        (TRACE, "\n0,0,49", "\n0,1e300,49", rf"{TRACE}, row 2: est_submit_s must be at most 1e\+09 seconds"),
        (WORKLOADS, "vgg11_25,3709.6", "vgg11_25,1e300", rf"{WORKLOADS}, row 2: peak_mb must be at most 1e\+09, and it is '1e300'"),
        (MEMORY, "alexnet,0.501,1.576", "alexnet,0.501,1e300", rf"{MEMORY}, row 2: tf_peak_GB must be at most 1e\+09, and it is '1e300'"),
        (WORKLOADS, "vgg11_25,3709.6", "vgg11_25,y", rf"{WORKLOADS}, row 2: peak_mb must be a number, and it is 'y'"),
        (WORKLOADS, "vgg11_25,3709.6,105.9", "vgg11_25,3709.6,5", rf"{WORKLOADS}, row 2: iter_ms_slope must be above 5\.8, and it is '5'"),
        (WORKLOADS, "vgg11_25", "vgg99_25", rf"{WORKLOADS}, row 2: workload must be a model of {MEMORY} .* it is 'vgg99_25'\. Add"),
        (WORKLOADS, "googlenet_25", "googlenet_26", rf"{WORKLOADS}: .* googlenet_25 is missing\. Add the row\."),
        (MEMORY, "tf_peak_GB", "peak", rf"{MEMORY}, row 1: .* tf_peak_GB is missing"),
        (MEMORY, "alexnet,0.501,1.576", "alexnet,0.501,", rf"{MEMORY}, row 2: tf_peak_GB must not be empty"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, file: str, before: str, after: str, said: str) -> None:
    """Row, rule, value and what to do, as for any trace."""
    for name in (TRACE, WORKLOADS, MEMORY):
        shutil.copy(DATA / name, tmp_path)
    text = (tmp_path / file).read_text()
    assert before in text
    (tmp_path / file).write_text(text.replace(before, after, 1))
    with pytest.raises(BadTrace, match=said):
        read_salus(tmp_path, 0)


def test_fifo_gives_the_published_figures_within_one_percent() -> None:
    """Table 1 of the paper: makespan, average queue, average and 95th percentile of the completion time, in minutes."""
    jobs = read_salus(DATA, 0)
    figures = replay(jobs, Settings(policy="fifo", capacity=CAPACITY)).summary()
    published = {"makespan_s": 303.4, "avg_queue_s": 167.6, "avg_jct_s": 170.6, "p95_jct_s": 251.1}
    for key, minutes in published.items():
        assert figures[key] / 60 == pytest.approx(minutes, rel=0.01), key
