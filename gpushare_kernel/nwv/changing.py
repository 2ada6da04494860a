"""Which attributes a module's forward sets: results and counters, no settings. Read from its source, so that a fresh module tells the same."""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
import types
from collections.abc import Iterator

_ENTRIES = ("forward", "__call__")
_CHANGING = frozenset(["add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove", "reverse", "setdefault", "sort", "update"])  # fmt: skip
"""Methods that change a container."""


def set_by_calls(kind: type) -> frozenset[str]:
    """Return the attributes of itself that a class sets or fills in `forward`, and in methods and properties that this uses."""
    found: set[str] = set()
    seen: set[str] = set()
    left = [*_ENTRIES]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        for owner in kind.__mro__:
            if owner is object or owner.__module__.startswith("torch."):
                continue
            for function in _functions(vars(owner).get(name)):
                changed, used = _looked(function)
                found |= {_mangled(one, owner) for one in changed}
                left += [_mangled(one, owner) for one in used]
    return frozenset(found)


def _mangled(name: str, owner: type) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{owner.__name__.lstrip('_')}{name}" if private else name


def _functions(thing: object) -> Iterator[types.FunctionType]:
    """Return the functions behind what a class has under a name."""
    inner = [thing.fget, thing.fset] if isinstance(thing, property) else [getattr(thing, "__func__", thing)]  # fmt: skip
    for one in inner:
        plain = inspect.unwrap(one) if callable(one) else one
        if isinstance(plain, types.FunctionType):
            yield plain


def _looked(function: types.FunctionType) -> tuple[set[str], set[str]]:
    """Return the attributes of its first argument that a function changes, and those that it uses."""
    code = function.__code__
    me = code.co_varnames[0] if code.co_argcount else ""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return {str(one.argval) for one in dis.get_instructions(code) if one.opname in {"STORE_ATTR", "DELETE_ATTR"}}, set(code.co_names)  # fmt: skip
    changed = {_of(node, me) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)}  # fmt: skip
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _named(node.value, me):
            used.add(node.attr)
        if isinstance(node, ast.Call):
            changed.add(_called(node, me))
    return {one for one in changed if one}, used


def _called(call: ast.Call, me: str) -> str:
    """Return the attribute that a call changes: `self.seen.append(x)`, `setattr(self, "seen", x)`."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in _CHANGING:
        return _of(call.func.value, me)
    literal = len(call.args) > 1 and _named(call.func, "setattr") and _named(call.args[0], me)
    return str(call.args[1].value) if literal and isinstance(call.args[1], ast.Constant) else ""


def _of(node: ast.expr, me: str) -> str:
    """Return the attribute of `me` that something is in: `a` for `self.a[0].b`."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        if isinstance(node, ast.Attribute) and _named(node.value, me):
            return node.attr
        node = node.value
    return ""


def _named(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
