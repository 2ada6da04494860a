"""The work that is counted, as a notebook would write it. Run in kernels as a cell; nothing of gpushare is imported.

`prepare(kind, place)` builds what a kind of work needs and warms it up; `work(kind, path, slot, until)` repeats its
step, each ending in a synchronisation, and counts them in a word of a file that everybody maps, so whoever measures
reads without asking. `place` is "cuda", "cpu" (torch on the CPU, small: for tests of this file) or "host": a
stand-in on hashlib that needs no framework and tells nothing about a GPU.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time

NOTABLE = 1.0
"""A step that takes longer (seconds) is reported with its beginning and end."""
_WARM = {"cuda": 10, "cpu": 1, "host": 1}
_steps = {}


def prepare(kind, place, **options):
    """Build the step of `kind` and run it a few times; a second call for the same does nothing."""
    if kind not in _steps:
        make = _host if place == "host" else FACTORIES[kind]
        _steps[kind] = make(place, **options)
    for _ in range(_WARM[place]):
        _steps[kind]()


def work(kind, path, slot, until, stop=None):
    """Repeat the step until the monotonic clock says `until`, or a file `stop` is there; return the gaps between steps."""
    began, step, gaps, longest = time.monotonic(), _steps[kind], [], 0.0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:  # noqa: PTH123
        words = memoryview(mapped).cast("Q")
        last = time.monotonic()
        while last < until:
            step()
            words[slot] += 1
            now = time.monotonic()
            if now - last > NOTABLE:
                gaps.append([last, now])
            longest, last = max(longest, now - last), now
            if stop is not None and os.path.exists(stop):  # noqa: PTH110  once a step
                break
        words.release()
    return {"began": began, "gaps": gaps, "longest": longest}


def repeat(kind, times):
    """Run the step `times` times; return the seconds it took."""
    return sum(timed(kind, times))


def timed(kind, times):
    """Run the step `times` times; return the seconds of each."""
    step, found, before = _steps[kind], [], time.monotonic()
    for _ in range(times):
        step()
        now = time.monotonic()
        found.append(now - before)
        before = now
    return found


def serve(kind, arrivals):
    """Serve a request at each of `arrivals` (monotonic clock); return the latencies from arrival to answer."""
    step, latencies = _steps[kind], []
    for arrival in arrivals:
        time.sleep(max(0.0, arrival - time.monotonic()))
        step()
        latencies.append(time.monotonic() - arrival)
    return latencies


def _sync(place):
    import torch

    return torch.cuda.synchronize if place == "cuda" else lambda: None


def _matmul(place):
    """Four products of 4096 x 4096 in bf16, then a sync: saturates. Through a module, as models do it."""
    import torch

    size, kind = (4096, torch.bfloat16) if place == "cuda" else (64, torch.float32)
    layer = torch.nn.Linear(size, size, bias=False, device=place, dtype=kind)
    a, sync = torch.randn(size, size, device=place, dtype=kind), _sync(place)

    def step():
        with torch.no_grad():
            for _ in range(4):
                layer(a)
        sync()

    return step


def _conv(place):
    """Train 12 convolutions with batch norm by Adam, the loss read every fourth time: saturates."""
    import torch
    from torch import nn

    width, side, batch = (64, 56, 32) if place == "cuda" else (4, 8, 2)
    blocks = [
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        for _ in range(12)
    ]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    model = model.to(place)
    x = torch.randn(batch, width, side, side, device=place)
    y = torch.randint(0, 10, (batch,), device=place)
    optimizer, sync = torch.optim.Adam(model.parameters()), _sync(place)

    def step():
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        sync()

    return step


def _lstm(place):
    """Train a two-layer LSTM by SGD, batch 32, sequence 64: bound by launches."""
    import torch
    from torch import nn

    width, length = (256, 64) if place == "cuda" else (8, 4)
    model = nn.LSTM(width, width, 2).to(place)
    x = torch.randn(length, 32, width, device=place)
    optimizer, sync = torch.optim.SGD(model.parameters(), lr=0.01), _sync(place)

    def step():
        optimizer.zero_grad()
        model(x)[0].sum().backward()
        optimizer.step()
        sync()

    return step


def _resnet(place, batch=64):
    """Train a small residual network by SGD with momentum."""
    import torch
    from torch import nn

    width, side = (64, 64) if place == "cuda" else (4, 8)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )

        def forward(self, x):
            return torch.relu(x + self.body(x))

    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        *[Block() for _ in range(8)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    ).to(place)
    x = torch.randn(batch, 3, side, side, device=place)
    y = torch.randint(0, 10, (batch,), device=place)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sync = _sync(place)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        sync()

    return step


def _wide(place, rows=32768):
    """Train a wide perceptron by Adam: some 2-4 GiB of activations in each step, none between steps."""
    import torch
    from torch import nn

    width, rows, kind = (4096, rows, torch.bfloat16) if place == "cuda" else (8, 16, torch.float32)
    layers = [part for _ in range(6) for part in (nn.Linear(width, width, dtype=kind), nn.ReLU())]
    model = nn.Sequential(*layers).to(place)
    x = torch.randn(rows, width, device=place, dtype=kind)
    optimizer, sync = torch.optim.Adam(model.parameters()), _sync(place)

    def step():
        optimizer.zero_grad()
        model(x).float().pow(2).mean().backward()
        optimizer.step()
        sync()

    return step


def _small(place):
    """Answer one request with a small network: about a millisecond."""
    import torch
    from torch import nn

    width = 64 if place == "cuda" else 4
    model = nn.Sequential(
        *[nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(8)]
    ).to(place)
    x, sync = torch.randn(1, width, 32, 32, device=place), _sync(place)

    def step():
        with torch.no_grad():
            model(x)
        sync()

    return step


def _cupy(place):
    """The products of `matmul` in CuPy (half precision)."""
    import cupy

    a = cupy.random.rand(4096, 4096, dtype=cupy.float32).astype(cupy.float16)

    def step():
        for _ in range(4):
            a @ a
        cupy.cuda.Device().synchronize()

    return step


def _jax(place):
    """The products of `matmul` in JAX (bf16)."""
    import jax
    from jax import numpy as jnp

    a = jnp.ones((4096, 4096), dtype=jnp.bfloat16)
    product = jax.jit(lambda m: m @ m)

    def step():
        for _ in range(4):
            last = product(a)
        last.block_until_ready()

    return step


def _host(place, **options):
    block = bytes(2**20)

    def step():
        for _ in range(4):
            hashlib.sha256(block)

    return step


FACTORIES = {
    "matmul": _matmul,
    "conv": _conv,
    "lstm": _lstm,
    "resnet": _resnet,
    "wide": _wide,
    "small": _small,
    "cupy": _cupy,
    "jax": _jax,
}
"""The kinds of work. matmul, conv and wide saturate a GPU, lstm does not."""
