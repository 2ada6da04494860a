"""What goes from node to node: a value in a piece of shared memory, and its form beside it in the message.

Tensors and arrays lie there as they are and are copied once on each side; anything else is pickled. The reader has a copy
of its own: a layer may keep or overwrite its input.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

import msgspec

from gpushare_kernel.core.errors import UserError

_PAGE = 4096
_ROOM = 2
"""Pickles of one model differ in length from run to run; they have so many times the room that the example needed."""


class ShapeChanged(UserError):
    """A value of another form than the one that was recorded."""


class Form(msgspec.Struct, frozen=True, array_like=True):
    """How a value lies in memory: `kind` is `tensor`, `array` or `pickle`; `size` in bytes."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def room(self) -> int:
        """The bytes of a slot that holds it, in whole pages."""
        size = self.size * _ROOM + _PAGE if self.kind == "pickle" else self.size
        return max(1, -(-size // _PAGE)) * _PAGE

    def __str__(self) -> str:
        if self.kind == "pickle":
            return f"{self.dtype} ({self.size} bytes)"
        return f"{self.kind} {'x'.join(map(str, self.shape)) or 'scalar'} {self.dtype}"


def form_of(value: Any) -> Form:
    """Return the form of a value. Of what is pickled, only type and size are known."""
    if is_tensor(value):
        return Form(*_likeness(value), value.element_size() * value.numel())
    if is_array(value):
        return Form(*_likeness(value), value.nbytes)
    return Form(*_likeness(value), len(pickle.dumps(value, 5)))


def _likeness(value: Any) -> tuple[str, str, tuple[int, ...]]:
    """Return all of a form but its size, which takes a moment to find where a value is pickled."""
    if is_tensor(value):
        return "tensor", str(value.dtype).removeprefix("torch."), tuple(value.shape)
    if is_array(value):
        return "array", value.dtype.str, value.shape
    return "pickle", type(value).__name__, ()


def check(value: Any, expected: Form, where: str) -> None:
    """Refuse a value that is not of the `expected` form.

    Raises
    ------
    ShapeChanged
        With both forms.
    """
    if _likeness(value) != (expected.kind, expected.dtype, expected.shape):
        msg = (
            f"{where} must be {expected}, as when it was measured, not {form_of(value)}. Its times hold for "
            "one form only: give inputs of the form of the example, or open a pipeline with another example."
        )
        raise ShapeChanged(msg)


def write(value: Any, memory: memoryview) -> Form:
    """Put `value` at the beginning of `memory`; return its form."""
    if is_tensor(value):
        torch = sys.modules["torch"]
        form = form_of(value)
        if form.size:
            flat = torch.frombuffer(memory, dtype=value.dtype, count=value.numel())
            flat.copy_(value.detach().reshape(-1))
        return form
    if is_array(value):
        numpy = sys.modules["numpy"]
        form = form_of(value)
        if form.size:
            there = numpy.frombuffer(memory, dtype=value.dtype, count=value.size)
            numpy.copyto(there.reshape(value.shape), value)
        return form
    content = pickle.dumps(value, 5)
    if len(content) > len(memory):
        msg = (
            f"a {type(value).__name__} of {len(content)} bytes must fit the {len(memory)} that its pipeline has for it. "
            "Open the pipeline with the largest example."
        )
        raise ShapeChanged(msg)
    memory[: len(content)] = content
    return Form("pickle", type(value).__name__, (), len(content))


def read(memory: memoryview, form: Form, device: str = "cpu") -> Any:
    """Return a copy of what lies in `memory`, tensors on `device`."""
    if form.kind == "tensor":
        import torch  # noqa: PLC0415  only where a tensor comes

        dtype = getattr(torch, form.dtype)
        if not form.size:
            return torch.empty(form.shape, dtype=dtype, device=device)
        count = form.size // dtype.itemsize
        return (
            torch.frombuffer(memory, dtype=dtype, count=count)
            .reshape(form.shape)
            .to(device, copy=True)
        )
    if form.kind == "array":
        import numpy as np  # noqa: PLC0415  only where an array comes

        dtype = np.dtype(form.dtype)
        count = form.size // dtype.itemsize if dtype.itemsize else 0
        return np.frombuffer(memory, dtype=dtype, count=count).reshape(form.shape).copy()
    return pickle.loads(memory[: form.size])  # noqa: S301  our own nodes wrote it


def is_tensor(value: Any) -> bool:
    """Tell whether it is a tensor that lies in memory as it is."""
    torch = sys.modules.get("torch")
    return (
        torch is not None
        and isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
    )


def is_array(value: Any) -> bool:
    """Tell whether it is an array of numbers."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and value.dtype.kind in "biufc"


def copied(value: Any) -> Any:
    """Return a tensor or array that nobody else changes; anything else as it is."""
    if is_tensor(value):
        return value.detach().clone()
    return value.copy() if is_array(value) else value
