"""One thread, a cache of the test's own, and a broker for those that ask for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpushare_kernel.core.values import GiB
from tests.broker.house import House


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nets this small are slower with more threads; what packing keeps goes with the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A broker of 1 GiB, and this process as one of its kernels."""
    with House(tmp_path, capacity=GiB) as made_house:
        opened = made_house.open("mine.ipynb")
        made_house.bind(opened)
        monkeypatch.setenv("GPUSHARE_TOKEN", opened.token)
        monkeypatch.setenv("GPUSHARE_SOCKET", str(made_house.path))
        yield made_house
