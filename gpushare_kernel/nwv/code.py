"""What a module does, as a hash: a bundle's weights mean nothing to other code."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import nn

from gpushare_kernel.nwv.changing import set_by_calls
from gpushare_kernel.nwv.kept import plain_of

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, type(None))
_UNTOLD = frozenset({"_is_hf_initialized"})
"""Marks that say where weights came from."""
_DEEPEST = 8
"""Levels of containers in a setting that are looked at."""


def code_of(module: nn.Module) -> str:
    """Return a hash of a module's classes, settings, and names and forms of parameters and buffers.

    Settings are a module's attributes that its forward does not set: plain values, containers of them, classes by name, functions by
    name, syntax and what they hold from outside; of other objects only the class counts. Of attributes that begin with `_`, those of
    torch's own modules, None and other objects do not count. Comments, places in files and what is in the weights change nothing.
    Functions that the classes call are not followed.
    """
    digest = hashlib.sha256()
    for line in _told(module):
        digest.update(line.encode() + b"\0")
    return digest.hexdigest()[:20]


def _told(module: nn.Module) -> Iterator[str]:
    for name, one in module.named_modules():
        kind = type(one)
        yield f"{name} {kind.__qualname__} {one.extra_repr()}"
        ours = not kind.__module__.startswith("torch.")
        if ours:
            yield from _class(kind)
        changing = set_by_calls(kind)
        for key, value in sorted(plain_of(one).items()):
            if key not in changing and (not key.startswith("_") or (ours and key not in _UNTOLD and _tells(value))):  # fmt: skip
                yield f"{key} {setting_of(value)}"
    for name, tensor in module.state_dict().items():
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}"


def _tells(value: object) -> bool:
    """Tell whether more than the class of it counts."""
    if value is None:
        return False
    return isinstance(value, (*_PLAIN, types.FunctionType, functools.partial)) or _inside(value, _DEEPEST) is not None  # fmt: skip


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
    if isinstance(value, type | types.BuiltinFunctionType):
        return value.__qualname__
    if depth < _DEEPEST:
        if isinstance(value, types.FunctionType):
            return f"{value.__qualname__} {_function(value, depth + 1)}"
        if isinstance(value, types.MethodType):
            return f"{value.__qualname__} {setting_of(value.__self__, depth + 1)}"
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
    if isinstance(value, functools.partial):
        return setting_of([value.func, value.args, value.keywords], depth)
    if is_dataclass(value):
        return ", ".join(f"{one.name}={setting_of(getattr(value, one.name), depth)}" for one in fields(value))  # fmt: skip
    return None


def _function(function: types.FunctionType, depth: int = 0) -> str:
    """Return its syntax, which a new Python leaves as it is, or its byte code where no source is to be had; and what it holds."""
    tree = _tree(function)
    syntax = _bytecode(function.__code__) if tree is None else ast.dump(tree)
    held = [f"{name}={setting_of(value, depth)}" for name, value in held_by(function)]
    return " ".join((syntax, *held))


def _tree(function: types.FunctionType) -> ast.Module | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def held_by(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Return what a function has from where it was made, by name: variables around it, and its defaults."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not set yet
            yield name, cell.cell_contents
    yield from ((f"default {n}", one) for n, one in enumerate(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()


def _bytecode(code: types.CodeType) -> str:
    inner = [_bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"
