"""What a module does, as a hash: a bundle's weights mean nothing to other code."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import types
from collections.abc import Iterator

from torch import nn

_PLAIN = (bool, int, float, str, bytes, tuple, type(None))


def code_of(module: nn.Module) -> str:
    """Return a hash of a module's classes, settings, and names and forms of parameters and buffers.

    Comments, places in files and what is in the weights change nothing. Functions outside the classes are not followed.
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
            plain = {key: value for key, value in vars(one).items() if isinstance(value, _PLAIN)}
            yield repr(sorted((key, value) for key, value in plain.items() if key != "training" and not key.startswith("_")))  # fmt: skip
    for name, tensor in module.state_dict().items():
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}"


def _class(kind: type) -> Iterator[str]:
    for one in kind.__mro__:
        if one is object or one.__module__.startswith("torch."):
            continue
        for name, thing in sorted(vars(one).items()):
            inner = thing.__func__ if isinstance(thing, staticmethod | classmethod) else thing
            if isinstance(inner, types.FunctionType):
                yield f"{name} {_function(inner)}"


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
