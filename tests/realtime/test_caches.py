"""What a worst case is measured with: caches that hold something else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpushare_kernel.realtime import caches, measuring, orders, payload
from gpushare_kernel.realtime.caches import emptier, last_level_cache
from gpushare_kernel.realtime.core_wait import CoreWait

X = np.arange(4.0)


def test_the_largest_cache_is_read_from_the_system(tmp_path: Path) -> None:
    """In the units that it writes; a usual size where it says nothing."""
    assert last_level_cache(tmp_path) == 32 << 20
    for index, size in enumerate(("32K", "54M", "512K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 54 << 20
    emptier("cpu")()


def test_a_huge_cache_is_emptied_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """P10: 300 MiB before each layer would leave time for ten runs."""
    monkeypatch.setattr(caches, "last_level_cache", lambda: 1 << 50)
    emptier("cpu")()  # a petabyte could not be had


def test_every_other_run_finds_them_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """P10: before each of its layers; the runs between and those that count for nothing do not."""
    log: list[str] = []
    monkeypatch.setattr(measuring, "emptier", lambda device: lambda: log.append(f"empty {device}"))
    runner: Any = SimpleNamespace(device="cpu", core=CoreWait(), hear=lambda: None, timed=lambda _, work: log.append(str(work.layer)))  # fmt: skip
    form = payload.form_of(X)
    slot = memoryview(bytearray(form.room))
    payload.write(X, slot)
    held: Any = SimpleNamespace(last=1, slot=lambda _: slot, where=str)
    found = measuring.measured(runner, held, orders.Measure(0, form, 2, 4, 60.0))
    assert found.problem == b""
    assert found.repeats == 4
    warm, cold = ["0", "1"], ["empty cpu", "0", "empty cpu", "1"]
    assert log == [*warm, *2 * warm, *2 * (warm + cold)]
