"""The frameworks of a GPU session. Each is met when the user imports it, never before.

Import hooks are registered once it is known that the session's device is a GPU; that imports no
framework and costs what importing wrapt costs. A framework that is there already is met at once, on the
thread that reads from the broker: its Python is hooked, and nothing of it is called that would start CUDA.
One that is just being imported by another thread is met at the next cell's start or end. Each is met once.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

from gpushare_kernel.client.adapters.base import Adapter
from gpushare_kernel.wire import framework_texts

if TYPE_CHECKING:
    from gpushare_kernel.client.gpu import Gpu

NAMES = ("torch", "cupy", "jax")
SWITCH = "GPUSHARE_ADAPTERS"
"""Unset: all. `off`: none. Otherwise the names to adapt, with commas: `torch,cupy`."""


class _Module(Protocol):
    def meet(self, module: ModuleType, gpu: Gpu) -> Adapter:
        """Hook the framework and return its adapter."""


class Adapters:
    """The frameworks that were met, and those that may be."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._names = enabled()
        self._registered = False
        self._lock = threading.Lock()
        self._late: list[str] = []
        self.active: list[Adapter] = []

    def install(self) -> None:
        """Meet what is imported, and what will be. Any thread; imports no framework."""
        if self._registered:
            return
        self._registered = True
        for name in self._names:
            if name in sys.modules:
                self._late.append(name)
            else:
                self._expect(name)
        self.meet_late()

    def meet_late(self) -> None:
        """Meet frameworks that were imported before us, once their import is complete."""
        for name in list(self._late):
            module = sys.modules.get(name)
            if getattr(getattr(module, "__spec__", None), "_initializing", False):
                continue
            if not self._take(name):
                continue
            if module is None:  # its import failed
                self._expect(name)
            else:
                self._meet(module)

    def meets_boundaries(self, source: str) -> bool:
        """Say whether a cell will meet boundaries by itself: by a framework that is here, or that its text names."""
        found = {adapter.name for adapter in self.active if adapter.meets}
        return bool(found) or ("torch" in self._names and "torch" in source)

    def remove(self) -> None:
        """Take all hooks back."""
        with self._lock:
            self._names = ()
            self._late.clear()
        while self.active:
            self.active.pop().remove()

    def forget(self) -> None:
        """In a forked child: whoever held the lock is the parent's."""
        self._lock = threading.Lock()

    def _take(self, name: str) -> bool:
        """Say, to one thread only, that it is to meet this one. Not held while it does: meeting imports."""
        with self._lock:
            late = name in self._late
            if late:
                self._late.remove(name)
            return late

    def _expect(self, name: str) -> None:
        import wrapt  # noqa: PLC0415 - not at the start of a kernel without a GPU

        wrapt.register_post_import_hook(self._meet, name)

    def _meet(self, module: ModuleType) -> None:
        name = module.__name__
        if name not in self._names:
            return
        try:
            adapter = cast("_Module", import_module(f"{__name__}.{name}")).meet(module, self._gpu)
        except Exception as problem:  # noqa: BLE001 - an import of the user's must not fail for us
            version = str(getattr(module, "__version__", "?"))
            self._gpu.say(
                framework_texts.adapter_text(name, version, f"{type(problem).__name__}: {problem}")
            )
            return
        with self._lock:
            if name in self._names:
                self.active.append(adapter)
                return
        adapter.remove()  # the session was closed meanwhile


def enabled() -> tuple[str, ...]:
    """Return the frameworks to adapt, as the environment says."""
    said = os.environ.get(SWITCH)
    if said is None:
        return NAMES
    wanted = {name.strip() for name in said.split(",")}
    return tuple(name for name in NAMES if name in wanted)
