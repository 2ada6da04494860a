"""The taskset: four small nets with deadlines, four larger ones without, as chains of convolutions or of matrices.

For the GPU each has what such nets have in front and behind: its input is read and shrunk by the CPU, and its output sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

DRAWN = 99_991
"""Random numbers that are drawn for a layer, at most: a prime, so that no two rows are alike."""


@dataclass(frozen=True, slots=True)
class Net:
    """A net: `depth` layers that are `width` wide; convolutions over `side` x `side` pixels, or matrices where `side` is 0.

    `frame` is the side of the picture that comes in and is shrunk on the CPU; 0: the input is the net's own.
    """

    name: str
    depth: int
    width: int
    side: int = 0
    frame: int = 0

    @property
    def pieces(self) -> int:
        """How many layers the chain has."""
        return self.depth + 2 * bool(self.frame)

    def built(self, device: str) -> tuple[nn.Sequential, torch.Tensor]:
        """Return the net and an input; always the same. Weights are on `device`, and so is the input that is the net's own."""
        torch.manual_seed(len(self.name) + self.depth)
        layers: list[nn.Module] = [
            Layer(nn.Sequential(self._layer(), nn.ReLU())) for _ in range(self.depth)
        ]
        if self.frame:
            net = nn.Sequential(Shrink(self.width, self.side), *layers, Sort()).eval().to(device)
            return net, torch.randn(1, 3, self.frame, self.frame)
        shape = (1, self.width, self.side, self.side) if self.side else (16, self.width)
        return nn.Sequential(*layers).eval().to(device), torch.randn(shape, device=device)

    def _layer(self) -> nn.Module:
        if self.side:
            return _filled(nn.utils.skip_init(nn.Conv2d, self.width, self.width, 3, padding=1))
        return _filled(nn.utils.skip_init(nn.Linear, self.width, self.width))


def _filled(layer: nn.Module) -> nn.Module:
    """Fill weights with the same random numbers again and again: a number drawn for each would take longer than a round."""
    with torch.no_grad():
        for weight in layer.parameters():
            bound = (weight[0].numel() if weight.dim() > 1 else weight.numel()) ** -0.5
            some = torch.empty(min(DRAWN, weight.numel())).uniform_(-bound, bound)
            weight.copy_(some.repeat(-(-weight.numel() // some.numel()))[: weight.numel()].view_as(weight))  # fmt: skip
    return layer


class Layer(nn.Module):
    """A layer with its activation, as one piece: a Sequential would be taken apart further. It works where its weights are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call it."""
        return self.inner(x.to(next(self.inner.parameters()).device))


class Shrink(nn.Module):
    """Makes a net's input of a picture, on the CPU wherever the net is."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.width, self.side = width, side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, 3, frame, frame) -> (1, width, side, side), or (16, width) where there is no side."""
        side = self.side or 64
        small = nn.functional.interpolate(x.cpu(), (side, side), mode="bilinear", antialias=True)
        if self.side:
            return small.repeat(1, self.width // 3 + 1, 1, 1)[:, : self.width].contiguous()
        return (
            small.flatten()
            .repeat(16 * self.width // small.numel() + 1)[: 16 * self.width]
            .view(16, self.width)
        )


class Sort(nn.Module):
    """Sorts a net's output, on the CPU wherever the net is, and keeps the best."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape -> (100,)."""
        return x.cpu().flatten()[:65536].sort(descending=True).values[:100]


RT = (Net("lane", 6, 32, 32), Net("sign", 4, 32, 32), Net("ahead", 6, 768), Net("radar", 4, 768))
"""In the order of their weights: the first is the weightiest."""
BE = (
    Net("scene", 10, 64, 32),
    Net("speech", 10, 1280),
    Net("map", 8, 64, 32),
    Net("text", 8, 1280),
)
CUDA_RT = (
    Net("lane", 12, 128, 64, frame=720),
    Net("sign", 8, 128, 64, frame=720),
    Net("ahead", 12, 4096, frame=720),
    Net("radar", 8, 4096, frame=720),
)
CUDA_BE = (
    Net("scene", 20, 256, 64, frame=2160),
    Net("speech", 20, 4096, frame=1440),
    Net("map", 16, 256, 64, frame=2160),
    Net("text", 16, 4096, frame=1440),
)


def nets(device: str) -> tuple[tuple[Net, ...], tuple[Net, ...]]:
    """Return the nets with deadlines and those without, of a size for the device."""
    return (RT, BE) if device == "cpu" else (CUDA_RT, CUDA_BE)
