"""A process with memory on the GPU beside an arena of the host: `python copier.py DEVICE BYTES FD ARENA_BYTES`, a command a line.

`copy WAY THREADS SLOT` copies all of it out and back; `register` and `unregister` tell the driver of the whole arena;
`hash` sums every word on the device. Each is answered with one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
import time
from typing import Any

from gpushare_kernel.client.copy_ring import Ring
from gpushare_kernel.client.copying import CudaCopier, Piece, Way
from gpushare_kernel.client.libcuda import Cuda

PIECES = 16
MiB = 2**20


class HostDriver:
    """Stands in for a driver where there is no GPU: it copies at once. What is measured then are this machine's threads."""

    def __init__(self) -> None:
        self._pinned: dict[int, Any] = {}

    def pin(self, size: int) -> int:
        """Return memory."""
        memory = ctypes.create_string_buffer(size)
        self._pinned[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def unpin(self, address: int) -> None:
        """Give it back."""
        del self._pinned[address]

    def to_host(self, to: int, address: int, size: int, _stream: int) -> None:
        """Copy."""
        ctypes.memmove(to, address, size)

    def to_device(self, address: int, source: int, size: int, _stream: int) -> None:
        """Copy."""
        ctypes.memmove(address, source, size)

    def stream(self) -> int:
        """Return one."""
        return 1

    event = stream

    def nothing(self, *_: int) -> None:
        """Do nothing: it is done already."""

    enter = settle_all = settle = end_stream = record = wait = end_event = nothing
    register = unregister = nothing


class Blocks:
    """Memory of the device, in pieces."""

    def __init__(self, device: str, size: int) -> None:
        self._cuda = device == "cuda"
        part = size // PIECES // 8 * 8
        if self._cuda:
            import torch  # noqa: PLC0415 - not where there is no GPU

            torch.manual_seed(7)
            self._torch = torch
            self._held = [
                torch.randint(2**62, (part // 8,), device="cuda")
                for _ in range(PIECES if part else 0)
            ]
            torch.zeros(64, 64, device="cuda").sum().item()
            addresses = [block.data_ptr() for block in self._held]
        else:
            self._held = [mmap.mmap(-1, part) for _ in range(PIECES if part else 0)]
            for number, block in enumerate(self._held):
                ctypes.memset(_address(block), number + 1, part)
            addresses = [_address(block) for block in self._held]
        self.pieces = [Piece(there, part, number * part) for number, there in enumerate(addresses)]

    def hash(self) -> int:
        """Return a sum of every word, in which its block counts."""
        if self._cuda:
            return sum((number + 1) * int(block.sum()) for number, block in enumerate(self._held))
        return sum((number + 1) * sum(block[::4096]) for number, block in enumerate(self._held))

    def clear(self) -> None:
        """Write over all of it."""
        for block, piece in zip(self._held, self.pieces, strict=True):
            if self._cuda:
                block.zero_()
            else:
                ctypes.memset(piece.address, 0, piece.size)
        if self._cuda:
            self._torch.cuda.synchronize()


class Place:
    """The arena, mapped here."""

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size)
        self.size, self.address = size, _address(self._map)


class Bench:
    """What the commands do."""

    def __init__(self, device: str, size: int, fd: int, arena: int) -> None:
        self._blocks = Blocks(device, size)
        self._place = Place(fd, arena) if arena else None
        self._driver: Any = Cuda() if device == "cuda" else HostDriver()
        self._driver.enter()

    def copy(self, way: str, threads: str, slot: str) -> dict[str, Any]:
        """Copy out and back, twice: the first time makes the ring."""
        assert self._place is not None
        ring = Ring(self._driver, int(threads) or None, int(slot) * MiB)
        copier, before = CudaCopier(self._driver, Way(way), ring), self._blocks.hash()
        found: dict[str, Any] = {"out": [], "back": []}
        for _ in range(2):
            found["out"].append(copier.out(self._blocks.pieces, self._place))
            self._blocks.clear()
            found["back"].append(copier.back(self._blocks.pieces, self._place))
        copier.close()
        return {**found, "changed": self._blocks.hash() != before}

    def hash(self) -> dict[str, Any]:
        """Sum it."""
        return {"hash": self._blocks.hash()}

    def register(self) -> dict[str, Any]:
        """Tell the driver of all of the arena, in parts as a large one needs."""
        return self._each(self._driver.register)

    def unregister(self) -> dict[str, Any]:
        """Undo it."""
        return self._each(lambda start, _: self._driver.unregister(start))

    def _each(self, do: Any) -> dict[str, Any]:
        began = time.perf_counter()
        if self._place is not None:
            for start in range(0, self._place.size, 4 * 1024 * MiB):
                do(self._place.address + start, min(4 * 1024 * MiB, self._place.size - start))
        return {"seconds": time.perf_counter() - began}


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def main(device: str, size: str, fd: str, arena: str) -> None:
    """Answer until stdin ends."""
    bench = Bench(device, int(size), int(fd), int(arena))
    print(json.dumps({"up": True}), flush=True)
    for line in sys.stdin:
        word, *words = line.split()
        print(json.dumps(getattr(bench, word)(*words)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
