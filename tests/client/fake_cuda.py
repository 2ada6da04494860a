"""The CUDA side of the real torch, played: it starts when asked for, counts what it is told, and calls nothing."""

from __future__ import annotations

import threading
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from gpushare_kernel.core.values import GiB

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch misses numpy, which nobody here needs
    import torch

__all__ = ["FakeCuda", "torch"]


class FakeCuda:
    """One GPU of 80 GiB. `calls` is what torch's functions were called with, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.up = False
        self.in_use = 0
        self.cached = 0
        self.peak = 0
        self.most_in_use = 0
        self.free = 70 * GiB
        self.fraction: float | None = None
        self.capturing = False
        self.calls: list[str] = []
        self.threads: list[int] = []
        cuda = torch.cuda
        lazy_init, mem_get_info = self._lazy_init, self._mem_get_info  # one object in all places
        for place in (cuda, cuda.memory, cuda.random):
            monkeypatch.setattr(place, "_lazy_init", lazy_init)
        for place in (cuda, cuda.memory):
            monkeypatch.setattr(place, "mem_get_info", mem_get_info)
        for name in (
            "is_initialized", "device_count", "memory_reserved", "max_memory_reserved", "max_memory_allocated", "synchronize",
            "memory_allocated", "reset_peak_memory_stats", "empty_cache", "get_device_properties", "set_per_process_memory_fraction",
            "get_per_process_memory_fraction", "is_current_stream_capturing",
        ):  # fmt: skip
            monkeypatch.setattr(cuda, name, getattr(self, f"_{name}"))

    def use(self, size: int) -> None:
        """Allocate: as torch's C++ side does, by way of `torch.cuda._lazy_init`."""
        torch.cuda._lazy_init()
        self.in_use += size
        self.peak = max(self.peak, self.in_use + self.cached)
        self.most_in_use = max(self.most_in_use, self.in_use)

    def free_some(self, size: int) -> None:
        """Free: the allocator keeps it."""
        self.in_use -= size
        self.cached += size

    def _lazy_init(self) -> None:
        if not self.up:
            self.calls.append("init")
        self.up = True

    def _is_initialized(self) -> bool:
        return self.up

    def _device_count(self) -> int:
        return 1

    def _need(self, call: str) -> None:
        assert self.up, f"{call} would have made a context"
        self.threads.append(threading.get_ident())
        self.calls.append(call)

    def _memory_reserved(self, _device: Any = None) -> int:
        assert self.up
        return self.in_use + self.cached

    def _memory_allocated(self, _device: Any = None) -> int:
        assert self.up
        return self.in_use

    def _max_memory_reserved(self, _device: Any = None) -> int:
        assert self.up
        return self.peak

    def _max_memory_allocated(self, _device: Any = None) -> int:
        assert self.up
        return self.most_in_use

    def _reset_peak_memory_stats(self, _device: Any = None) -> None:
        assert self.up
        self.most_in_use = self.in_use
        self.peak = self.in_use + self.cached

    def _synchronize(self, _device: Any = None) -> None:
        self._need("synchronize")

    def _is_current_stream_capturing(self) -> bool:
        assert self.up
        return self.capturing

    def _empty_cache(self) -> None:
        self._need("empty_cache")
        self.cached = 0

    def _get_device_properties(self, _device: Any = None) -> Any:
        assert self.up
        return SimpleNamespace(total_memory=80 * GiB)

    def _set_per_process_memory_fraction(self, fraction: float, _device: Any = None) -> None:
        self._need("cap")
        self.fraction = fraction

    def _get_per_process_memory_fraction(self, _device: Any = None) -> float:
        assert self.up
        whole = 80 * GiB
        return 1.0 if self.fraction is None else int(self.fraction * whole) / whole

    def _mem_get_info(self, _device: Any = None) -> tuple[int, int]:
        torch.cuda._lazy_init()
        return self.free, 80 * GiB

    @property
    def cap(self) -> float | None:
        """The cap in GiB."""
        return None if self.fraction is None else round(self.fraction * 80, 3)
