"""What the class of 30 makes of its cells, and the GPU it has."""

from __future__ import annotations

import threading
import time
from array import array
from concurrent.futures import Future
from pathlib import Path

import pytest

from benchmarks.class_of_30 import gpu, run
from benchmarks.class_of_30.school import Cell
from gpushare_kernel.devices.base import NVML_WINDOW


def cell(number: int, took: float, error: str = "") -> Cell:
    return Cell(number, 10.0, 10.0 + took, "", error)


def named(seen: run.Seen) -> dict[str, run.Figure]:
    return {figure.name: figure for figure in seen.figures}


def test_the_last_one_is_told_by_the_work_of_all() -> None:
    """Two students with 4 s of work each on two cores: 4 s at best."""
    seen = run.Seen("host")
    seen.first_cells([cell(1, 5.0), cell(2, 7.0)], 4.0, 2.0)
    found = named(seen)
    assert found["host_worst_wait"].values == [1.75]
    assert found["host_worst_wait"].met
    assert found["host_finished"].met


def test_a_cell_that_fails_is_not_finished_and_not_quick() -> None:
    """Who fails at once would make the best figures; where all do there is no figure."""
    seen = run.Seen("host")
    seen.first_cells([cell(1, 9.0), cell(2, 0.1, "MemoryError")], 4.0, 2.0)
    found = named(seen)
    assert not found["host_finished"].met
    assert not found["host_worst_wait"].met
    with pytest.raises(run.NotDone):
        run.Seen("host").first_cells([cell(1, 0.1, "MemoryError")], 4.0, 2.0)


@pytest.mark.parametrize(("shares", "index", "met"), [([2.0, 2.0, 2.0], 1.0, True), ([3.0, 0.0, 0.0], 1 / 3, False)])  # fmt: skip
def test_jain(shares: list[float], index: float, met: bool) -> None:
    """1 where all have the same, 1/n where one has all."""
    seen = run.Seen("gpu")
    seen.jain(shares)
    assert named(seen)["gpu_jain"].values == [pytest.approx(index)]
    assert named(seen)["gpu_jain"].met == met


def test_shares_are_counted_until_the_first_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read after that is of fewer who want the device; a window that short says nothing."""
    monkeypatch.setattr(run, "SETTLE", 0.0)
    monkeypatch.setattr(run, "LOOK", 0.0)
    monkeypatch.setattr(run, "LEAST_WINDOW", 0.0)
    cells: list[Future[Cell]] = [Future(), Future()]
    looks = iter(range(100))

    def read() -> list[float]:
        look = next(looks)
        if look == 3:
            cells[0].set_result(cell(1, 1.0))
        return [float(look), 2.0 * look]

    assert run._while_all_want_it(cells, read) == [2.0, 4.0]
    monkeypatch.setattr(run, "LEAST_WINDOW", 60.0)
    with pytest.raises(run.NotDone):
        run._while_all_want_it(cells, lambda: [0.0])


def test_its_utilization_is_what_was_worked_in_the_last_window(tmp_path: Path) -> None:
    """Until a window is over it is that of the one before."""
    (tmp_path / "total").write_text(str(16 * 2**30))
    (tmp_path / gpu.BUSY).write_bytes(array("Q", [0, 0, 0, 1, 0, 77]).tobytes())
    meter = gpu.Meter(tmp_path)
    began = time.monotonic()
    assert meter.utilization() == 0.0
    (tmp_path / gpu.BUSY).write_bytes(
        array("Q", [0, int(NVML_WINDOW * 5e8), 0, 1, 0, 77]).tobytes()
    )
    pace = threading.Event()
    while (part := meter.utilization()) == 0.0:
        pace.wait(0.01)
    assert time.monotonic() - began >= NVML_WINDOW
    assert 0.0 < part <= 0.51
    ((pid, at, _),) = meter.process_utilization(0)
    assert pid == 77
    assert not meter.process_utilization(at)
    assert meter.memory().total == 16 * 2**30
