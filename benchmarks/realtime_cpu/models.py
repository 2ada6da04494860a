"""The taskset: four small nets with deadlines, four larger ones without, as chains of convolutions or of matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Net:
    """A net: `depth` layers that are `width` wide; convolutions over `side` x `side` pixels, or matrices where `side` is 0."""

    name: str
    depth: int
    width: int
    side: int = 0

    def built(self, device: str) -> tuple[nn.Sequential, torch.Tensor]:
        """Return the net and an input, on `device`; always the same."""
        torch.manual_seed(len(self.name) + self.depth)
        layers = [nn.Sequential(self._layer(), nn.ReLU()) for _ in range(self.depth)]
        shape = (1, self.width, self.side, self.side) if self.side else (16, self.width)
        net = nn.Sequential(*(Layer(layer) for layer in layers)).eval().to(device)
        return net, torch.randn(shape, device=device)

    def _layer(self) -> nn.Module:
        if self.side:
            return nn.Conv2d(self.width, self.width, 3, padding=1)
        return nn.Linear(self.width, self.width)


class Layer(nn.Module):
    """A layer with its activation, as one piece: a Sequential would be taken apart further."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call it."""
        return self.inner(x)


RT = (Net("lane", 6, 32, 32), Net("sign", 4, 32, 32), Net("ahead", 6, 768), Net("radar", 4, 768))
"""In the order of their weights: the first is the weightiest."""
BE = (
    Net("scene", 10, 64, 32),
    Net("speech", 10, 1280),
    Net("map", 8, 64, 32),
    Net("text", 8, 1280),
)
CUDA_RT = (Net("lane", 12, 128, 64), Net("sign", 8, 128, 64), Net("ahead", 12, 4096), Net("radar", 8, 4096))  # fmt: skip
CUDA_BE = (Net("scene", 20, 256, 128), Net("speech", 20, 8192), Net("map", 16, 256, 128), Net("text", 16, 8192))  # fmt: skip


def nets(device: str) -> tuple[tuple[Net, ...], tuple[Net, ...]]:
    """Return the nets with deadlines and those without, of a size for the device."""
    return (RT, BE) if device == "cpu" else (CUDA_RT, CUDA_BE)
