"""NVML through a library of our own making: the answers and failures of the real one, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.devices import nvml as nvml_module
from gpushare_kernel.devices.nvml import DeviceMemory, GpuInfo, GpuLost, Nvml, Running, find_gpus

Answer = Callable[[str, object], None]


@pytest.fixture
def called() -> list[str]:
    """Who called."""
    return []


@pytest.fixture
def answer(called: list[str], monkeypatch: pytest.MonkeyPatch) -> Answer:
    """A library with one GPU; call to have a function answer otherwise (or raise)."""

    def answer(name: str, value: object) -> None:
        def call(*given: Any) -> object:
            called.append(name)
            found = value(*given) if callable(value) else value
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(pynvml, name, call)

    def processes(*pairs: tuple[int, int | None]) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in pairs]

    answer("nvmlInit", None)
    answer("nvmlShutdown", None)
    answer("nvmlSystemGetDriverVersion", "580.159")
    answer("nvmlSystemGetCudaDriverVersion_v2", 13000)
    answer("nvmlDeviceGetCount", 1)
    answer("nvmlDeviceGetHandleByIndex", object())
    answer("nvmlDeviceGetHandleByUUID", object())
    answer("nvmlDeviceGetIndex", 0)
    answer("nvmlDeviceGetName", b"NVIDIA Something")  # bytes in older versions
    answer("nvmlDeviceGetUUID", "GPU-1")
    answer("nvmlDeviceGetMigMode", pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
    answer("nvmlDeviceGetComputeMode", pynvml.NVML_COMPUTEMODE_DEFAULT)
    answer("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=100, free=60, used=40))
    answer("nvmlDeviceGetComputeRunningProcesses", processes((7, 30), (8, None)))
    answer("nvmlDeviceGetGraphicsRunningProcesses", processes((8, 5), (9, 2)))
    answer("nvmlDeviceGetUtilizationRates", SimpleNamespace(gpu=97, memory=3))
    return answer


def test_what_it_reads(answer: Answer, called: list[str]) -> None:
    """Name and uuid as text; memory; processes, one of them not readable and one that also draws."""
    nvml = Nvml()
    assert nvml.info == GpuInfo(0, "GPU-1", "NVIDIA Something", 100)
    assert nvml.memory() == DeviceMemory(100, 60, 40)
    assert [each.pid for each in nvml.processes()] == [7, 8, 9]
    assert nvml.utilization() == 0.97
    nvml.close()
    nvml.close()
    assert called.count("nvmlInit") == called.count("nvmlShutdown") == 1


def test_a_gpu_by_its_uuid(answer: Answer, called: list[str]) -> None:
    """As it stands in CUDA_VISIBLE_DEVICES."""
    Nvml("GPU-1").close()
    assert "nvmlDeviceGetHandleByUUID" in called
    assert "nvmlDeviceGetHandleByIndex" not in called


@pytest.mark.parametrize(
    ("name", "display"),
    [("python", False), ("blender", False), ("Xorg", True), ("gnome-shell", True), ("kwin_wayland", True)],
)  # fmt: skip
def test_who_draws_and_computes_is_work_unless_it_is_a_screens(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, name: str, display: bool
) -> None:
    """Renderers without a screen stand in both lists; so does a display server. Who only draws is a display."""
    monkeypatch.setattr(nvml_module.procfs, "name", lambda pid: name)
    assert Nvml().processes() == [
        Running(7, 30, False),
        Running(8, 5, display),
        Running(9, 2, True),
    ]


def test_a_gpu_without_graphics_has_no_displays(answer: Answer) -> None:
    """Not supported is an answer."""
    answer(
        "nvmlDeviceGetGraphicsRunningProcesses",
        pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED),
    )
    assert [each.display for each in Nvml().processes()] == [False, False]


def test_who_was_at_work(answer: Answer) -> None:
    """Newer than asked for only: old entries stay in NVML's list. Nobody is no failure."""
    seen = [
        SimpleNamespace(pid=7, timeStamp=100, smUtil=25),
        SimpleNamespace(pid=8, timeStamp=200, smUtil=0),
    ]
    answer("nvmlDeviceGetProcessUtilization", lambda handle, since: seen)
    nvml = Nvml()
    assert list(nvml.process_utilization(0)) == [(7, 100, 0.25), (8, 200, 0.0)]
    assert list(nvml.process_utilization(100)) == [(8, 200, 0.0)]
    for nobody in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS):
        answer("nvmlDeviceGetProcessUtilization", pynvml.NVMLError(nobody))
        assert list(nvml.process_utilization(0)) == []
    answer("nvmlDeviceGetProcessUtilization", pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN))
    with pytest.raises(DeviceError, match="nvidia-smi"):
        nvml.process_utilization(0)


