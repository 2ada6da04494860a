"""A CuPy of a few lines: a pool that counts, an allocator, and CUDA that starts with the first allocation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__version__ = "14.2.0"
MiB = 2**20


class OutOfMemoryError(MemoryError):
    """What the real one raises, under the name it has there."""


OutOfMemoryError.__module__ = "cupy.cuda.memory"


class MemoryPool:
    """Keeps what is freed, as the real one does."""

    def __init__(self) -> None:
        self.used = 0
        self.total = 0
        self.limit = 0
        self.calls: list[str] = []

    def malloc(self, size: int) -> Any:
        if self.limit and self.used + size > self.limit:
            msg = f"Out of memory allocating {size:,} bytes (allocated so far: {self.used:,} bytes, limit set to: {self.limit:,} bytes)."
            raise OutOfMemoryError(msg)
        self.used += size
        self.total = max(self.total, self.used)
        return _Block(self, size)

    def total_bytes(self) -> int:
        return self.total

    def used_bytes(self) -> int:
        return self.used

    def free_all_blocks(self) -> None:
        self.calls.append("free_all_blocks")
        self.total = self.used

    def set_limit(self, size: int | None = None) -> None:
        self.calls.append(f"set_limit {size}")
        self.limit = size or 0

    def get_limit(self) -> int:
        return self.limit


class _Block:
    def __init__(self, pool: MemoryPool, size: int) -> None:
        self._pool, self.size, self.ptr = pool, size, id(self)

    def __del__(self) -> None:
        self._pool.used -= self.size


class ndarray:  # noqa: N801 - its name there
    """An array, or a view of one."""

    def __init__(self, block: _Block) -> None:
        self._data = SimpleNamespace(mem=block)

    @property
    def data(self) -> Any:
        """As in the real one: a pointer into memory."""
        return self._data

    def view(self) -> ndarray:
        """The same memory."""
        return ndarray(self._data.mem)


_pool = MemoryPool()
_allocator: list[Any] = [_pool.malloc]


def _set_allocator(allocator: Any) -> None:
    _allocator[0] = allocator


cuda = SimpleNamespace(
    get_allocator=lambda: _allocator[0],
    set_allocator=_set_allocator,
    runtime=SimpleNamespace(deviceSynchronize=lambda: _pool.calls.append("synchronize")),
)


def get_default_memory_pool() -> MemoryPool:
    """As in the real one."""
    return _pool


def empty(size: int) -> Any:
    """Allocate bytes."""
    return ndarray(_allocator[0](size))
