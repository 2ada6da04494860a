"""What the tests of all devices share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel.devices.host import HostDevice
from tests.devices.gpu import Gpu
from tests.devices.records import Record


@pytest.fixture
def record() -> Record:
    """Empty intents."""
    return Record()


@pytest.fixture
def host(record: Record) -> Iterator[HostDevice]:
    """A device on this machine."""
    device = HostDevice(record)
    yield device
    device.close()
    assert record.keys == []


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Gpu]:
    """A fake GPU; afterwards nothing is on record."""
    gpu = Gpu(tmp_path)
    yield gpu
    gpu.close()
