"""Can models be in pages? Looked at before anything is computed; each refusal says what stands in the way and what to do."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from typing import NoReturn

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gpushare_kernel.nwv.changing import set_by_calls
from gpushare_kernel.nwv.code import held_by
from gpushare_kernel.nwv.kept import plain_of
from gpushare_kernel.nwv.packed import FLOATS
from gpushare_kernel.nwv.refusal import BadModel

_Label = tuple[str, str]
"""A model and the name of a tensor in it."""
_DEEPEST = 8
"""Levels of functions and containers that are looked at."""


def check_models(models: Mapping[str, nn.Module]) -> None:
    """Refuse models that cannot be in pages, and models that share a tensor: one would train the other unseen.

    Raises
    ------
    BadModel
        For weights that are tied, missing, of an unknown type, or no numbers; and for state that is in no tensor.
    """
    for name, model in models.items():
        _check_there(name, model)
        _check_numbers(name, model)
        _check_apart(name, model)
        _check_state(name, model)
    shared = _overlap(((name, key), one) for name, model in models.items() for key, one in _tensors(model))  # fmt: skip
    if shared is not None:
        (one, key), (other, theirs) = shared
        _refuse(f"models {one} and {other} share a tensor ({key}, {theirs})", "Pack a copy: copy.deepcopy(model); equal pages are found and shared without loss")  # fmt: skip


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _check_there(name: str, model: nn.Module) -> None:
    """Are there weights, with forms, in memory, in one place?"""
    for key, one in _tensors(model):
        if is_lazy(one):
            _refuse(f"model {name}: {key} has no form yet, as its module is lazy", "Run the model on a batch, and train it, before packing it")  # fmt: skip
        if one.is_meta:
            _refuse(f"model {name}: {key} is nowhere in memory (device meta): a bundle took its weights (take=True), or it was never filled", "Take bundle[name].unpacked(), or load the weights again")  # fmt: skip
    parameters = list(model.parameters())
    if not any(one.requires_grad and one.numel() for one in parameters):
        why = "none that requires a gradient" if any(one.numel() for one in parameters) else "all empty" if parameters else "0 parameters"  # fmt: skip
        mend = "Call requires_grad_() on it, or leave it out" if why.startswith("none") else "Leave it out"  # fmt: skip
        _refuse(f"model {name} has no trainable weights: {why}", mend)
    places = sorted({str(one.device) for _, one in _tensors(model)})
    if len(places) > 1:
        _refuse(f"model {name} is on {' and '.join(places)}, and pages are in one place", "Move all of it to one device")  # fmt: skip


def _check_numbers(name: str, model: nn.Module) -> None:
    """Are weights numbers of a type that pages hold? Buffers may be infinite (masks), not NaN."""
    for key, one in model.named_parameters():
        if one.dtype not in FLOATS.values():
            _refuse(f"model {name}: {key} is {one.dtype}, and pages hold {', '.join(FLOATS)}", "Call .float() on the model")  # fmt: skip
        bad = int((~torch.isfinite(one.detach())).sum())
        if bad:
            _refuse(f"model {name}: {bad} of {one.numel()} weights of {key} are NaN or infinite", "Train it again before packing it")  # fmt: skip
    for key, buffer in model.named_buffers():
        bad = int(buffer.isnan().sum()) if buffer.is_floating_point() else 0
        if bad:
            _refuse(f"model {name}: {bad} of {buffer.numel()} values of buffer {key} are NaN", "Look what it was computed from, and train it again before packing it")  # fmt: skip


def _check_apart(name: str, model: nn.Module) -> None:
    """Has each weight memory of its own?"""
    parameters = list(model.named_parameters(remove_duplicate=False))
    shared = _overlap(((name, key), one) for key, one in parameters)
    if shared is not None:
        (_, first), (_, key) = shared
        by_name = dict(parameters)
        same = _stretch(by_name[first]) == _stretch(by_name[key])
        how = "are one tensor (tied)" if same else "lie over one another in memory (views)"
        _refuse(f"model {name}: {key} and {first} {how}, and each weight has one place in pages", f"Give each its own copy: {key} = torch.nn.Parameter({key}.detach().clone())")  # fmt: skip
    for key, one in parameters:
        _, begin, end = _stretch(one)
        if one.numel() * one.element_size() > end - begin:
            _refuse(f"model {name}: weights of {key} lie over one another in memory (expanded), and each has one place in pages", f"Give it its own copy: {key} = torch.nn.Parameter({key}.detach().clone())")  # fmt: skip


def _check_state(name: str, model: nn.Module) -> None:
    """Is all that it needs in parameters and buffers?"""
    for key in model.state_dict():
        if key.rpartition(".")[2] == "_extra_state":
            _refuse(f"model {name} keeps extra state ({key}), and a bundle has parameters and buffers only", "Keep it in a buffer, or in a plain setting")  # fmt: skip
    for path, module in model.named_modules():
        _check_functions(name, path, module)
        results = set_by_calls(type(module))
        for key, value in plain_of(module).items():
            if key not in results and isinstance(value, torch.Tensor) and value.grad_fn is not None:
                full = f"{path}.{key}" if path else key
                _refuse(f"model {name}: {full} is computed from other weights and kept (as the older torch.nn.utils.weight_norm and spectral_norm do), and a bundle would keep an old one", "Take torch.nn.utils.parametrizations, or remove_weight_norm; where it is a result of an earlier call, delete it")  # fmt: skip


def _check_functions(name: str, path: str, module: nn.Module) -> None:
    """Does no function that it has hold a module or a tensor? A copy of the model would go on with that one."""
    hooks = {
        "a forward hook": module._forward_hooks,
        "a forward pre-hook": module._forward_pre_hooks,
    }
    for key, value in {**plain_of(module), **hooks}.items():
        held = _held(value)
        if held:
            full = f"{path}.{key}" if path and key not in hooks else f"{key} of {path}" if path else key  # fmt: skip
            _refuse(f"model {name}: {full} is a function that holds {held} from where it was made, and a bundle would run with that one's weights", "Make it a method, or a module of its own")  # fmt: skip


def _held(value: object, *, inside: bool = False, depth: int = 0) -> str:
    """Return what a function in a setting holds that is no setting; nothing where there is none."""
    if inside and isinstance(value, nn.Module | torch.Tensor):
        return f"a {type(value).__name__}"
    if depth == _DEEPEST:
        return ""
    parts: list[tuple[bool, object]] = []
    if isinstance(value, types.FunctionType):
        parts = [(True, one) for _, one in held_by(value)]
    elif isinstance(value, types.MethodType):
        parts = [(inside, value.__self__), (inside, value.__func__)]
    elif isinstance(value, functools.partial):
        parts = [(inside, one) for one in (value.func, *value.args, *value.keywords.values())]
    elif isinstance(value, list | tuple | set | Mapping):
        # Tensors that a hook collects are no weights.
        parts = [(inside, one) for one in (value.values() if isinstance(value, Mapping) else value) if not isinstance(one, torch.Tensor)]  # fmt: skip
    found = (_held(one, inside=deep, depth=depth + 1) for deep, one in parts)
    return next(filter(None, found), "")


def _stretch(one: torch.Tensor) -> tuple[int, int, int]:
    """Return the memory of a tensor: whose it is, and from which byte to which."""
    begin = int(one.storage_offset()) * one.element_size()
    last = sum((size - 1) * step for size, step in zip(one.shape, one.stride(), strict=True))
    return one.untyped_storage().data_ptr(), begin, begin + (last + 1) * one.element_size()


def _overlap(tensors: Iterable[tuple[_Label, torch.Tensor]]) -> tuple[_Label, _Label] | None:
    """Return two tensors that have memory in common; of two models where there are several."""
    labelled = [(label, one) for label, one in tensors if one.numel()]
    one_model = len({model for (model, _), _ in labelled}) == 1
    before: tuple[int, int, _Label] | None = None
    for whose, begin, end, label in sorted((*_stretch(one), label) for label, one in labelled):
        if before is not None and whose == before[0] and begin < before[1]:
            if one_model or label[0] != before[2][0]:
                return before[2], label
            end = max(end, before[1])  # noqa: PLW2901
        before = (whose, end, label)
    return None


def _refuse(rule: str, mend: str) -> NoReturn:
    msg = f"{rule}. {mend}."
    raise BadModel(msg)
