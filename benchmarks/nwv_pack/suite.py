"""Tasks on what scikit-learn brings along: no download. Splits are 60/20/20; chosen on validation, tested once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_sample_images,
    load_wine,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gpushare_kernel.nwv import Task

STEPS, BATCH = 250, 64
"""Adam steps by which a model is trained alone first, and its batch."""
Set = tuple[torch.Tensor, torch.Tensor]


def digits_flat() -> Set:
    """Return 1797 digits as 64-long signals."""
    x, y = load_digits(return_X_y=True)
    return _tensors(x / 16 - 0.3, y)


def digits() -> Set:
    """Return 1797 digits of 8x8."""
    x, y = digits_flat()
    return x.view(-1, 1, 8, 8), y


def digit_halves() -> Set:
    """Return digits as signals, in four classes: under 5 or not, even or odd. It has images in common with `digits` (one split for both)."""
    x, y = digits_flat()
    return x.view(-1, 1, 64), (y >= 5).long() * 2 + y % 2


def digit_parity() -> Set:
    """Return digits, even or odd."""
    x, y = digits_flat()
    return x, y % 2


def tumours() -> Set:
    """Return 569 tumours, 2 classes."""
    return _table(load_breast_cancer)


def wines() -> Set:
    """Return 178 wines, 3 classes."""
    return _table(load_wine)


def irises() -> Set:
    """Return 150 irises, 3 classes."""
    return _table(load_iris)


def diabetes() -> Set:
    """Return 442 patients: above the median or not. A hard task."""
    x, y = load_diabetes(return_X_y=True)
    return _tensors((x - x.mean(0)) / x.std(0), y > np.median(y))


def _table(load: Callable[..., Any]) -> Set:
    x, y = load(return_X_y=True)
    return _tensors((x - x.mean(0)) / x.std(0), y)


def _tensors(x: Any, y: Any) -> Set:
    return torch.tensor(np.asarray(x), dtype=torch.float32), torch.tensor(np.asarray(y)).long()


def patches(seed: int) -> tuple[Set, Set, Set]:
    """Return 16x16x3 patches of two photos, each turned at random: train, validation and test from disjoint columns."""
    source = np.random.default_rng(seed)
    images = [image.astype(np.float32) / 255 for image in load_sample_images().images]
    parts = []
    for (low, high), count in zip(((0.0, 0.6), (0.6, 0.8), (0.8, 1.0)), (864, 288, 288), strict=True):  # fmt: skip
        xs = []
        for number in range(count):
            image = images[number % 2]
            width = image.shape[1]
            row = source.integers(0, image.shape[0] - 16)
            column = source.integers(int(low * width), int(high * width) - 16)
            patch = image[row : row + 16, column : column + 16]
            xs.append(np.rot90(patch, int(source.integers(0, 4))).copy())
        x = torch.tensor(np.stack(xs)).permute(0, 3, 1, 2).contiguous() - 0.5
        parts.append((x, torch.arange(count) % 2))
    return parts[0], parts[1], parts[2]


def turns(seed: int) -> Set:
    """Return digits turned by 0 to 3 quarters: by how many? (Patches of photos cannot tell it: alone they stay at chance.)"""
    x, _ = digits()
    quarters = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, len(x)))
    turned = [torch.rot90(one, int(by), (1, 2)) for one, by in zip(x, quarters, strict=True)]
    return torch.stack(turned), quarters


def split(data: Set, seed: int) -> tuple[Set, Set, Set]:
    """Return 60/20/20. Equal lengths and seeds are split alike."""
    x, y = data
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    a, b = int(0.6 * len(x)), int(0.8 * len(x))
    return tuple((x[part], y[part]) for part in (order[:a], order[a:b], order[b:]))  # type: ignore[return-value]


def mlp(*sizes: int) -> nn.Module:
    """Return a multilayer perceptron."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn2(channels: int, side: int, classes: int, wide: int) -> nn.Module:
    """Return two convolutions and two dense layers."""
    end = side // 4 if side > 8 else side // 2
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
        *([nn.MaxPool2d(2)] if side > 8 else []),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * end * end, wide), nn.ReLU(), nn.Linear(wide, classes),
    )  # fmt: skip


def cnn1(first: int, second: int, wide: int, classes: int) -> nn.Module:
    """Return two convolutions over a signal of 64."""
    return nn.Sequential(
        nn.Conv1d(1, first, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Flatten(), nn.Linear(second * 16, wide), nn.ReLU(), nn.Linear(wide, classes),
    )  # fmt: skip


FIVE: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Set, Set, Set]]]] = {
    "digits": (lambda: cnn2(1, 8, 10, 64), lambda seed: split(digits(), seed)),
    "tumour": (lambda: mlp(30, 160, 160, 2), lambda seed: split(tumours(), seed)),
    "wine": (lambda: mlp(13, 128, 128, 64, 3), lambda seed: split(wines(), seed)),
    "halves": (lambda: cnn1(32, 64, 24, 4), lambda seed: split(digit_halves(), seed)),
    "photo": (lambda: cnn2(3, 16, 2, 64), patches),
}
NINE = {
    **FIVE,
    "iris": (lambda: mlp(4, 128, 128, 3), lambda seed: split(irises(), seed)),
    "diabetes": (lambda: mlp(10, 96, 96, 2), lambda seed: split(diabetes(), seed)),
    "turn": (lambda: cnn2(1, 8, 4, 48), lambda seed: split(turns(seed), seed)),
    "digits_mlp": (lambda: mlp(64, 192, 96, 10), lambda seed: split(digits_flat(), seed)),
}
TEN = {**NINE, "parity": (lambda: mlp(64, 128, 64, 2), lambda seed: split(digit_parity(), seed))}
CHANCE = {"digits": 0.1, "tumour": 0.63, "wine": 0.4, "halves": 0.3, "photo": 0.5, "iris": 0.34, "diabetes": 0.5, "turn": 0.25, "digits_mlp": 0.1, "parity": 0.5}  # fmt: skip
"""What guessing the most frequent class gets, about."""


def tasks(names: dict[str, Any], seed: int, steps: int = STEPS) -> dict[str, Task]:
    """Return the tasks with their models trained alone, each from `seed`."""
    made = {}
    for name, (build, parts) in names.items():
        torch.manual_seed(seed)
        model = build()
        train, validate, test = parts(seed)
        loader = DataLoader(TensorDataset(*train), BATCH, shuffle=True)
        _train(model, loader, steps)
        made[name] = Task(model, loader, [validate], test=[test])
    return made


def _train(model: nn.Module, loader: Any, steps: int) -> None:
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    done = 0
    while done < steps:
        for x, y in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            done += 1
            if done == steps:
                break
