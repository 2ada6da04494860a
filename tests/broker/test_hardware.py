"""Which devices a broker gives out: those that can be shared, and the CPU only where none can."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gpushare_kernel.broker.hardware import find_devices
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.devices import cuda, nvml
from tests.devices.records import Record


@dataclass
class Listed:
    """A GPU as NVML lists it."""

    index: int
    uuid: str
    name: str = "a GPU"


class FakeCuda:
    """Refuses the GPUs that its test says are cut into parts."""

    cut: frozenset[str] = frozenset()

    def __init__(self, intents: object, *, gpu: str, capacity: int | None) -> None:
        if gpu in self.cut:
            msg = f"{gpu} is cut into parts (MIG)."
            raise DeviceError(msg)
        self.gpu = gpu


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "find_gpus", lambda: [Listed(n, f"GPU-{n}") for n in range(8)])
    monkeypatch.setattr(cuda, "CudaDevice", FakeCuda)


def test_one_gpu_that_cannot_be_shared_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs, one in parts: seven are shared."""
    monkeypatch.setattr(FakeCuda, "cut", frozenset({"GPU-7"}))
    found = find_devices("auto", Record(), held={})
    assert [device.gpu for device in found] == [f"GPU-{n}" for n in range(7)]  # type: ignore[attr-defined]


def test_where_none_can_be_shared_the_cpu_is_or_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` falls back to the CPU; who asked for GPUs reads why there are none."""
    monkeypatch.setattr(FakeCuda, "cut", frozenset(f"GPU-{n}" for n in range(8)))
    (host,) = find_devices("auto", Record(), held={})
    assert host.inventory.kind == "host"
    with pytest.raises(DeviceError, match="MIG"):
        find_devices("cuda", Record(), held={})


def test_a_gpu_that_is_not_there_is_named() -> None:
    """With those there are."""
    with pytest.raises(DeviceError, match="no GPU is called '9'"):
        find_devices("0,9", Record(), held={})
