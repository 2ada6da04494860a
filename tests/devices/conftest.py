"""What the tests of all devices share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel.core.values import MiB
from gpushare_kernel.devices.base import Target
from gpushare_kernel.devices.host import HostDevice
from tests.devices.gpu import Gpu
from tests.devices.records import Record
from tests.procs import Program


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


@pytest.fixture
def program(gpu: Gpu) -> Iterator[Program]:
    """A process that holds 600 of the 1000 MiB; 300 are free."""
    with Program("say('up'); wait()") as program:
        program.said()
        gpu.holds(program.key)
        gpu.nvml.free = 300 * MiB
        yield program
    gpu.device.usage(Target(program.key))
