"""An endless training in CuPy, as a cell: the same for both arms. Runs after `gpu/workloads.py`, in the same kernel."""

from __future__ import annotations

import cupy

SIDE, ROWS = 4096, 1024
PIECE = 4 * SIDE * SIDE
"""Bytes of one layer's weights."""
BESIDE = 256 * 2**20
"""Bytes that an iteration takes beside the weights, at most."""
RATE = 1e-6
layers = []
pools = []


def build(size, managed=False):
    """Take `size` bytes for weights and touch hardly any of them; with `managed` in memory that the driver pages."""
    if managed:
        pools.append(cupy.cuda.MemoryPool(cupy.cuda.malloc_managed))
        cupy.cuda.set_allocator(pools[-1].malloc)
        free = cupy.cuda.runtime.memGetInfo()[0]
        if size + BESIDE > free:  # more in one process than is free can hang the GPU
            raise MemoryError(f"{size + BESIDE} bytes are not free: {free}")
    layers[:] = [cupy.empty((SIDE, SIDE), dtype=cupy.float32) for _ in range(size // PIECE)]
    x = cupy.full((ROWS, SIDE), 1 / 64, dtype=cupy.float32)

    def learn(weights):
        gradient = x.T @ (x @ weights)
        gradient *= RATE
        weights -= gradient

    def step():
        for weights in layers:
            learn(weights)
        cupy.cuda.Device().synchronize()

    layers[0].fill(0.01)
    learn(layers[0])  # what an iteration takes beside the weights is in the pool from here on
    cupy.cuda.Device().synchronize()
    _steps["train"] = step


def fill():
    """Touch all of it."""
    for weights in layers:
        weights.fill(0.01)
    cupy.cuda.Device().synchronize()
