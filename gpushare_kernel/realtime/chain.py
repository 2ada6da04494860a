"""A model as a chain of pieces: each takes what the one before returned, and between two of them a node may change its mind.

`torch.nn.Sequential` is taken apart (nested ones too), any other torch module by `cutting` where exactly one tensor is
alive, a list or tuple of callables is a chain as it stands. What cannot be taken apart is one piece.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from gpushare_kernel.core.errors import UserError

_MOOD = ("Dropout", "BatchNorm")
"""Modules that do something else in training than after it."""


class BadModel(UserError):
    """A model that cannot be a pipeline; the message has the piece, the rule and what to do."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a model: nothing interrupts it once it runs."""

    name: str
    call: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Chain:
    """Pieces, in order. `whole` says why a model is a single piece; empty where it was taken apart."""

    name: str
    pieces: tuple[Piece, ...]
    whole: str = ""

    def __call__(self, value: Any) -> Any:
        """Run all of it here, as the model itself would."""
        for piece in self.pieces:
            value = piece.call(value)
        return value

    def __len__(self) -> int:
        return len(self.pieces)


PLAIN = "a plain callable"
"""Why a callable is one piece."""


def chain(model: Any, example: Any = None, *, name: str = "", split: bool = False) -> Chain:
    """Return `model` as a chain.

    Parameters
    ----------
    model
        A torch module, a list or tuple of callables, or one callable.
    example
        An input. With one, a torch module is cut only where what is alive is a tensor.
    name
        What it is called; the model's class where none is given.
    split
        Whether a model that must stay whole is refused.

    Raises
    ------
    BadModel
        Where it is no model, is in training, or should be split and cannot be: the node at which it fails is named.
    """
    called = name or type(model).__name__
    if isinstance(model, Chain):
        return model
    if isinstance(model, list | tuple):
        return Chain(called, tuple(_plain(called, model)))
    torch = sys.modules.get("torch")  # whoever has a torch module has imported it
    if torch is not None and isinstance(model, torch.nn.Module):
        return _of_module(torch, model, example, called, split=split)
    if not callable(model):
        _refuse(called, f"a model is a torch module or callables, not {type(model).__name__}", "Pass the model itself")  # fmt: skip
    if split:
        _refuse(called, "a plain callable cannot be split", "Pass a list of callables, one for each layer")  # fmt: skip
    return Chain(called, (Piece(_name_of(model, 0), model),), PLAIN)


def _plain(called: str, calls: list[Any] | tuple[Any, ...]) -> Iterator[Piece]:
    if not calls:
        _refuse(called, "it must have at least one layer", "Put its callables into the list")
    for place, call in enumerate(calls):
        if not callable(call):
            _refuse(called, f"layer {place} must be callable, and is {type(call).__name__}", "Pass what is to be called")  # fmt: skip
        _check_mood(called, call)
        yield Piece(_name_of(call, place), call)


def _name_of(call: Any, place: int) -> str:
    name = getattr(call, "__name__", "") or type(call).__name__
    return f"layer {place}" if name in ("<lambda>", "partial") else str(name)


def _of_module(torch: Any, model: Any, example: Any, called: str, *, split: bool) -> Chain:
    _check_mood(called, model)
    if _is_plain_sequence(torch, model):
        pieces = tuple(_flat(torch, model, ""))
        if not pieces:
            _refuse(called, "it must have at least one layer", "Add layers to the Sequential")
        return Chain(called, pieces)
    from gpushare_kernel.realtime import cutting  # noqa: PLC0415  torch only where somebody has it

    try:
        pieces = cutting.cut(model, example)
    except cutting.CannotTraceError as problem:
        if split:
            _refuse(called, f"it cannot be split: {problem}", "Make that part a module of its own that is not traced into, or do not ask for a split")  # fmt: skip
        return Chain(called, (Piece(called, model),), str(problem))
    except Exception as problem:  # noqa: BLE001  the model is the user's, and runs here once
        raise on_example(called, problem) from None
    whole = "" if len(pieces) > 1 else "nowhere inside it is exactly one tensor alive"
    if whole and split:
        _refuse(called, f"it cannot be split: {whole}", "Do not ask for a split")
    return Chain(called, pieces, whole)


def on_example(name: str, problem: BaseException) -> BaseException:
    """Return what a model raised with its example, as its user may read it: without our frames."""
    if isinstance(problem, UserError) or not isinstance(problem, Exception):
        return problem
    said = (str(problem).strip() or "no reason given").splitlines()[0].rstrip(".")
    msg = f"model {name}: it fails with the example: {type(problem).__name__}: {said}. Pass an input that it takes: model(example) must run."
    return BadModel(msg)


def _is_plain_sequence(torch: Any, module: Any) -> bool:
    """Tell whether a module does nothing but call its children one after the other."""
    sequential = torch.nn.Sequential
    return (
        isinstance(module, sequential)
        and type(module).forward is sequential.forward
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _flat(torch: Any, module: Any, above: str) -> Iterator[Piece]:
    for name, child in _children(module):
        path = f"{above}{name}"
        if _is_plain_sequence(torch, child):
            yield from _flat(torch, child, f"{path}.")
        else:
            yield Piece(f"{path} {type(child).__name__}", child)


def _children(module: Any) -> Iterator[tuple[str, Any]]:
    """Return all children of a Sequential, also one that is there twice (`named_children` leaves the second out)."""
    yield from module._modules.items()


def _check_mood(called: str, model: Any) -> None:
    modules = getattr(model, "named_modules", None)
    if modules is None:
        return
    for name, module in modules():
        kind = type(module).__name__
        if module.training and any(word in kind for word in _MOOD):
            _refuse(called, f"{kind} {name or 'itself'} is in training, and its answers would change", "Call model.eval() first")  # fmt: skip


def _refuse(called: str, rule: str, fix: str) -> NoReturn:
    msg = f"model {called}: {rule}. {fix}."
    raise BadModel(msg)
