"""What a model returns, as its caller's own: the next model writes the memory that this one's weights were in."""

from __future__ import annotations

import copy
import enum
import sys
import types
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map  # what torch.export and torch.func walk results with

from gpushare_kernel.core.errors import UserError

_LATER = (Iterator, Awaitable, types.AsyncGeneratorType, types.FunctionType, types.MethodType)
"""What reckons when it is asked, and not before."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, enum.Enum, torch.dtype, torch.device, torch.layout)  # fmt: skip


class NotAResult(UserError):
    """A result that would go on with another model's weights."""


def apart(result: Any, memory: torch.Tensor | None, *, called: str) -> Any:
    """Return a result that shares nothing with `memory`; None: all of it copied.

    Raises
    ------
    NotAResult
        For generators and the like, and objects that cannot be copied.
    """
    mine = None if memory is None else memory.untyped_storage().data_ptr()

    def own(one: Any) -> Any:
        if isinstance(one, torch.Tensor):
            return one.clone() if mine is None or one.untyped_storage().data_ptr() == mine else one
        return one if isinstance(one, _PLAIN) else _object(one, own, called)

    # Walking even one tensor takes longer than calling a small layer.
    return own(result) if type(result) is torch.Tensor else tree_map(own, result)


def _object(one: Any, own: Callable[[Any], Any], called: str) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(one, numpy.ndarray):
        return one.copy()
    if isinstance(one, _LATER):
        msg = f"model {called} returns a {type(one).__name__}, which computes when it is asked: the weights may be another model's then. Have its forward return what it computed (a list, a tensor), or use bundle[{called!r}].unpacked()."
        raise NotAResult(msg)
    try:
        if not is_dataclass(one):
            return copy.deepcopy(one)
        made = copy.copy(one)
        for field in fields(one):
            object.__setattr__(made, field.name, tree_map(own, getattr(one, field.name)))
    except UserError:
        raise
    except Exception as problem:  # noqa: BLE001  whatever its own copying raises
        msg = f"model {called} returns a {type(one).__name__}, and what is returned must be copied: it cannot be ({problem}). Have its forward return tensors, or a dataclass of them, or use bundle[{called!r}].unpacked()."
        raise NotAResult(msg) from None
    return made