@pytest.mark.parametrize(
    ("function", "value", "field"),
    [
        ("nvmlDeviceGetMigMode", [1, 1], "mig"),
        ("nvmlDeviceGetComputeMode", pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS, "exclusive"),
        ("nvmlDeviceGetComputeMode", pynvml.NVML_COMPUTEMODE_PROHIBITED, "exclusive"),
    ],
)
def test_what_keeps_a_gpu_from_being_shared(
    answer: Answer, function: str, value: object, field: str
) -> None:
    """MIG, and compute modes that admit one process or none."""
    assert not getattr(Nvml().info, field)
    answer(function, value)
    assert getattr(Nvml().info, field)


def test_all_gpus(answer: Answer, called: list[str]) -> None:
    """One that is lost does not hide the others; the library is given back."""

    def handle(index: int) -> object:
        return pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST) if index == 1 else object()

    answer("nvmlDeviceGetCount", 3)
    answer("nvmlDeviceGetHandleByIndex", handle)
    assert len(find_gpus()) == 2
    assert called.count("nvmlInit") == called.count("nvmlShutdown") == 1


def test_a_machine_without_a_driver_has_no_gpus(answer: Answer) -> None:
    """That is no error; a driver that does not work is one."""
    answer("nvmlInit", pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert find_gpus() == ()
    answer("nvmlInit", pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    with pytest.raises(DeviceError, match="restart the machine"):
        find_gpus()


def test_versions(answer: Answer) -> None:
    """The driver's, and the CUDA it serves."""
    assert nvml_module.versions() == ("580.159", (13, 0))
    answer("nvmlSystemGetCudaDriverVersion_v2", 12080)
    assert nvml_module.versions()[1] == nvml_module.NEEDED_CUDA


def test_without_a_driver_the_message_says_so(answer: Answer) -> None:
    """One error of ours, with NVML's own words and the next step."""
    answer("nvmlInit", pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    with pytest.raises(DeviceError, match=r"Not Found.*nvidia-smi"):
        Nvml()


def test_a_lost_gpu_is_told_from_a_library_that_fails(answer: Answer) -> None:
    """Only a restart brings it back, and the message says so."""
    nvml = Nvml()
    answer("nvmlDeviceGetMemoryInfo", pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST))
    with pytest.raises(GpuLost, match="Restart the machine, then the broker"):
        nvml.memory()


def test_a_gpu_that_is_not_there_leaves_nothing_open(answer: Answer, called: list[str]) -> None:
    """What was initialised is shut down again."""
    answer("nvmlDeviceGetHandleByIndex", pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT))
    with pytest.raises(DeviceError, match="Invalid Argument"):
        Nvml(9)
    assert called == ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlShutdown"]


def test_begun_again_it_asks_for_everything_anew(answer: Answer, called: list[str]) -> None:
    """A handle of a driver that was reloaded is worth nothing."""
    nvml = Nvml()
    called.clear()
    nvml.reopen()
    assert called[:3] == ["nvmlShutdown", "nvmlInit", "nvmlDeviceGetHandleByIndex"]
    nvml.close()
