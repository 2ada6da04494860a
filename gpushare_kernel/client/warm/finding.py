"""Which storages of torch can be moved off the device, and which stay.

Looked at is what Python's garbage collector knows, by exact type: no code of the user's runs (W2). A storage is
moved only where everybody who holds it was seen; in doubt it stays (W3).
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gpushare_kernel.client.arrays import members
from gpushare_kernel.client.reach import no_collection
from gpushare_kernel.client.warm import pools
from gpushare_kernel.client.warm.exports import Exports

GIVEN = "shared with another library or process, or its address was asked for"
FOREIGN = "not allocated by torch"
UNSEEN = "held by something that cannot be seen from Python, like a loss whose backward pass is still to come"
LAZY = "a copy that is made when it is first written"
OVERLAPS = "lies over memory that stays"


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays on the device: why, how many storages, and their bytes."""

    why: str
    count: int
    bytes: int


@dataclass(slots=True)
class Found:
    """The storages that can be moved, and what stays."""

    movable: list[Any] = field(default_factory=list)
    kept: tuple[Kept, ...] = ()


@dataclass(slots=True)
class _Held:
    """One storage, with how many tensors hold it and whether one of them is a copy yet to be made."""

    storage: Any
    owners: int = 0
    lazy: bool = False


class Finder:
    """Looks for torch's storages in this process.

    Parameters
    ----------
    torch
        The module.
    exports
        What is known to others.
    devices
        The types of device that are looked at: `cuda`; tests take `cpu`.
    types
        Subclasses of Tensor whose objects are plain tensors with something beside them.
    """

    def __init__(
        self, torch: Any, exports: Exports, devices: Collection[str] = ("cuda",), types: Iterable[type] = ()
    ) -> None:  # fmt: skip
        self._torch, self._exports, self._devices = torch, exports, frozenset(devices)
        self._base: Any = torch._C.TensorBase
        self._store: Any = torch._C.StorageBase
        # By identity: a class may have its own idea of what it is equal to.
        self._types = {id(torch.Tensor), id(torch.nn.Parameter), *map(id, types)}
        self._lazy = getattr(torch._C, "_is_cow_tensor", lambda _tensor: False)
        self._count = getattr(torch._C, "_storage_Use_Count", None)
        self._get = {n: _getter(self._base, n) for n in ("device", "is_leaf", "retains_grad", "_base", "grad")}  # fmt: skip

    def find(self) -> Found:
        """Look. What is returned keeps storages alive, and no tensors."""
        with no_collection(), self._torch._C.DisableTorchFunction():
            held = self._held()
        places = pools.places(self._torch) if "cuda" in self._devices else None
        reasons: dict[int, str] = {}
        for key, one in held.items():
            reasons[key] = self._why_not(one, places)
        self._mark_overlaps(held, reasons)
        counts: Counter[str] = Counter(why for why in reasons.values() if why)
        sizes: Counter[str] = Counter()
        for key, why in reasons.items():
            sizes[why] += self._size(held[key].storage)
        kept = tuple(Kept(why, counts[why], sizes[why]) for why in sorted(counts))
        return Found([one.storage for key, one in held.items() if not reasons[key]], kept)

    def _held(self) -> dict[int, _Held]:
        held: dict[int, _Held] = {}
        seen: dict[int, Any] = {}
        todo = [one for one in gc.get_objects() if id(type(one)) in self._types]
        while todo:
            tensor = todo.pop()
            if id(tensor) in seen:
                continue
            seen[id(tensor)] = tensor
            try:
                if self._get["device"](tensor).type not in self._devices:
                    continue
                todo += self._beside(tensor)
                storage = self._base.untyped_storage(tensor)
            except (NotImplementedError, RuntimeError):
                continue  # sparse, or a wrapper of a transformation: its parts are held by it, and stay
            one = held.setdefault(storage._cdata, _Held(storage))
            one.owners += 1
            one.lazy = one.lazy or self._lazy(tensor)
        return {key: one for key, one in held.items() if self._store.nbytes(one.storage)}

    def _beside(self, tensor: Any) -> Iterator[Any]:
        """Yield the gradient and the base of a view: the garbage collector need not know them."""
        names = ["_base"]
        if self._get["is_leaf"](tensor) or self._get["retains_grad"](tensor):
            names.append("grad")
        for name in names:
            other = self._get[name](tensor)
            if id(type(other)) in self._types:
                yield other

    def _why_not(self, one: _Held, places: pools.Places | None) -> str:
        storage = one.storage
        if one.lazy:  # before its address is asked for: that would make the copy
            return LAZY
        on_gpu = storage.device.type == "cuda"
        if self._exports.has(storage) or (not on_gpu and storage.is_shared()):
            return GIVEN
        if type(storage) is not self._torch.UntypedStorage or not self._store.resizable(storage):
            return FOREIGN
        # Each tensor that was seen counts once, and so does the storage's object that we hold.
        if self._count is None or self._count(storage._cdata) != one.owners + 1:
            return UNSEEN
        if on_gpu and places is not None:
            return places.why_not(storage.device.index, self._store.data_ptr(storage))
        return ""

    def _mark_overlaps(self, held: dict[int, _Held], reasons: dict[int, str]) -> None:
        """Memory that stays, under another storage's name, must not be freed under it."""
        spans = sorted(
            (self._store.data_ptr(one.storage), self._size(one.storage), key)
            for key, one in held.items()
            if reasons[key] != LAZY
        )
        end, last = 0, 0
        for start, size, key in spans:
            if start < end:
                for one in (key, last):
                    reasons[one] = reasons[one] or OVERLAPS
            if start + size > end:
                end, last = start + size, key

    def _size(self, storage: Any) -> int:
        return int(self._store.nbytes(storage))


def _getter(cls: Any, name: str) -> Any:
    return members(next(c for c in cls.__mro__ if name in members(c)))[name].__get__
