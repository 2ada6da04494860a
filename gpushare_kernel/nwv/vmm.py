"""Memory of a GPU that several processes map: the ten calls of the driver that it takes (`cuda.bindings`, which is optional).

docs/bundles.md has the facts that are relied on. Whoever maps imported memory must not be checkpointed by the driver (I5): `Mapping.unmap`
lets go of all of it, and `remap` has it at the same address again, so that pointers, also those in CUDA graphs, stay right.
From before it is imported until it is let go a file of a known name (`MARK`) stays open, for whoever parks processes to see.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from gpushare_kernel.core.errors import DeviceError

MARK = "gpushare-imported"
"""Nothing else tells from outside that a process maps imported memory: its descriptor is closed as soon as it does."""


class DriverError(DeviceError):
    """The driver refused; the message has its call and its answer."""


@cache
def _driver() -> Any:
    try:
        from cuda.bindings import driver  # noqa: PLC0415  an extra
    except ImportError as problem:
        msg = "pages shared on a GPU need cuda-bindings. In a clone of gpushare: pip install '.[cuda13]'"
        raise DriverError(msg) from problem
    return driver


def _call(name: str, *given: Any) -> Any:
    """Call the driver; return what it gives beside its answer.

    Raises
    ------
    DriverError
        Where the answer is not CUDA_SUCCESS, or there is no driver.
    """
    try:
        answer, *found = getattr(_driver(), name)(*given)
    except RuntimeError as problem:  # the bindings' loader does not find libcuda
        msg = f"{name}: there is no CUDA driver here ({problem})."
        raise DriverError(msg) from problem
    if answer.name != "CUDA_SUCCESS":
        msg = f"{name}: {answer.name}."
        raise DriverError(msg)
    return found[0] if found else None


def _properties(device: int) -> Any:
    cu = _driver()
    found = cu.CUmemAllocationProp()
    found.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    found.requestedHandleTypes = (
        cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    )
    found.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    found.location.id = device
    return found


def rounded(size: int, device: int = 0) -> int:
    """Return a size in whole grains of the device (2 MiB on those of today)."""
    grain = int(
        _call(
            "cuMemGetAllocationGranularity",
            _properties(device),
            _driver().CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM,
        )
    )
    return -(-size // grain) * grain


def created(size: int, device: int = 0) -> tuple[Any, int]:
    """Return memory of the device, at least `size` bytes, and a descriptor of it. No context is made; the handle keeps it."""
    _call("cuInit", 0)
    handle = _call("cuMemCreate", rounded(size, device), _properties(device), 0)
    kind = _driver().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return handle, int(_call("cuMemExportToShareableHandle", handle, kind, 0))


class Mapping:
    """Memory that another process made, mapped here.

    Parameters
    ----------
    size
        Bytes that are used of it.
    device
        The GPU's number in this process.

    Attributes
    ----------
    address
        Where it is, or will be again: reserved for as long as this lives.
    """

    def __init__(self, size: int, device: int = 0) -> None:
        _call("cuInit", 0)
        self.size, self._device = size, device
        self._whole = rounded(size, device)
        self.address = int(_call("cuMemAddressReserve", self._whole, 0, 0, 0))
        self._handle: Any = None
        self._mark = -1

    @property
    def mapped(self) -> bool:
        """Whether it may be read."""
        return self._handle is not None

    def map(self, fd: int, *, write: bool = False) -> None:
        """Map what a descriptor stands for; the descriptor is closed. `write` is for whoever fills it."""
        cu = _driver()
        kind = cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self._mark = os.memfd_create(MARK)
        try:
            self._handle = _call("cuMemImportFromShareableHandle", fd, kind)
        except BaseException:
            self._unmark()
            raise
        finally:
            os.close(fd)
        try:
            _call("cuMemMap", self.address, self._whole, 0, self._handle, 0)
        except DriverError:
            _call("cuMemRelease", self._handle)
            self._handle = None
            self._unmark()
            raise
        self._access(write=write)

    def read_only(self) -> None:
        """It is filled: nothing of this process may write to it any more."""
        self._access(write=False)

    def unmap(self) -> None:
        """Let go of the memory, not of the address. What still runs on the device must have ended."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        _call("cuMemUnmap", self.address, self._whole)
        _call("cuMemRelease", handle)
        self._unmark()

    def _unmark(self) -> None:
        mark, self._mark = self._mark, -1
        if mark >= 0:
            os.close(mark)

    def close(self) -> None:
        """Let go of all of it."""
        self.unmap()
        address, self.address = self.address, 0
        if address:
            _call("cuMemAddressFree", address, self._whole)

    def _access(self, *, write: bool) -> None:
        cu = _driver()
        wanted = cu.CUmemAccessDesc()
        wanted.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        wanted.location.id = self._device
        flags = cu.CUmemAccess_flags
        wanted.flags = (
            flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            if write
            else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        )
        _call("cuMemSetAccess", self.address, self._whole, [wanted], 1)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How torch and CuPy see it: bytes. They know of no read-only memory; a write is an error of the device."""
        return {"shape": (self.size,), "typestr": "|u1", "data": (self.address, False), "version": 3, "strides": None}  # fmt: skip
