"""JAX: memory by its devices' own numbers. Its limit is fixed at the kernel's start, and it gives nothing back.

The first use is where its backends are made. That is private (`jax._src.xla_bridge`): where a version
lacks it, the first use is not held, and the broker sees the context in the driver.
"""

from __future__ import annotations

import functools
import pkgutil
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gpushare_kernel.wire import framework_texts

if TYPE_CHECKING:
    from gpushare_kernel.client.gpu import Gpu

_BRIDGE = "jax._src.xla_bridge"
_GPU_PLATFORMS = {"cuda", "gpu"}
_GPU_PLUGIN = "xla_cuda"
_HELD = ("pool_bytes", "bytes_in_use")
_USED = ("bytes_in_use", "pool_bytes")
_PEAKS = ("peak_pool_bytes", "peak_bytes_in_use")


def meet(module: ModuleType, gpu: Gpu) -> Jax:
    """Wrap the making of backends and return the adapter."""
    adapter = Jax(module, gpu)
    adapter.hook()
    return adapter


class Jax:
    """The JAX of this process."""

    name = "jax"
    meets = False
    fixed = True
    settles = False

    def __init__(self, jax: Any, gpu: Gpu) -> None:
        self._jax = jax
        self._gpu = gpu
        self._bridge: Any = sys.modules.get(_BRIDGE)
        self._original: Any = None
        self._wrapped: Any = None
        self._before = 0

    def hook(self) -> None:
        """Wrap `backends` where it is."""
        if not all(hasattr(self._bridge, n) for n in ("backends", "backends_are_initialized")):
            version = str(getattr(self._jax, "__version__", "?"))
            self._gpu.say_once(
                framework_texts.adapter_text(
                    self.name, version, "its first use of the GPU is not seen"
                )
            )
            return
        original = self._original = self._bridge.backends
        used = [self.up()]

        @functools.wraps(original)
        def backends() -> Any:
            if used[0]:
                return original()
            if self._wants_gpu():
                self._gpu.first_use()
            made = original()
            used[0] = True
            return made

        self._wrapped = self._bridge.backends = backends

    def remove(self) -> None:
        """Put `backends` back."""
        if self._wrapped is not None and self._bridge.backends is self._wrapped:
            self._bridge.backends = self._original

    def _wants_gpu(self) -> bool:
        """Say whether a GPU is what JAX will use: not where it is told to stay on the CPU, or has no plugin for it."""
        platforms = getattr(self._jax.config, "jax_platforms", None)
        if platforms:
            return not _GPU_PLATFORMS.isdisjoint(platforms.split(","))
        return any(name.startswith(_GPU_PLUGIN) for name in _plugins())

    def up(self) -> bool:
        """Say whether its backends are made."""
        ready = getattr(self._bridge, "backends_are_initialized", None)
        return bool(ready is not None and ready())

    def held(self) -> int:
        """Return the bytes its pools took."""
        return self._sum(_HELD)

    def used(self) -> int:
        """Return the bytes of arrays, and of what runs."""
        return self._sum(_USED)

    def start_peak(self) -> None:
        """Note the peak so far: it cannot be forgotten."""
        self._before = self._sum(_PEAKS)

    def peak(self) -> int:
        """Return the peak where it rose since `start_peak`; otherwise what is held: more is not known."""
        peak = self._sum(_PEAKS)
        return peak if peak > self._before else self.held()

    def most_used(self) -> int:
        """Return what it holds: it keeps no peak that can begin anew."""
        return self.held()

    def settle(self) -> None:
        """Nothing: JAX has no call that waits for all its work, and the lock drains what is under way."""

    def capturing(self) -> bool:
        """Never: it shows none."""
        return False

    def trim(self) -> None:
        """Nothing: what its pool took it keeps until the kernel ends."""

    def cap(self, limit: int | None) -> None:
        """Nothing: its limit came with the kernel's start."""

    def limit(self) -> int | None:
        """Return the limit it was started with."""
        return self._sum(("bytes_limit",)) or None

    def _sum(self, names: Iterable[str]) -> int:
        found = (device.memory_stats() or {} for device in self._jax.local_devices())
        return sum(next((int(s[n]) for n in names if n in s), 0) for s in found)


def _plugins() -> list[str]:
    """Return the names of JAX's plugins that are installed; imports none of them."""
    try:
        import jax_plugins  # type: ignore[import-not-found]  # noqa: PLC0415 - JAX's own namespace for plugins
    except ImportError:
        return []
    return [module.name for module in pkgutil.iter_modules(jax_plugins.__path__)]
