"""The work itself, small and on the CPU: it counts, it says where it stood still, and every kind of torch work runs."""

from __future__ import annotations

import importlib.util
import time

import pytest

from benchmarks.gpu import workloads
from benchmarks.kernels import Counters

TORCH = ("matmul", "conv", "lstm", "resnet", "wide", "small")


@pytest.fixture
def counters(tmp_path):
    made = Counters(tmp_path / "counters")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(workloads, "_steps", {})


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
@pytest.mark.filterwarnings("ignore:Failed to initialize NumPy")
@pytest.mark.parametrize("kind", TORCH)
def test_every_kind_of_torch_work_runs(kind):
    """The same lines as on a GPU, on small tensors."""
    workloads.prepare(kind, "cpu")
    assert workloads.repeat(kind, 2) > 0


def test_a_stand_in_needs_no_framework():
    """`host` is for machines without one; every kind has it."""
    for kind in workloads.FACTORIES:
        workloads.prepare(kind, "host")
        assert workloads.repeat(kind, 1) > 0


def test_work_counts_its_own_steps(counters):
    """In its own word, until the clock says so; others' words stay."""
    workloads.prepare("matmul", "host")
    done = workloads.work("matmul", str(counters.path), 3, time.monotonic() + 0.05)
    words = counters.read()
    assert words[3] > 0
    assert sum(words) == words[3]
    assert done["gaps"] == []
    assert 0 < done["longest"] < workloads.NOTABLE


def test_work_ends_where_it_is_told_to(counters, tmp_path):
    """A file ends it after one step, however long it could go on."""
    workloads.prepare("matmul", "host")
    stop = tmp_path / "stop"
    stop.touch()
    workloads.work("matmul", str(counters.path), 0, time.monotonic() + 600, str(stop))
    assert counters.read()[0] == 1


def test_work_says_where_it_stood_still(counters, monkeypatch, tmp_path):
    """With the clock of everybody, so that lines shown meanwhile can be laid beside it."""
    monkeypatch.setattr(workloads, "NOTABLE", 0.01)
    stop = tmp_path / "stop"
    stop.touch()
    clock = iter([10.0, 10.0, 16.0])
    monkeypatch.setattr(workloads.time, "monotonic", lambda: next(clock))
    workloads._steps["still"] = lambda: None
    done = workloads.work("still", str(counters.path), 0, 99.0, str(stop))
    assert done == {"began": 10.0, "gaps": [[10.0, 16.0]], "longest": 6.0}


def test_requests_are_timed_from_their_arrival():
    """A request that came while another was served has waited for it."""
    workloads._steps["slow"] = lambda: time.sleep(0.05)
    arrival = time.monotonic()
    first, second = workloads.serve("slow", [arrival, arrival])
    assert 0.05 <= first < second
