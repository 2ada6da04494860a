"""Torch's storages, asked by its own C functions: nothing of the user's sees it."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from typing import Any

_CHUNK = 64 << 20


class TorchStore:
    """What `aside` asks of torch.

    Parameters
    ----------
    torch
        The module.
    settle, trim
        The adapter's: wait for what was launched, give back what is unused.
    """

    def __init__(self, torch: Any, settle: Callable[[], None], trim: Callable[[], None]) -> None:
        self._torch, self.settle, self.trim = torch, settle, trim
        self._base: Any = torch._C.StorageBase
        self._set: Any = torch._C.TensorBase.set_

    def address(self, storage: Any) -> int:
        """Return where its bytes are."""
        return int(self._base.data_ptr(storage))

    def size(self, storage: Any) -> int:
        """Return its bytes."""
        return int(self._base.nbytes(storage))

    def resize(self, storage: Any, size: int) -> None:
        """Empty it, or give it memory anew; tensors, views and their versions stay as they are."""
        self._base.resize_(storage, size)

    def digest(self, storage: Any) -> bytes:
        """Hash its bytes; a GPU's are brought here by torch, piece by piece."""
        if storage.device.type == "cpu":
            return digest(self.address(storage), self.size(storage))
        torch = self._torch
        found = hashlib.blake2b(digest_size=16)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            whole = torch.empty(0, dtype=torch.uint8, device=storage.device)
            self._set(whole, storage)
            for first in range(0, self.size(storage), _CHUNK):
                here = whole[first : first + _CHUNK].cpu()
                found.update(_bytes(torch._C.TensorBase.data_ptr(here), here.numel()))
        return found.digest()


def digest(address: int, size: int) -> bytes:
    """Hash bytes of the host's memory."""
    return hashlib.blake2b(_bytes(address, size), digest_size=16).digest()


def _bytes(address: int, size: int) -> Any:
    return (ctypes.c_char * size).from_address(address)
