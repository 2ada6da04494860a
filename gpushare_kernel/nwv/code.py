"""What a module does, as a hash: a bundle's weights mean nothing to other code."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import nn

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, type(None))
_UNTOLD = frozenset({"training"})
_DEEPEST = 8
"""Levels of containers in a setting that are looked at."""


def code_of(module: nn.Module) -> str:
    """Return a hash of a module's classes, settings, and names and forms of parameters and buffers.

    Settings are a module's attributes: plain values, containers of them, functions and classes by name and syntax; of other
    objects only the class counts. Comments, places in files and what is in the weights change nothing. Functions that the
    classes call are not followed.
    """
    digest = hashlib.sha256()
    for line in _told(module):
        digest.update(line.encode() + b"\0")
    return digest.hexdigest()[:20]


def _told(module: nn.Module) -> Iterator[str]:
    for name, one in module.named_modules():
        kind = type(one)
        yield f"{name} {kind.__qualname__} {one.extra_repr()}"
        if not kind.__module__.startswith("torch."):
            yield from _class(kind)
        for key, value in sorted(vars(one).items()):
            if key not in _UNTOLD and not key.startswith("_"):
                yield f"{key} {setting_of(value)}"
    for name, tensor in module.state_dict().items():
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}"


def _class(kind: type) -> Iterator[str]:
    for one in kind.__mro__:
        if one is object or one.__module__.startswith("torch."):
            continue
        for name, thing in sorted(vars(one).items()):
            inner = thing.__func__ if isinstance(thing, staticmethod | classmethod) else thing
            if isinstance(inner, property):
                inner = inner.fget
            if isinstance(inner, types.FunctionType):
                yield f"{name} {_function(inner)}"
            elif not name.startswith("__"):
                yield f"{name} {setting_of(inner)}"


def setting_of(value: object, depth: int = 0) -> str:
    """Return what a setting says, the same in every process: no address, no order of a set."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__} {_function(value)}"
    if isinstance(value, type | types.BuiltinFunctionType | types.MethodType):
        return value.__qualname__
    if depth < _DEEPEST:
        inner = _inside(value, depth + 1)
        if inner is not None:
            return f"{type(value).__qualname__}({inner})"
    return type(value).__qualname__


def _inside(value: object, depth: int) -> str | None:
    if isinstance(value, list | tuple):
        return ", ".join(setting_of(one, depth) for one in value)
    if isinstance(value, set | frozenset):
        return ", ".join(sorted(setting_of(one, depth) for one in value))
    if isinstance(value, Mapping):
        return ", ".join(f"{setting_of(key, depth)}: {setting_of(one, depth)}" for key, one in value.items())  # fmt: skip
    if is_dataclass(value):
        return ", ".join(f"{one.name}={setting_of(getattr(value, one.name), depth)}" for one in fields(value))  # fmt: skip
    return None


def _function(function: types.FunctionType) -> str:
    """Return its syntax, which a new Python leaves as it is; its byte code where no source is to be had."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return _bytecode(function.__code__)
    return ast.dump(tree)


def _bytecode(code: types.CodeType) -> str:
    inner = [_bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"
