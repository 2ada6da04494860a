"""NVML: which GPUs there are, how much memory they have, who holds it, how busy they are. The only importer of `pynvml`.

The list of processes takes 0.4-4.5 ms and a lock of the whole driver, process utilization 2-2.6 ms: ask
rarely, and off the loop (`sampler`). Pids are those of the host's pid namespace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pynvml

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError

NEEDED_CUDA = (12, 8)
"""The first CUDA version whose driver can lock a process (driver 570)."""

_DISPLAY_SERVERS = frozenset(
    name[:15]  # as the kernel cuts it
    for name in (
        *("Xorg", "X", "Xorg.bin", "Xwayland", "Xvnc", "gnome-shell", "mutter", "kwin_wayland", "kwin_x11"),
        *("plasmashell", "weston", "sway", "Hyprland", "labwc", "wayfire", "river", "niri", "cage", "muffin"),
        *("gamescope", "gamescope-wl", "cosmic-comp", "cinnamon", "budgie-wm", "gala", "xfwm4", "compiz", "picom"),
        *("gdm-x-session", "gdm-wayland-session", "sddm", "sddm-greeter", "lightdm"),
    )
)  # fmt: skip
"""Screens and what draws them: never touched, also where they compute."""

_ABSENT = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_GONE = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)


class GpuLost(DeviceError):
    """The GPU itself is gone (it fell off the bus, or needs a reset): only a restart brings it back."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of one GPU."""

    total: int
    free: int
    used: int


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """What one GPU is. `index` is NVML's (PCI bus) order; `mig`: it is cut into parts; `exclusive`: one process only."""

    index: int
    uuid: str
    name: str
    total: int
    mig: bool = False
    exclusive: bool = False


class Running(NamedTuple):
    """One process with a context. `display`: it draws and does not compute, or is known to be a screen's."""

    pid: int
    size: int
    display: bool


class AtWork(NamedTuple):
    """A process that NVML names, when (us since the epoch), and which part of the multiprocessors worked: 0 to 1."""

    pid: int
    at: int
    part: float


class GpuReader(Protocol):
    """What the rest of the room needs of NVML; tests have one of their own."""

    info: GpuInfo

    def memory(self) -> DeviceMemory:
        """Return the GPU's memory now (0.03 ms)."""

    def processes(self) -> Sequence[Running]:
        """Return who has a context (0.4-0.8 ms)."""

    def utilization(self) -> float:
        """Return how busy the GPU was in its last closed window (0.04 ms), 0 to 1."""

    def process_utilization(self, since: int) -> Sequence[AtWork]:
        """Return who was seen at work after `since` (us; takes 2 ms); one a window."""

    def reopen(self) -> None:
        """Begin again, after the library has failed."""

    def close(self) -> None:
        """Give the library back."""


