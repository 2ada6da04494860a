"""Nets and pages for it: random, by hand, so that nothing is trained here."""

from __future__ import annotations

import torch

from gpushare_kernel.nwv.code import code_of
from gpushare_kernel.nwv.packed import Member, Packed, Piece, table_type

PAGE = 1024


def net(layers: int, width: int, *, bias: bool) -> torch.nn.Module:
    """Return like layers, one after the other."""
    found: list[torch.nn.Module] = []
    for _ in range(layers):
        found += [torch.nn.Linear(width, width, bias=bias), torch.nn.ReLU()]
    return torch.nn.Sequential(*found).eval().requires_grad_(requires_grad=False)


def packed(modules: dict[str, torch.nn.Module], *, spare: float, bits: int = 32) -> Packed:
    """Return pages for `spare` times the largest model, in which all of them lie at random; biases stay private."""
    members = {name: _member(name, module) for name, module in modules.items()}
    count = int(spare * max(-(-one.weights // PAGE) for one in members.values()))
    if bits == 8:
        pages, scales = torch.randint(-127, 128, (count, PAGE), dtype=torch.int8), torch.full((count,), 0.01).half()  # fmt: skip
    elif bits == 4:
        pages, scales = torch.randint(0, 256, (count, PAGE // 2), dtype=torch.uint8), torch.full((count,), 0.01).half()  # fmt: skip
    else:
        pages, scales = torch.randn(count, PAGE, dtype={32: torch.float32, 16: torch.float16}[bits]), None  # fmt: skip
    tables = {
        name: torch.randperm(count)[: -(-one.weights // PAGE)].to(table_type(count))
        for name, one in members.items()
    }
    private = {
        name: {k: v for k, v in modules[name].state_dict().items() if v.dim() == 1}
        for name in modules
    }
    return Packed(PAGE, bits, pages, scales, members, tables, private)


def _member(name: str, module: torch.nn.Module) -> Member:
    pieces, first = [], 0
    for key, one in module.named_parameters():
        if one.dim() > 1:
            pieces.append(Piece(key, tuple(one.shape), "float32", first))
            first += one.numel()
    return Member(name, tuple(pieces), first, 0.0, 0.03125, code_of(module))
