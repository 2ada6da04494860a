"""Whose address left torch: recorded where it happens, as a storage does not show it.

DLPack, `__cuda_array_interface__`, processes that share a tensor, NumPy (on the CPU), and programs that ask
for an address. A storage that is here once stays on the device until it is freed (W4).
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

_METHODS = ("__dlpack__", "__array__", "numpy", "share_memory_")
_STORAGE = ("_share_cuda_", "_share_fd_cpu_", "_share_filename_cpu_")
_C_API = "__dlpack_c_exchange_api__"
_COMPARE = {"torch", "torchgen", "triton", "safetensors", "transformers", "accelerate", "huggingface_hub", "diffusers", "peft"}  # fmt: skip
"""Packages that ask for an address to compare it, or for the kernel that they launch at once, and keep none."""
_COMPILED = "torchinductor_"
"""In the path of the code that torch.compile writes."""
_MISSING = object()


class Exports:
    """What torch gave away in this process.

    Attributes
    ----------
    all_seen
        Whether every export since the device's first use was seen. Where not, nothing may be moved.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._known: dict[int, weakref.ref[Any]] = {}
        self._undo: list[Callable[[], None]] = []
        self._base: Any = object
        self.all_seen = False

    def hook(self) -> None:
        """Begin to record. What was exported before is not known: where the device was used already, nothing is ever moved."""
        torch = self._torch
        self._base = torch._C.TensorBase
        before = bool(torch.cuda.is_initialized())
        for name in _METHODS:
            self._wrap(torch.Tensor, name, self._giver)
        self._wrap(torch.Tensor, "data_ptr", self._teller)
        for cls in (torch.UntypedStorage, torch.TypedStorage):
            self._wrap(cls, "data_ptr", self._teller)
        for name in _STORAGE:
            self._wrap(torch.UntypedStorage, name, self._giver)
        dlpack = import_module("torch.utils.dlpack")
        for place, name, wrapper in (
            (dlpack, "to_dlpack", self._giver),
            (torch, "to_dlpack", self._giver),
            (torch._C, "_to_dlpack", self._giver),
            (torch._C, "_to_dlpack_versioned", self._giver),
            (dlpack, "from_dlpack", self._taker),
            (torch, "from_dlpack", self._taker),
        ):
            if hasattr(place, name):
                self._wrap(place, name, wrapper)
        self._wrap_interface()
        self._wrap_c_api()
        self.all_seen = not before

    def remove(self) -> None:
        """Take the hooks back. From then on nobody knows what is exported."""
        self.all_seen = False
        while self._undo:
            self._undo.pop()()

    def has(self, storage: Any) -> bool:
        """Say whether a storage's address left torch."""
        known = self._known.get(id(storage))
        return known is not None and known() is storage

    def record(self, value: Any) -> None:
        """Remember the storage of a tensor, or a storage."""
        if issubclass(type(value), self._torch.TypedStorage):
            value = value._untyped_storage
        elif issubclass(type(value), self._base):
            try:
                with self._torch._C.DisableTorchFunction():
                    value = self._base.untyped_storage(value)
            except (NotImplementedError, RuntimeError):
                return  # a sparse one has none: its parts are given away one by one
        key = id(value)
        self._known[key] = weakref.ref(value, lambda _gone: self._known.pop(key, None))

    # --- Hooks -----------------------------------------------------------------------------------------------

    def _giver(self, original: Any) -> Any:
        """Record who is given away. Before it is: whoever takes it may be interrupted."""

        @functools.wraps(original)
        def give(one: Any, *args: Any, **options: Any) -> Any:
            self.record(one)
            return original(one, *args, **options)

        return give

    def _teller(self, original: Any) -> Any:
        """Record who tells its address, unless it is told to those who only compare it."""
        frame = sys._getframe

        @functools.wraps(original)
        def tell(one: Any) -> Any:
            code = frame(1).f_code
            if not _only_compares(code.co_filename):
                self.record(one)
            return original(one)

        return tell

    def _taker(self, original: Any) -> Any:
        """Record what came in: somebody else has its address."""

        @functools.wraps(original)
        def take(*args: Any, **options: Any) -> Any:
            taken = original(*args, **options)
            self.record(taken)
            return taken

        return take

    def _wrap(self, place: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        self._put(place, name, wrapper(getattr(place, name)))

    def _wrap_interface(self) -> None:
        tensor: Any = self._torch.Tensor
        original: property = vars(tensor)["__cuda_array_interface__"]

        def interface(one: Any) -> Any:
            found = original.__get__(one)  # on the CPU there is none: nothing is given away
            self.record(one)
            return found

        self._put(tensor, "__cuda_array_interface__", property(interface, doc=original.__doc__))

    def _wrap_c_api(self) -> None:
        """Libraries that export by C functions ask the class for them once, and tell nobody what they take."""
        tensor: Any = self._torch.Tensor
        found = vars(tensor).get(_C_API, _MISSING)
        if found is not _MISSING:
            self._put(tensor, _C_API, _Told(found, self._c_api_taken))

    def _c_api_taken(self) -> None:
        self.all_seen = False

    def _put(self, place: Any, name: str, new: object) -> None:
        old = vars(place).get(name, _MISSING)
        setattr(place, name, new)

        def put_back() -> None:
            if vars(place).get(name) is not new:
                return
            if old is _MISSING:
                delattr(place, name)
            else:
                setattr(place, name, old)

        self._undo.append(put_back)


class _Told:
    """A class attribute that says when it is read."""

    def __init__(self, value: Any, told: Callable[[], None]) -> None:
        self._value = value
        self._told = told

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        self._told()
        return self._value


@functools.lru_cache(maxsize=512)
def _only_compares(file: str) -> bool:
    if _COMPILED in file:
        return True
    for name in _COMPARE:
        home = None
        with contextlib.suppress(Exception):  # a module that is half imported has no file
            home = sys.modules[name].__file__
        if home is not None and file.startswith(home.removesuffix("__init__.py")):
            return True
    return False
