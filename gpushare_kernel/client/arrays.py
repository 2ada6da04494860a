"""What an array of a framework holds, and what it keeps alive beside itself. Imports no framework, starts nothing on a device.

Only the frameworks' own classes are asked, by their own descriptors: a subclass of the user's runs no code here.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Piece = tuple[object, int]
"""A piece of memory: what it is told by (its address), and its bytes."""
Weigh = Callable[[Any], Iterable[Piece]]
Look = Callable[[Any], Sequence[object]]

_MRO = type.__dict__["__mro__"].__get__
_MEMBERS = type.__dict__["__dict__"].__get__
_GPUS = {"cuda", "gpu", "rocm"}
_GRAPH = "next_functions"
_RAW = "_raw_saved_"
_BASES = 64


def bases(cls: type) -> tuple[type, ...]:
    """Return the classes of `cls`, its own first, whatever its metaclass says."""
    found: tuple[type, ...] = _MRO(cls)
    return found


def members(cls: type) -> Mapping[str, Any]:
    """Return what `cls` itself defines, whatever its metaclass says."""
    found: Mapping[str, Any] = _MEMBERS(cls)
    return found


def is_one(cls: type, of: type | None) -> bool:
    """Whether `cls` is `of`, or made from it. Compares by identity: a metaclass may have its own idea of equality."""
    return any(base is of for base in bases(cls))


class Arrays:
    """The frameworks that are imported now.

    Parameters
    ----------
    device
        Whether memory on GPUs is counted; otherwise the host's is.
    """

    def __init__(self, *, device: bool) -> None:
        self._device = device
        self._torch = _Torch(device=device) if _has("torch", "Tensor") else None
        self._cupy = _member("cupy", "ndarray") if device else None
        self._jax = _member("jax._src.array", "ArrayImpl")
        self._numpy = None if device else _member("numpy", "ndarray")

    def weigher(self, cls: type) -> Weigh | None:
        """Return what weighs objects of `cls`; None where they are no arrays."""
        torch = self._torch
        if torch is not None and is_one(cls, torch.tensor):
            return torch.weigh if torch.is_plain(cls) else None
        if torch is not None and is_one(cls, torch.storage):
            return torch.weigh_storage
        if self._cupy is not None and is_one(cls, self._cupy):
            return _weigh_cupy(self._cupy)
        if self._jax is not None and is_one(cls, self._jax):
            return self._weigh_jax
        if self._numpy is not None and is_one(cls, self._numpy):
            return _weigh_numpy(self._numpy)
        return None

    def walker(self, cls: type) -> Look | None:
        """Return what else objects of `cls` keep alive, where Python's garbage collector does not know; None where it does."""
        torch = self._torch
        if torch is None:
            return None
        if is_one(cls, torch.tensor):
            return torch.beside
        if any(
            type(members(one).get(_GRAPH)).__name__ == "getset_descriptor" for one in bases(cls)
        ):
            return torch.graph(cls)
        return None

    def role(self, value: object) -> int:
        """Say how well `value` names what it holds: a model (0) better than others (1), an optimizer (2) worse."""
        return 1 if self._torch is None else self._torch.role(value)

    def asking(self) -> contextlib.AbstractContextManager[object]:
        """Be in this while arrays are asked: torch then leaves out what subclasses of its tensors do."""
        return contextlib.nullcontext() if self._torch is None else self._torch.asking()

    def _weigh_jax(self, array: Any) -> Iterable[Piece]:
        if array.is_deleted():
            return ()
        device = next(iter(array.devices()))
        if (device.platform in _GPUS) != self._device:
            return ()
        key: object = ("jax", id(array))
        with contextlib.suppress(Exception):  # it is on several devices
            key = array.unsafe_buffer_pointer()
        return ((key, int(array.on_device_size_in_bytes())),)