class Nvml:
    """One GPU as NVML sees it. The library counts who has initialised it: several GPUs share one.

    Parameters
    ----------
    gpu
        Which GPU: its index in NVML's (PCI bus) order, or its UUID.

    Raises
    ------
    DeviceError
        Where there is no driver, no such GPU, or driver and library do not match.
    """

    def __init__(self, gpu: int | str = 0) -> None:
        self._gpu = gpu
        self._open = False
        self._begin()

    def _begin(self) -> None:
        with _in_words():
            pynvml.nvmlInit()
        try:
            with _in_words():
                self._handle = _handle(self._gpu)
                self.info = _info(self._handle)
        except DeviceError:
            pynvml.nvmlShutdown()
            raise
        self._open = True

    def memory(self) -> DeviceMemory:
        """Return the GPU's memory now (0.03 ms)."""
        with _in_words():
            info = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        return DeviceMemory(int(info.total), int(info.free), int(info.used))

    def processes(self) -> Sequence[Running]:
        """Return all processes with a context.

        Who both draws and computes (a renderer without a screen: EGL, MuJoCo, Blender) stands there once, as work
        like other work, unless its name is that of a display server: those compute, too.
        """
        with _in_words():
            computing = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
            drawing = _supported(pynvml.nvmlDeviceGetGraphicsRunningProcesses, self._handle) or []
        found = {
            int(each.pid): Running(int(each.pid), _bytes(each), display=False) for each in computing
        }
        for each in drawing:
            pid = int(each.pid)
            also = found.get(pid)
            display = also is None or procfs.name(pid) in _DISPLAY_SERVERS
            size = max(_bytes(each), 0 if also is None else also.size)
            found[pid] = Running(pid, size, display)
        return list(found.values())

    def utilization(self) -> float:
        """Return how busy the GPU was in its last closed window of 200 ms, 0 to 1 (0.04 ms)."""
        with _in_words():
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    def process_utilization(self, since: int) -> Sequence[AtWork]:
        """Return those seen at work after `since` (us); NVML names one process a window, the last that worked where nobody does."""
        try:
            seen = pynvml.nvmlDeviceGetProcessUtilization(self._handle, since)
        except pynvml.NVMLError as error:
            if error.value in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND):
                return ()  # nobody was
            with _in_words():
                raise
        return [
            AtWork(int(each.pid), int(each.timeStamp), each.smUtil / 100)
            for each in seen
            if each.timeStamp > since
        ]

    def reopen(self) -> None:
        """Begin again: the library forgets a driver that was reloaded only then."""
        self.close()
        self._begin()

    def close(self) -> None:
        """Give the library back. Idempotent; one that is broken is not asked to say goodbye nicely."""
        if self._open:
            self._open = False
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def running(gpu: int) -> Sequence[Running]:
    """Return who has a context on a GPU now."""
    reader = Nvml(gpu)
    try:
        return reader.processes()
    finally:
        reader.close()


def find_gpus() -> Sequence[GpuInfo]:
    """Return the GPUs of this machine, also those that cannot be shared; none where there is no NVIDIA driver.

    Raises
    ------
    DeviceError
        Where there is a driver that does not work (library and driver do not match, for one).
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in _ABSENT:
            return ()
        with _in_words():
            raise
    try:
        with _in_words():
            count = int(pynvml.nvmlDeviceGetCount())
        found = []
        for index in range(count):
            with suppress(DeviceError), _in_words():  # one that is lost does not hide the others
                found.append(_info(pynvml.nvmlDeviceGetHandleByIndex(index)))
        return found
    finally:
        pynvml.nvmlShutdown()


def versions() -> tuple[str, tuple[int, int]]:
    """Return the driver's version, and the newest CUDA version it can serve.

    Raises
    ------
    DeviceError
        Where there is no driver, or it does not work.
    """
    with _in_words():
        pynvml.nvmlInit()
        try:
            cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
            return _text(pynvml.nvmlSystemGetDriverVersion()), (cuda // 1000, cuda % 1000 // 10)
        finally:
            pynvml.nvmlShutdown()


def _handle(gpu: int | str) -> Any:
    if isinstance(gpu, int):
        return pynvml.nvmlDeviceGetHandleByIndex(gpu)
    return pynvml.nvmlDeviceGetHandleByUUID(gpu)


def _info(handle: Any) -> GpuInfo:
    mig = _supported(pynvml.nvmlDeviceGetMigMode, handle)
    mode = _supported(pynvml.nvmlDeviceGetComputeMode, handle)
    return GpuInfo(
        index=int(pynvml.nvmlDeviceGetIndex(handle)),
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        mig=mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        exclusive=mode is not None and mode != pynvml.NVML_COMPUTEMODE_DEFAULT,
    )


def _supported(ask: Any, handle: Any) -> Any:
    """Return an answer, or None from a GPU that does not know the question."""
    try:
        return ask(handle)
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION):
            return None
        raise


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        lost = error.value in _GONE
        step = (
            "Restart the machine, then the broker."
            if lost
            else "Does nvidia-smi work here? After a driver update, restart the machine."
        )
        msg = f"the NVIDIA management library says: {error}. {step}"
        raise (GpuLost if lost else DeviceError)(msg) from error


def _bytes(process: Any) -> int:
    return int(process.usedGpuMemory or 0)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
