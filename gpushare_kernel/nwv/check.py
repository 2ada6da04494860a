"""Do pages, tables and modules fit together? Looked at once, before anything is gathered: behind a wrong number a kernel
would read what is not its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NoReturn

import torch

from gpushare_kernel.nwv.code import code_of
from gpushare_kernel.nwv.packed import FLOATS, BadBundle, Member, Packed

_MEND = "Use the code that it was packed with, or pack it again"


def dtype_of(name: str) -> torch.dtype:
    """Return a piece's type of weights.

    Raises
    ------
    BadBundle
        Where it is none that is packed.
    """
    found = FLOATS.get(name)
    if found is None:
        _bad(f"weights are of {', '.join(FLOATS)}, not {name}", "Convert the model, and pack it again")  # fmt: skip
    return found


def check(packed: Packed, modules: Mapping[str, torch.nn.Module]) -> None:
    """Refuse a bundle that is not whole, and modules that are not those which were packed.

    Raises
    ------
    BadBundle
        With the rule, the value and what to do.
    """
    packed.check()
    if not packed.members:
        _bad("a bundle has at least one model, and this one has none", "Pack some")
    if packed.bits == 4 and packed.page_size % 2:  # noqa: PLR2004
        _bad(f"pages of 4 bits hold an even number of weights, not {packed.page_size}", "Pack again")  # fmt: skip
    missing = [name for name in packed.members if name not in modules]
    if missing:
        _bad(f"each model needs its module, and there is none for {', '.join(missing)}", "Give them all: Bundle(packed, {name: module})")  # fmt: skip
    unknown = [name for name in modules if name not in packed.members]
    if unknown:
        _bad(f"the bundle has {', '.join(packed.members)}, and modules came for {', '.join(unknown)} too", "Leave those out")  # fmt: skip
    for name, member in packed.members.items():
        _check_pieces(member)
        _check_module(member, modules[name])


def _check_pieces(member: Member) -> None:
    for piece in member.pieces:
        dtype_of(piece.dtype)
        if not 0 <= piece.first <= member.weights - prod(piece.shape):
            _bad(f"model {member.name}: parameter {piece.name} must lie in the model's {member.weights} weights, and begins at {piece.first}", "Pack it again")  # fmt: skip


def _check_module(member: Member, module: torch.nn.Module) -> None:
    forms = {name: tuple(one.shape) for name, one in module.named_parameters()}
    for piece in member.pieces:
        seen = forms.get(piece.name)
        if seen != piece.shape:
            there = "has no such parameter" if seen is None else f"has one of shape {seen}"
            _bad(f"model {member.name} was packed with parameter {piece.name} of shape {piece.shape}, and this module {there}", _MEND)  # fmt: skip
    code = code_of(module)
    if code != member.code:
        _bad(f"model {member.name} was packed with other code than this module has (hash {member.code[:12]}, now {code[:12]})", _MEND)  # fmt: skip


def _bad(rule: str, fix: str) -> NoReturn:
    msg = f"{rule}. {fix}."
    raise BadBundle(msg)
