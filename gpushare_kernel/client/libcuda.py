"""The calls of the CUDA driver that copies need, by ctypes.

`libcuda.so.1` is there wherever a kernel has used a GPU, whatever framework it has. `cuda.bindings` is an extra of ours and
a need of torch from 2.11 on, so nobody may count on it; and beside CuPy alone there is no torch. ctypes lets the GIL go in each call. Names with `_v2` are what `cuda.h`
means by the plain ones; the plain symbols take addresses of 32 bits.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p

from gpushare_kernel.core.errors import DeviceError

_NON_BLOCKING, _NO_TIMING, _PORTABLE = 1, 2, 1
_CALLS: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventDestroy_v2": (c_void_p,),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemHostRegister_v2": (c_void_p, c_size_t, c_uint),
    "cuMemHostUnregister": (c_void_p,),
}


class Cuda:
    """The driver, in the primary context of one device: the one that torch and CuPy work in. A `copy_ring.Driver`.

    Parameters
    ----------
    device
        Its number, as torch and CuPy count.
    library
        Where the driver is.

    Raises
    ------
    DeviceError
        Where there is none, or it does not give us the device.
    """

    def __init__(self, device: int = 0, library: str = "libcuda.so.1") -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as problem:
            text = f"copies to and from a GPU need the CUDA driver, and there is none here ({problem})."
            raise DeviceError(text) from problem
        self._library.cuGetErrorName.argtypes = (c_int, POINTER(c_char_p))
        for name, arguments in _CALLS.items():
            call = getattr(self._library, name)
            call.argtypes, call.restype = arguments, c_int
        self._call("cuInit", 0)
        self._device, self._context = c_int(), c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    def close(self) -> None:
        """Let go of the context; nothing else may be called after it."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def enter(self) -> None:
        """Have this thread work on the device."""
        self._call("cuCtxSetCurrent", self._context)

    def settle_all(self) -> None:
        """Wait until the device has done all that this process asked of it."""
        self._call("cuCtxSynchronize")

    def stream(self) -> int:
        """Return a new stream, which waits for no other."""
        return self._made("cuStreamCreate", _NON_BLOCKING)

    def settle(self, stream: int) -> None:
        """Wait until a stream has done all that was asked of it."""
        self._call("cuStreamSynchronize", stream)

    def end_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cuStreamDestroy_v2", stream)

    def event(self) -> int:
        """Return a new event."""
        return self._made("cuEventCreate", _NO_TIMING)

    def record(self, event: int, stream: int) -> None:
        """Have the event happen when the stream has done all that was asked of it so far."""
        self._call("cuEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Wait until it has happened as last recorded; one that was never recorded has."""
        self._call("cuEventSynchronize", event)

    def end_event(self, event: int) -> None:
        """Give an event back."""
        self._call("cuEventDestroy_v2", event)

    def to_host(self, to: int, address: int, size: int, stream: int) -> None:
        """Begin to copy from the device."""
        self._call("cuMemcpyDtoHAsync_v2", to, address, size, stream)

    def to_device(self, address: int, source: int, size: int, stream: int) -> None:
        """Begin to copy to the device."""
        self._call("cuMemcpyHtoDAsync_v2", address, source, size, stream)

    def pin(self, size: int) -> int:
        """Return the address of new pinned memory of the host."""
        made = c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(made), size, _PORTABLE)
        return made.value or 0

    def unpin(self, address: int) -> None:
        """Give it back."""
        self._call("cuMemFreeHost", address)

    def register(self, address: int, size: int) -> None:
        """Pin memory that is there already."""
        self._call("cuMemHostRegister_v2", address, size, _PORTABLE)

    def unregister(self, address: int) -> None:
        """Undo it."""
        self._call("cuMemHostUnregister", address)

    def _made(self, name: str, flags: int) -> int:
        made = c_void_p()
        self._call(name, ctypes.byref(made), flags)
        return made.value or 0

    def _call(self, name: str, *arguments: object) -> None:
        answer = getattr(self._library, name)(*arguments)
        if answer:
            text = c_char_p()
            self._library.cuGetErrorName(answer, ctypes.byref(text))
            problem = f"{name}: {(text.value or str(answer).encode()).decode()}. What was being copied is where it was."
            raise DeviceError(problem)
