"""Bundles by hand: random pages, tables that share them, and what each model's weights then are, reckoned plainly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from gpushare_kernel.nwv.code import code_of
from gpushare_kernel.nwv.packed import FLOATS, Member, Packed, Piece, table_type

torch.set_num_threads(1)


class Net(torch.nn.Module):
    """Convolutions, a norm with buffers, a layer called twice, and a scale of its own beside its layers."""

    def __init__(
        self, width: int = 8, classes: int = 10, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, width, 3, padding=1, dtype=dtype)
        self.norm = torch.nn.BatchNorm2d(width, dtype=dtype)
        self.again = torch.nn.Conv2d(width, width, 3, padding=1, dtype=dtype)
        self.scale = torch.nn.Parameter(torch.ones(width, 1, 1, dtype=dtype))
        self.register_buffer("offset", torch.full((1,), 0.25, dtype=dtype), persistent=False)
        self.last = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width * 64, classes, dtype=dtype))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1, 8, 8) -> (n, classes)."""
        x = self.norm(self.first(x)).relu()
        x = self.again(self.again(x).relu()) * self.scale + self.offset
        answer: torch.Tensor = self.last(x)
        return answer


class Attends(torch.nn.Module):
    """A transformer layer, which reads its children's weights itself, and an LSTM, which keeps a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.recurrent = torch.nn.LSTM(16, 12, batch_first=True)
        self.cross = torch.nn.MultiheadAttention(12, 3, batch_first=True)
        self.out = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, steps, 16) -> (n, 3)."""
        x, _ = self.recurrent(self.attention(x))
        x, _ = self.cross(x, x, x)
        answer: torch.Tensor = self.out(x[:, -1])
        return answer


def nets(count: int = 3) -> dict[str, torch.nn.Module]:
    """Some nets of different sizes, in eval mode."""
    torch.manual_seed(0)
    return {f"net{n}": Net(4 + 2 * n, 3 + n).eval() for n in range(count)}


@dataclass
class Made:
    """A bundle's data, the modules, and modules with the weights that the pages mean."""

    packed: Packed
    modules: dict[str, torch.nn.Module]
    plain: dict[str, torch.nn.Module]


def made(
    modules: Mapping[str, torch.nn.Module],
    *,
    page_size: int = 24,
    bits: int = 32,
    spare: float = 1.3,
    keep: tuple[str, ...] = ("norm",),
    normal: bool = True,
    dtype: torch.dtype | None = None,
) -> Made:
    """Return modules in random pages that they share; parameters whose names begin with one of `keep` stay private.

    `spare` is how many pages there are for each of the largest model's. `dtype` is that of pages which are not quantised.
    """
    generator = torch.Generator().manual_seed(1)
    members = {name: _member(name, one, keep, normal=normal) for name, one in modules.items()}
    largest = max(one.weights for one in members.values())
    count = int(spare * -(-largest // page_size)) + 1
    values = torch.randn(count, page_size, generator=generator)
    pages, scales, values = _stored(values, bits, dtype or {16: torch.float16}.get(bits, torch.float32))  # fmt: skip
    tables, private, plain = {}, {}, {}
    for name, member in members.items():
        rows = -(-member.weights // page_size)
        numbers = torch.randperm(count, generator=generator)[:rows]
        tables[name] = numbers.to(table_type(count))
        paged = {piece.name for piece in member.pieces}
        state = modules[name].state_dict()
        private[name] = {key: one.clone() for key, one in state.items() if key not in paged}
        plain[name] = copy.deepcopy(modules[name])
        plain[name].load_state_dict({**private[name], **_weights(member, values[numbers])})
    return Made(Packed(page_size, bits, pages, scales, members, tables, private), dict(modules), plain)  # fmt: skip


def _member(name: str, module: torch.nn.Module, keep: tuple[str, ...], *, normal: bool) -> Member:
    pieces, first = [], 0
    for key, one in module.named_parameters():
        if not key.startswith(keep):
            dtype = str(one.dtype).removeprefix("torch.")
            pieces.append(Piece(key, tuple(one.shape), dtype, first))
            first += one.numel()
    shift, scale = (0.01, 0.0625) if normal else (0.0, 1.0)
    return Member(name, tuple(pieces), first, shift, scale, code_of(module))


def _stored(
    values: torch.Tensor, bits: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return pages, scales, and the float32 values that they mean."""
    if bits >= 16:
        return values.to(dtype), None, values.to(dtype).float()
    most = {8: 127, 4: 7}[bits]
    scales = (values.abs().amax(1) / most).half()
    codes = (values / scales.float()[:, None]).round().clamp(-most, most).to(torch.int8)
    meant = codes.float() * scales.float()[:, None]
    if bits == 4:
        raised = (codes + 8).to(torch.uint8)
        return raised[:, ::2] | (raised[:, 1::2] << 4), scales, meant
    return codes, scales, meant


def _weights(member: Member, values: torch.Tensor) -> dict[str, torch.Tensor]:
    vector = values.reshape(-1) * member.scale + member.shift
    return {
        piece.name: vector[piece.first : piece.first + prod(piece.shape)]
        .reshape(piece.shape)
        .to(FLOATS[piece.dtype])
        for piece in member.pieces
    }