class _Torch:
    """Torch's tensors, their gradients, and the graph that a loss keeps."""

    def __init__(self, *, device: bool) -> None:
        torch: Any = sys.modules["torch"]
        self._torch = torch
        self._c = torch._C
        self._base: Any = next(c for c in bases(torch.Tensor) if "untyped_storage" in members(c))
        self._where = "cuda" if device else "cpu"
        self.tensor: type = torch.Tensor
        self.storage: type = torch.UntypedStorage
        self._no_dispatch = getattr(self._c, "_disabled_torch_dispatch_impl", None)
        self._is_lazy = getattr(self._c, "_is_cow_tensor", lambda _tensor: False)
        self._get = {
            n: vars(self._base)[n].__get__ for n in ("device", "is_leaf", "retains_grad", "grad_fn")
        }
        self._grad = _getter(self.tensor, "grad")

    def asking(self) -> contextlib.AbstractContextManager[object]:
        context: contextlib.AbstractContextManager[object] = self._c.DisableTorchFunctionSubclass()
        return context

    def is_plain(self, cls: type) -> bool:
        """Whether tensors of `cls` hold memory themselves: a wrapper only has others inside."""
        found = next((members(c)["__torch_dispatch__"] for c in bases(cls) if "__torch_dispatch__" in members(c)), None)  # fmt: skip
        return found is None or found is self._no_dispatch

    def weigh(self, tensor: Any) -> Iterable[Piece]:
        if self._get["device"](tensor).type != self._where:
            return ()
        try:
            storage = self._base.untyped_storage(tensor)
        except (NotImplementedError, RuntimeError):  # sparse: it has no storage, its parts have
            return [piece for part in self._parts(tensor) for piece in self.weigh(part)]
        if self._is_lazy(tensor):  # asking for its address would make the copy
            return ((("lazy", storage._cdata), storage.nbytes()),)
        return self.weigh_storage(storage)

    def weigh_storage(self, storage: Any) -> Iterable[Piece]:
        if storage.device.type != self._where:
            return ()
        address, size = storage.data_ptr(), storage.nbytes()
        return ((address, size),) if address and size else ()

    def _parts(self, tensor: Any) -> list[Any]:
        names = ("_indices", "_values", "crow_indices", "ccol_indices", "col_indices", "row_indices", "values")  # fmt: skip
        parts = []
        for name in names:
            with contextlib.suppress(Exception):  # each layout has some of them
                parts.append(getattr(self._base, name)(tensor))
        return parts

    def beside(self, tensor: Any) -> Sequence[object]:
        """Return its attributes, its graph, and its gradient."""
        found = gc.get_referents(tensor)
        found.append(self._get["grad_fn"](tensor))
        if self._get["is_leaf"](tensor) or self._get["retains_grad"](tensor):
            found.append(self._grad(tensor))
        return found

    def graph(self, cls: type) -> Look:
        """Return a walk from a node of the autograd graph: to the nodes behind it and the tensors it has saved, unpacked by nobody."""
        saved = [n for c in bases(cls) for n in members(c) if n.startswith(_RAW)]
        variable = any("variable" in members(c) for c in bases(cls))

        def walk(node: Any) -> Sequence[object]:
            found: list[object] = gc.get_referents(node)
            found += [behind for behind, _ in getattr(node, _GRAPH)]
            if variable:
                found.append(node.variable)
            for name in saved:
                with contextlib.suppress(RuntimeError):  # they were freed by a backward pass
                    value = getattr(node, name)
                    for one in value if isinstance(value, tuple) else (value,):
                        found.append(getattr(one, "data", None))
            return found

        return walk

    def role(self, value: object) -> int:
        if is_one(type(value), self._torch.nn.Module):
            return 0
        return 2 if is_one(type(value), self._torch.optim.Optimizer) else 1


def _weigh_cupy(array: type) -> Weigh:
    data = _getter(array, "data")

    def weigh(one: Any) -> Iterable[Piece]:
        memory = data(one).mem
        return ((memory.ptr, int(memory.size)),)

    return weigh


def _weigh_numpy(array: type) -> Weigh:
    base, size = _getter(array, "base"), _getter(array, "nbytes")
    interface = _getter(array, "__array_interface__")

    def weigh(one: Any) -> Iterable[Piece]:
        for _ in range(_BASES):
            owner = base(one)
            if type(owner).__name__ == "DummyArray":  # of as_strided
                owner = vars(owner).get("base")
            if owner is None or not is_one(type(owner), array):
                break
            one = owner
        if type(owner) is memoryview:
            owner = owner.obj
        if is_one(type(owner), mmap.mmap):
            return ()  # a file's pages are the file's
        return ((interface(one)["data"][0], size(one)),)

    return weigh


def _getter(cls: type, name: str) -> Callable[[Any], Any]:
    """Return what reads an attribute as `cls` itself does, whatever subclasses make of it."""
    found = next(members(c)[name] for c in bases(cls) if name in members(c))
    read: Callable[[Any], Any] = found.__get__
    return read


def _has(module: str, name: str) -> bool:
    return _member(module, name) is not None


def _member(module: str, name: str) -> type | None:
    """Return a class of a module that is imported, and far enough; None elsewhere."""
    found = vars(sys.modules.get(module) or object).get(name)
    return found if isinstance(found, type) else None
