"""Which devices a broker gives out, on hosts whose GPUs cannot all be shared."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gpushare_kernel.broker.hardware import Parking, config_of, find_devices
from gpushare_kernel.core.errors import BadDeclaration, DeviceError
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import GiB
from gpushare_kernel.devices import cuda, nvml
from gpushare_kernel.devices.base import Capabilities
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.devices.nvml import GpuInfo
from tests.broker.house import PlayedDevice
from tests.devices.records import Record

GPUS = [GpuInfo(number, f"GPU-{number}", "NVIDIA Something", 100) for number in range(3)]


class Host:
    """Three GPUs, some of which answer with an error."""

    def __init__(self) -> None:
        self.failing: dict[str, Exception] = {}
        self.closed: list[str] = []

    def device(self, intents: Any, *, gpu: str, capacity: int | None) -> Any:
        if gpu in self.failing:
            raise self.failing[gpu]
        inventory = SimpleNamespace(id=gpu, kind="cuda")
        return SimpleNamespace(inventory=inventory, close=lambda: self.closed.append(gpu))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host with three GPUs."""
    host = Host()
    monkeypatch.setattr(nvml, "find_gpus", lambda: GPUS)
    monkeypatch.setattr(cuda, "CudaDevice", host.device)
    return host


def found(wanted: str) -> list[str]:
    devices = find_devices(wanted, Record(), held=0)
    return [device.inventory.id for device in devices]


@pytest.mark.parametrize("wanted", ["auto", "cuda", "0,1,2"])
def test_one_gpu_that_cannot_be_shared_takes_no_other_along(
    host: Host, wanted: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are shared, and a warning names the one and why."""
    host.failing["GPU-1"] = DeviceError("it is cut into parts (MIG).")
    with caplog.at_level(logging.WARNING):
        assert found(wanted) == ["GPU-0", "GPU-2"]
    (record,) = caplog.records
    assert "GPU 1" in record.getMessage()
    assert "MIG" in record.getMessage()
    assert host.closed == []


def test_where_none_remains_the_host_is_shared_or_it_fails(host: Host) -> None:
    """`auto` falls back; who asked for GPUs hears what is wrong with each."""
    host.failing = {gpu.uuid: DeviceError(f"{gpu.uuid} is lost.") for gpu in GPUS}
    (device,) = find_devices("auto", Record(), held=0)
    assert device.inventory.kind == "host"
    device.close()
    with pytest.raises(DeviceError, match=r"GPU-0 is lost\. GPU-1 is lost\. GPU-2 is lost\."):
        found("cuda")


def test_more_capacity_than_a_device_has_is_refused(host: Host) -> None:
    """Also where `auto` would fall back to the CPU."""
    whole = Machine().with_swap()
    with pytest.raises(BadDeclaration) as refused:
        find_devices("host", Record(), capacity=whole + 2**40, held=0)
    assert str(refused.value) == (
        f"--capacity: it is {format_size(whole + 2**40)}, and this host has {format_size(whole)}. Write less, or leave it out."
    )
    for wanted in ("auto", "cuda", "1"):
        number = 1 if wanted == "1" else 0
        with pytest.raises(BadDeclaration) as refused:
            find_devices(wanted, Record(), capacity=101, held=0)
        assert str(refused.value) == (
            f"--capacity: it is 101 B, and GPU {number} (NVIDIA Something) has 100 B. Write less, or leave it out."
        )
    assert len(find_devices("auto", Record(), capacity=100, held=0)) == 3


def test_an_error_that_nobody_expected_leaves_nothing_open(host: Host) -> None:
    """What was made before it is closed."""
    host.failing["GPU-2"] = RuntimeError("no such thing")
    with pytest.raises(RuntimeError):
        found("auto")
    assert host.closed == ["GPU-0", "GPU-1"]


@pytest.mark.usefixtures("host")
def test_a_gpu_that_is_not_there_is_named() -> None:
    """With those there are."""
    with pytest.raises(
        DeviceError, match=r"no GPU is called '9'\. There is: 0 \(NVIDIA Something, GPU-0\)"
    ):
        found("0,9")


@pytest.mark.parametrize("parks", [False, True])
def test_the_core_knows_whether_a_gpu_parks_and_what_it_costs(*, parks: bool) -> None:
    """4 GiB take about 2.8 s; a CPU never does."""
    gpu = PlayedDevice(GiB, 1.0)
    gpu.inventory = dataclasses.replace(gpu.inventory, divisible=False)
    gpu.capabilities = Capabilities(can_pause=True, can_park=parks)
    config = config_of(gpu, policy="fair", turn=0.1, parking=Parking.COLD)
    assert config.can_park is parks
    assert config.park_cost + 4 * GiB / config.park_speed == pytest.approx(2.76, abs=0.01)
    assert config.park_cost + 4 * GiB / config.restore_speed == pytest.approx(1.48, abs=0.01)
    warm = config_of(gpu, policy="fair", turn=0.1, parking=Parking.WARM)
    assert (warm.can_park, warm.warm, config.warm) == (parks, True, False)
    off = config_of(gpu, policy="fair", turn=0.1)
    assert not off.can_park
    assert ("--parking cold" in off.why_not_park) is parks
    gpu.inventory = dataclasses.replace(gpu.inventory, divisible=True)
    assert not config_of(gpu, policy="fair", turn=0.1, parking=Parking.COLD).can_park
