"""A module without weights of its own: its structure, copied, with other tensors in the place of its parameters and buffers.

`copy.deepcopy` does it, told beforehand that each tensor's copy is the one that we name: so everything that refers to a
parameter (a list, a hook, the flat weights of an LSTM) refers to ours afterwards, and no weight is copied.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from gpushare_kernel.core.errors import UserError
from gpushare_kernel.nwv.kept import results_in
from gpushare_kernel.nwv.layout import Place

_TENSOR: Any = torch.Tensor
_ASKED = {
    _TENSOR.shape.__get__,
    _TENSOR.dtype.__get__,
    _TENSOR.device.__get__,
    _TENSOR.ndim.__get__,
    _TENSOR.is_cuda.__get__,
    _TENSOR.requires_grad.__get__,
    _TENSOR.size,
    _TENSOR.dim,
    _TENSOR.numel,
}
"""What may be asked of weights that are elsewhere."""


class NotLoaded(UserError):
    """A layer's weights were used while they are not in memory."""


class Elsewhere(torch.nn.Parameter):
    """Stands for weights that are in pages only: has their form, and nothing can be reckoned with it."""

    @staticmethod
    def of(place: Place, device: torch.device) -> Elsewhere:
        """Return one with the form of a parameter; it takes no memory."""
        form = _nothing(place.dtype, device).expand(place.shape)
        made: Elsewhere = _TENSOR._make_subclass(Elsewhere, form, False)  # noqa: FBT003  its signature
        made.__dict__["name_here"] = place.name
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what form they have; refuse everything else."""
        del types
        if func in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        flat = [
            one for each in given for one in (each if isinstance(each, list | tuple) else [each])
        ]
        names = [vars(one).get("name_here", "?") for one in flat if isinstance(one, Elsewhere)]
        msg = (
            f"layer by layer, weights are there while their own module runs, and {', '.join(names)} is used outside it. "
            "Open the bundle with mode='switch'."
        )
        raise NotLoaded(msg)


@functools.cache
def _nothing(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros((), dtype=dtype, device=device)


def shell_of(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, called: str
) -> torch.nn.Module:
    """Return a copy of `module` in eval mode, with `tensors` (by name in it) for its parameters and buffers.

    A tensor that is not named is not copied either: the copy has the module's own.

    Raises
    ------
    UserError
        Where the module holds something that cannot be copied.
    """
    memo = results_in(module)
    for name, tensor in tensors_of(module):
        memo[id(tensor)] = tensors.get(name, tensor)
    try:
        made: torch.nn.Module = copy.deepcopy(module, memo)
    except Exception as problem:
        msg = f"model {called}: its module must be copied without its weights, and cannot be: {problem}. Have it hold no files, locks or connections, and no results of earlier calls."
        raise UserError(msg) from problem
    for part in made.modules():  # the copy has weights, whoever its pattern gave its own to
        for key, hook in [*part._forward_pre_hooks.items()]:
            if isinstance(hook, _Refusing):
                del part._forward_pre_hooks[key]
    return made.eval()


def template_of(module: torch.nn.Module, *, called: str) -> torch.nn.Module:
    """Return `module` with the forms of its tensors and none of their memory."""
    forms: dict[str, torch.Tensor] = {}
    for name, one in tensors_of(module):
        form = torch.empty_like(one, device="meta")
        forms[name] = frozen(form) if isinstance(one, torch.nn.Parameter) else form
    return shell_of(module, forms, called=called)


def tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Return all parameters and buffers of a module, under each name that they have."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    """Return a tensor as a parameter that nobody trains."""
    return torch.nn.Parameter(tensor.detach(), requires_grad=False)


def emptied(module: torch.nn.Module, bundle: Callable[[], str]) -> None:
    """Take a module's weights away: the bundle has them. Whoever calls it is told so by `bundle()`."""
    for one in module.modules():
        for name, parameter in one._parameters.items():
            if parameter is not None:
                one._parameters[name] = frozen(torch.empty_like(parameter, device="meta"))
    module.register_forward_pre_hook(_Refusing(bundle))


class _Refusing:
    """A hook of a module without weights."""

    def __init__(self, why: Callable[[], str]) -> None:
        self._why = why

    def __call__(self, _module: torch.nn.Module, _given: Any) -> None:
        """Say where they are."""
        raise NotLoaded(self._why())
