"""CuPy: memory by its default pool, first use by its allocator. Boundaries come from `gpushare.step()`."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpushare_kernel.client.gpu import Gpu


def meet(module: ModuleType, gpu: Gpu) -> CuPy:
    """Put our allocator in front of the default pool and return the adapter."""
    adapter = CuPy(module, gpu)
    adapter.hook()
    return adapter


class CuPy:
    """The CuPy of this process. An allocator that the user sets is left alone: the driver shows what it takes."""

    name = "cupy"
    meets = False
    fixed = False
    settles = True

    def __init__(self, cupy: Any, gpu: Gpu) -> None:
        self._cupy = cupy
        self._gpu = gpu
        self._pool = cupy.get_default_memory_pool()
        self._used = False
        self._highest = 0
        self._ours: int | None = None
        self._theirs = 0

    def hook(self) -> None:
        """Be called at the first allocation from the default pool, and not again."""
        if self._cupy.cuda.get_allocator() == self._pool.malloc:
            self._cupy.cuda.set_allocator(self._first)

    def remove(self) -> None:
        """Leave the pool as it was."""
        if self._cupy.cuda.get_allocator() == self._first:
            self._cupy.cuda.set_allocator(self._pool.malloc)

    def _first(self, size: int) -> Any:
        __tracebackhide__ = True  # the pool's error is not about us
        if not self._used:
            self._gpu.first_use()
        memory = self._pool.malloc(size)
        self._used = True
        self.remove()  # from here on an allocation costs what it costs without us
        self._gpu.first_used()
        return memory

    def up(self) -> bool:
        """Say whether anything was allocated: the pool's own numbers would make a context."""
        return self._used

    def held(self) -> int:
        """Return the bytes its pool took."""
        held = int(self._pool.total_bytes())
        self._highest = max(self._highest, held)
        return held

    def used(self) -> int:
        """Return the bytes of blocks that are not free."""
        return int(self._pool.used_bytes())

    def start_peak(self) -> None:
        """Forget the peak so far."""
        self._highest = 0

    def peak(self) -> int:
        """Return the most bytes seen since `start_peak`: the pool only grows until somebody trims it."""
        self.held()
        return self._highest

    def most_used(self) -> int:
        """Return what it holds: it keeps no peak that can begin anew."""
        return self.held()

    def settle(self) -> None:
        """Wait for the work that was launched."""
        self._cupy.cuda.runtime.deviceSynchronize()

    def capturing(self) -> bool:
        """Never: its boundaries are where the user says, and nobody says so inside of one."""
        return False

    def trim(self) -> None:
        """Give back the pool's free blocks."""
        self.held()
        self._pool.free_all_blocks()

    def cap(self, limit: int | None) -> None:
        """Set the pool's limit; 0 means none to it. One that the user has set is kept to, too, and stays when ours goes."""
        found = int(self._pool.get_limit())
        if found != self._ours:
            self._theirs = found
        limits = [self._theirs, 0 if limit is None else max(1, limit)]
        self._pool.set_limit(size=min(filter(None, limits), default=0))
        self._ours = int(self._pool.get_limit())

    def limit(self) -> int | None:
        """None: it can be changed."""
        return None
