"""NVML through a library of our own making: the answers and failures of the real one, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.devices.nvml import DeviceMemory, Nvml


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A library with one GPU; the list has who called."""
    called: list[str] = []

    def answer(name: str, value: object) -> None:
        def call(*_: object) -> object:
            called.append(name)
            if isinstance(value, Exception):
                raise value
            return value

        monkeypatch.setattr(pynvml, name, call)

    answer("nvmlInit", None)
    answer("nvmlShutdown", None)
    answer("nvmlDeviceGetHandleByIndex", object())
    answer("nvmlDeviceGetName", b"NVIDIA Something")  # bytes in older versions
    answer("nvmlDeviceGetUUID", "GPU-1")
    answer("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=100, free=60, used=40))
    answer(
        "nvmlDeviceGetComputeRunningProcesses",
        [SimpleNamespace(pid=7, usedGpuMemory=30), SimpleNamespace(pid=8, usedGpuMemory=None)],
    )
    return called


def test_what_it_reads(calls: list[str]) -> None:
    """Name and uuid as text; memory; and processes, one of them not readable."""
    nvml = Nvml()
    assert (nvml.name, nvml.uuid) == ("NVIDIA Something", "GPU-1")
    assert nvml.memory() == DeviceMemory(100, 60, 40)
    assert nvml.process_memory() == {7: 30, 8: 0}
    nvml.close()
    assert calls[-1] == "nvmlShutdown"


def test_without_a_driver_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error of ours, with NVML's own words and the next step."""

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    with pytest.raises(DeviceError, match=r"Not Found.*nvidia-smi"):
        Nvml()


def test_a_gpu_that_is_not_there_leaves_nothing_open(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was initialised is shut down again."""

    def fail(index: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", fail)
    with pytest.raises(DeviceError, match="Invalid Argument"):
        Nvml(index=9)
    assert calls == ["nvmlInit", "nvmlShutdown"]
