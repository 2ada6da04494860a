"""Small tasks that are learned in a moment."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from hypothesis import settings
from torch import nn

from gpushare_kernel.nwv import Packed, Task
from gpushare_kernel.nwv.gather import Pages
from gpushare_kernel.nwv.pages import weights_from
from gpushare_kernel.nwv.training import Plan

untimed = settings(deadline=None, max_examples=25)
"""A first call loads scipy and torch's kernels: how long one takes says nothing."""
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
QUICK = Plan(rounds=4, steps=10, lr=3e-3)


def mlp(*sizes: int, seed: int = 0) -> nn.Sequential:
    """Return a multilayer perceptron."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def blobs(
    classes: int, width: int, seed: int, count: int = 160
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points around a centre a class."""
    source = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, width, generator=source)
    y = torch.arange(count) % classes
    return centres[y] + torch.randn(count, width, generator=source), y


def task(
    seed: int = 0, *, wide: int = 24, classes: int = 3, width: int = 8, steps: int = 60
) -> Task:
    """Return a task whose model is trained."""
    x, y = blobs(classes, width, seed)
    model = mlp(width, wide, wide, classes, seed=seed)
    train = list(zip(x[:96].split(32), y[:96].split(32), strict=True))
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        a, b = train[step % len(train)]
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimiser.step()
    return Task(model, train, [(x[96:128], y[96:128])], test=[(x[128:], y[128:])])


def fit(model: nn.Module, batches: Batches, rounds: int) -> None:
    """Train a model on all batches, so many times; no gradient is left."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(rounds):
        for x, y in batches:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    optimiser.zero_grad()


def unpack(packed: Packed, name: str) -> dict[str, torch.Tensor]:
    """Return a model's `state_dict` as its pages mean it, in tensors of its own."""
    pages = Pages(packed.pages, packed.scales, packed.page_size, packed.bits)
    values = pages.rows(packed.tables[name].to(torch.int64)).float()
    found = {**weights_from(packed.members[name], values), **packed.private.get(name, {})}
    return {key: one.clone() for key, one in found.items()}


def three() -> dict[str, Task]:
    """Return three tasks of different sizes."""
    return {
        "a": task(0, classes=8),
        "b": task(1, wide=20, classes=6),
        "c": task(2, wide=16, classes=6),
    }
