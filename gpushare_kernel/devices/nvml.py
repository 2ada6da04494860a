"""NVML: what the GPU is called, how much memory it has, and who holds it. The only importer of `pynvml`.

The list of processes takes 0.4-4.5 ms and a lock of the whole driver: ask for it rarely.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from gpushare_kernel.core.errors import DeviceError


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of one GPU."""

    total: int
    free: int
    used: int


class Nvml:
    """One GPU as NVML sees it.

    Parameters
    ----------
    index
        Which GPU, in NVML's (PCI bus) order.

    Raises
    ------
    DeviceError
        Where there is no driver, no such GPU, or driver and library do not match.
    """

    def __init__(self, index: int = 0) -> None:
        with _in_words():
            pynvml.nvmlInit()
        try:
            with _in_words():
                self._handle: Any = pynvml.nvmlDeviceGetHandleByIndex(index)
                self.name = _text(pynvml.nvmlDeviceGetName(self._handle))
                self.uuid = _text(pynvml.nvmlDeviceGetUUID(self._handle))
        except DeviceError:
            pynvml.nvmlShutdown()
            raise

    def memory(self) -> DeviceMemory:
        """Return the GPU's memory now (0.03 ms)."""
        with _in_words():
            info = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        return DeviceMemory(int(info.total), int(info.free), int(info.used))

    def process_memory(self) -> dict[int, int]:
        """Return pid -> bytes for all processes with a context; pids are the host's."""
        with _in_words():
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return {int(each.pid): int(each.usedGpuMemory or 0) for each in running}

    def close(self) -> None:
        """Give the library back."""
        with _in_words():
            pynvml.nvmlShutdown()


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        msg = (
            f"the NVIDIA management library says: {error}. "
            "Does nvidia-smi work here? After a driver update, restart the machine."
        )
        raise DeviceError(msg) from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
