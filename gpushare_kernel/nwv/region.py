"""Tensors in memory of the host that several processes map: a sealed memfd.

It is written once and sealed: nobody can write to it, grow it or shrink it afterwards, whoever has the descriptor. It is
mapped privately (MAP_PRIVATE): the memory is shared as long as it is only read, and should something in a process write to
it all the same, that process alone gets a copy of that page of memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Mapping
from typing import NoReturn, Self

import msgspec
import torch

from gpushare_kernel.core.errors import PeerError
from gpushare_kernel.nwv.layout import aligned

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_AT_ONCE = 2**30
"""Bytes written by one call; Linux takes no more than 2 GiB."""


class Part(msgspec.Struct, frozen=True):
    """One tensor: its name and form, and the byte at which it begins."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.kind.itemsize

    @property
    def kind(self) -> torch.dtype:
        """Its type.

        Raises
        ------
        PeerError
            Where torch has no such type.
        """
        found = getattr(torch, self.dtype, None)
        if not isinstance(found, torch.dtype):
            msg = f"a tensor in shared memory has a type of torch, not {self.dtype[:40]!r}."
            raise PeerError(msg)
        return found


def parts_of(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Part, ...], int]:
    """Return where tensors lie when one is put behind the other, and the bytes that they take."""
    parts, offset = [], 0
    for name, tensor in tensors.items():
        part = Part(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset)
        parts.append(part)
        offset += aligned(part.size)
    return tuple(parts), max(1, offset)


class Region:
    """Tensors in a sealed memfd, mapped here.

    Attributes
    ----------
    fd
        The memfd; closed when this is collected. Mappings, here and elsewhere, outlive it.
    tensors, whole
        By name, and all of it as bytes. Not to be written to.
    """

    def __init__(self, fd: int, parts: tuple[Part, ...]) -> None:
        self.fd, self.parts = fd, parts
        self.size = _sealed(fd)
        if any(part.offset < 0 or part.offset + part.size > self.size for part in parts):
            msg = f"tensors in shared memory lie inside it, and these are {parts} in {self.size} bytes."
            raise PeerError(msg)
        self.whole = torch.frombuffer(mmap.mmap(fd, self.size, flags=mmap.MAP_PRIVATE), dtype=torch.uint8)  # fmt: skip
        self.tensors = {
            part.name: self.whole[part.offset : part.offset + part.size]
            .view(part.kind)
            .view(part.shape)
            for part in parts
        }

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Return tensors copied into a new one."""
        parts, size = parts_of(tensors)
        fd = os.memfd_create("gpushare-pages", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            for part, tensor in zip(parts, tensors.values(), strict=True):
                _write(fd, part, tensor)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            return cls(fd, parts)
        except BaseException:
            os.close(fd)
            raise

    def cut(self, parts: tuple[Part, ...]) -> Region:
        """Return the same memory with other parts."""
        return Region(os.dup(self.fd), parts)

    def __reduce__(self) -> NoReturn:
        msg = "tensors in shared memory are not copied or pickled as such. Take bundle[name].unpacked() for a module of your own."
        raise TypeError(msg)

    def __del__(self) -> None:
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)


def _sealed(fd: int) -> int:
    """Return the size of a memfd that nobody can change any more."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as problem:
        msg = "pages come in a sealed memfd, and this is another kind of descriptor."
        raise PeerError(msg) from problem
    if seals & SEALS != SEALS:
        msg = f"pages come in a memfd with seals {SEALS:#x}, and this one has {seals:#x}."
        raise PeerError(msg)
    return os.fstat(fd).st_size


def _write(fd: int, part: Part, tensor: torch.Tensor) -> None:
    if not part.size:
        return
    tensor = tensor.detach().cpu().contiguous()
    data = memoryview((ctypes.c_char * part.size).from_address(tensor.data_ptr())).cast("B")
    done = 0
    while done < part.size:
        done += os.pwrite(fd, data[done : done + _AT_ONCE], part.offset + done)
