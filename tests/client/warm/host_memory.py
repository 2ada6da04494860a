"""Host memory of this process and a copier for it: what the arena is in a kernel."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gpushare_kernel.client.copying import Piece

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""What a test is run for: here, and where there is a GPU."""


class Buffer:
    """A lease: zeroed memory of this process. `open` says how many are not closed."""

    open = 0

    def __init__(self, size: int) -> None:
        self._memory = (ctypes.c_char * max(1, size))()
        self.address, self.size = ctypes.addressof(self._memory), size
        self.closed = False
        Buffer.open += 1

    def close(self) -> None:
        """Give it back: it is overwritten, so whoever reads it afterwards reads nonsense."""
        assert not self.closed, "closed twice"
        self.closed = True
        Buffer.open -= 1
        ctypes.memset(self.address, 0xA5, len(self._memory))

    def spoil(self) -> None:
        """Change one byte."""
        self._memory[0] = bytes([self._memory[0][0] ^ 1])


class Copies:
    """A copier: memmove, or the driver's copies. `after_out` and `before_back` are called in between."""

    def __init__(self, device: str) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1") if device == "cuda" else None
        self.after_out: Callable[[Any], None] = lambda _lease: None
        self.before_back: Callable[[Any], None] = lambda _lease: None

    def out(self, pieces: Sequence[Piece], lease: Any) -> float:
        """Copy to the lease."""
        for address, size, offset in pieces:
            assert address
            assert offset % 512 == 0
            assert offset + size <= lease.size
            self._copy("cuMemcpyDtoH_v2", lease.address + offset, address, size)
        self.after_out(lease)
        return 0.5

    def back(self, pieces: Sequence[Piece], lease: Any) -> float:
        """Copy to the device."""
        self.before_back(lease)
        for address, size, offset in pieces:
            assert address
            self._copy("cuMemcpyHtoD_v2", address, lease.address + offset, size)
        return 0.5

    def _copy(self, name: str, to: int, source: int, size: int) -> None:
        if self._cuda is None:
            ctypes.memmove(to, source, size)
            return
        result = getattr(self._cuda, name)(ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(size))  # fmt: skip
        assert result == 0, f"{name}: {result}"


__all__ = ["DEVICES", "Buffer", "Copies", "torch"]
