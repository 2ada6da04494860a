"""A process with arrays on the GPU that does as it is told, a line at a time: `python holders.py FRAMEWORK BYTES`.

`hash` reads every byte, `first` does a little GPU work and waits for it, `cpu` saves a file and computes 1 + 1, `take N`
leaves N bytes free on the GPU, `give` gives back what was taken. Each is answered with one line: the word, seconds, what came of it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PIECES = 8
SAVED = 2**20


class Torch:
    """Arrays of torch."""

    def __init__(self, size: int) -> None:
        import torch  # noqa: PLC0415 - one framework a process

        self.torch = torch
        torch.manual_seed(7)
        self.arrays = [torch.randn(size // PIECES // 4, device="cuda") for _ in range(PIECES)]
        self.taken: list[Any] = []
        torch.cuda.synchronize()

    def bytes_of(self, array: Any) -> bytes:
        """Return an array's bytes."""
        return bytes(array.cpu().numpy().tobytes())

    def first(self) -> int:
        """Do a little work on the GPU."""
        return int(self.torch.arange(1000, device="cuda").sum())

    def take(self, leave: int) -> int:
        """Take all but `leave` bytes of what is free; return what is free then."""
        free = self.torch.cuda.mem_get_info()[0]
        if free > leave:
            self.taken.append(self.torch.empty(free - leave, dtype=self.torch.uint8, device="cuda"))
            self.torch.cuda.synchronize()
        return int(self.torch.cuda.mem_get_info()[0])

    def give(self) -> int:
        """Give it back."""
        self.taken.clear()
        self.torch.cuda.empty_cache()
        return int(self.torch.cuda.mem_get_info()[0])


class Cupy:
    """Arrays of CuPy."""

    def __init__(self, size: int) -> None:
        import cupy  # noqa: PLC0415

        self.cupy = cupy
        cupy.random.seed(7)
        draw = cupy.random.standard_normal
        self.arrays = [draw(size // PIECES // 4, dtype=cupy.float32) for _ in range(PIECES)]
        cupy.cuda.Device().synchronize()

    def bytes_of(self, array: Any) -> bytes:
        """Return an array's bytes."""
        return bytes(self.cupy.asnumpy(array).tobytes())

    def first(self) -> int:
        """Do a little work on the GPU."""
        return int(self.cupy.arange(1000).sum())


class Jax:
    """Arrays of JAX."""

    def __init__(self, size: int) -> None:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax  # noqa: PLC0415
        import numpy as np  # noqa: PLC0415

        self.jax, self.numpy = jax, np
        count = size // PIECES // 4
        self.arrays = [jax.random.normal(jax.random.key(n), (count,)) for n in range(PIECES)]
        jax.block_until_ready(self.arrays)

    def bytes_of(self, array: Any) -> bytes:
        """Return an array's bytes."""
        return bytes(self.numpy.asarray(array).tobytes())

    def first(self) -> int:
        """Do a little work on the GPU."""
        return int(self.jax.numpy.arange(1000).sum())


def hashed(held: Any) -> str:
    """Return the SHA-256 of the arrays' SHA-256; theirs are taken side by side, each of all bytes."""
    with ThreadPoolExecutor(PIECES) as pool:
        found = pool.map(lambda array: hashlib.sha256(held.bytes_of(array)).digest(), held.arrays)
        return hashlib.sha256(b"".join(found)).hexdigest()


def saved() -> int:
    """Save a file and compute 1 + 1."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "saved").write_bytes(bytes(SAVED))
    return 1 + 1


def main(framework: str, size: int) -> None:
    """Answer until stdin ends."""
    held: Any = {"torch": Torch, "cupy": Cupy, "jax": Jax}[framework](size)
    does: dict[str, Callable[..., Any]] = {
        "hash": lambda: hashed(held),
        "first": held.first,
        "cpu": saved,
    }
    if framework == "torch":
        does |= {"take": held.take, "give": held.give}
    print("up 0 0", flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        start = time.monotonic()
        came = does[word](*map(int, numbers))
        print(word, time.monotonic() - start, came, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
