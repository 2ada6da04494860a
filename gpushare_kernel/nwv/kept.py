"""What a module keeps beside its weights and saved buffers: plain attributes, and buffers that it saves nowhere.

A forward may change these (an activation, a counter, a running mean). Who runs a module for its answer alone puts them back.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

OWN = frozenset(vars(nn.Module())) | frozenset(nn.Module.__annotations__)
"""Attributes that every module has for itself."""
_DEEPEST = 8


class Kept:
    """What a module keeps now, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self._parts = [(one, plain_of(one), _unsaved(one)) for one in module.modules()]
        values = (value for _, plain, _ in self._parts for value in plain.values())
        self._containers = {id(one): (one, copy.copy(one)) for value in values for one in _containers(value)}  # fmt: skip

    def put_back(self) -> None:
        """Have the module keep what it kept then, its buffers in tensors of its own."""
        for one, plain, unsaved in self._parts:
            own = vars(one)
            for key in [*plain_of(one).keys() - plain.keys()]:
                del own[key]
            own.update(plain)
            for key, buffer in unsaved.items():
                one._buffers[key] = None if buffer is None else buffer.clone()
        for container, was in self._containers.values():
            container.clear()
            container.extend(was) if hasattr(container, "extend") else container.update(was)


def _containers(value: Any, depth: int = 0) -> Iterator[Any]:
    """Return the containers in a value that can be changed."""
    if depth < _DEEPEST and isinstance(value, list | tuple | dict | set | deque):
        if not isinstance(value, tuple):
            yield value
        for one in value.values() if isinstance(value, dict) else value:
            yield from _containers(one, depth + 1)


def plain_of(module: nn.Module) -> dict[str, Any]:
    """Return a module's own attributes, what torch keeps there aside."""
    return {key: value for key, value in vars(module).items() if key not in OWN}


def _unsaved(module: nn.Module) -> dict[str, torch.Tensor | None]:
    names = module._non_persistent_buffers_set
    return {key: None if one is None else one.detach().clone() for key, one in module._buffers.items() if key in names}  # fmt: skip


def results_in(module: nn.Module) -> dict[int, Any]:
    """Return results of earlier calls that a module keeps, by id, without what they were computed by: `copy.deepcopy` takes no others."""
    return {
        id(one): one.detach().clone()
        for part in module.modules()
        for value in plain_of(part).values()
        for one in _tensors(value)
        if one.grad_fn is not None
    }


def _tensors(value: object, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < _DEEPEST and isinstance(value, list | tuple | set | Mapping):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(one, depth + 1)


def copied(module: nn.Module) -> nn.Module:
    """Return a copy that shares nothing with a module."""
    made: nn.Module = copy.deepcopy(module, results_in(module))
    return made
