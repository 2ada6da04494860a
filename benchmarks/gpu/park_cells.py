"""Tensors that are parked and looked at again, as cells of a notebook. Run in kernels; nothing of gpushare is imported."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

PIECES = 8
CHUNK = 2**21
"""Words that are hashed at a time: what that takes beside the tensors stays small."""
_PRIME = 0x100000001B3
held = []


def build(size, seed, place="cuda"):
    """Hold `size` bytes of random numbers, in several tensors."""
    generator = torch.Generator(place).manual_seed(seed)
    number = size // PIECES // 4
    held.clear()  # first: both at once need not fit
    held[:] = [torch.randn(number, device=place, generator=generator) for _ in range(PIECES)]


def first(place="cuda"):
    """Do a little work on the GPU; return when its result was there (monotonic clock)."""
    torch.arange(1000, device=place).sum().item()
    return time.monotonic()


def digest():
    """Return a hash of all words: each times an odd number of its place, the sums mixed. Computed on the GPU."""
    weights = torch.arange(CHUNK, dtype=torch.int64, device=held[0].device) * 2 + 1
    found = 0
    for tensor in held:
        parts = tensor.view(torch.int32).split(CHUNK)
        sums = torch.stack([(part.long() * weights[: len(part)]).sum() for part in parts]).tolist()
        for one in sums:
            found = (found * _PRIME + one) % 2**64
    return f"{found:016x}"


def sha():
    """Return the SHA-256 of all bytes of each tensor, computed on the CPU."""
    with ThreadPoolExecutor(PIECES) as pool:
        return list(pool.map(lambda one: hashlib.sha256(one.cpu().numpy()).hexdigest(), held))


def turn(place="cuda"):
    """A cell of somebody who has come back: the first result, then all of the data."""
    return {"first": first(place), "digest": digest()}


def take(size, ready, stop):
    """Hold `size` bytes until a file `stop` is there; return when they were given back (monotonic clock)."""
    block = torch.empty(size, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    Path(ready).touch()
    while not Path(stop).exists():
        time.sleep(0.01)
    del block
    torch.cuda.empty_cache()
    return time.monotonic()
