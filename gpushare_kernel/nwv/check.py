"""Do pages, tables and modules fit together? Looked at once, before anything is gathered: behind a wrong number a kernel
would read what is not its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from typing import NoReturn

import torch

from gpushare_kernel.core.errors import BadDeclaration
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


def check_given(packed: object, modules: object) -> None:
    """Refuse what is no bundle, and what are no modules.

    Raises
    ------
    BadDeclaration
        Saying what to write.
    """
    if not isinstance(packed, Packed):
        write = "Bundle(result.packed, modules)" if hasattr(packed, "packed") else "Bundle(Packed.load(path), modules)" if isinstance(packed, str | os.PathLike) else "Bundle(packed, modules)"  # fmt: skip
        msg = f"a bundle is opened from what was packed, a Packed, and this is a {type(packed).__name__}. Write {write}."
        raise BadDeclaration(msg)
    if not isinstance(modules, Mapping):
        msg = f"modules come by name, and this is a {type(modules).__name__}. Write Bundle(packed, {{name: module}})."
        raise BadDeclaration(msg)
    for name, one in modules.items():
        if not isinstance(one, torch.nn.Module):
            write = f"{{{name!r}: task.model}}" if isinstance(getattr(one, "model", None), torch.nn.Module) else f"{{{name!r}: module}}"  # fmt: skip
            msg = f"model {name!r} needs the module that was packed, and this is a {type(one).__name__}. Write {write}."
            raise BadDeclaration(msg)


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
    forms = {name: (tuple(one.shape), str(one.dtype).removeprefix("torch.")) for name, one in module.named_parameters()}  # fmt: skip
    for piece in member.pieces:
        shape, dtype = forms.get(piece.name, (None, None))
        if shape != piece.shape:
            there = "has no such parameter" if shape is None else f"has one of shape {shape}"
            _bad(f"model {member.name} was packed with parameter {piece.name} of shape {piece.shape}, and this module {there}", _MEND)  # fmt: skip
        if dtype != piece.dtype:
            _bad(f"model {member.name} was packed with parameter {piece.name} in {piece.dtype}, and this module has it in {dtype}", f"Convert the module back: .to(torch.{piece.dtype})")  # fmt: skip
    code = code_of(module)
    if code != member.code:
        _bad(f"model {member.name} was packed with other code than this module has (hash {member.code[:12]}, now {code[:12]})", _MEND)  # fmt: skip


def _bad(rule: str, fix: str) -> NoReturn:
    msg = f"{rule}. {fix}."
    raise BadBundle(msg)
