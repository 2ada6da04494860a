"""Values survive the way through shared memory, and one of another form is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gpushare_kernel.realtime import payload
from gpushare_kernel.realtime.payload import ShapeChanged


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(12, dtype=torch.float32).reshape(3, 4),
        torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
        torch.tensor(3, dtype=torch.int64),
        torch.tensor([[True, False]]),
        torch.ones(5, dtype=torch.bfloat16),
        torch.tensor([1 + 2j]),
        torch.empty(0, 7),
        torch.zeros(2, requires_grad=True),
        np.arange(6, dtype="<u2").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float64(2.5) * np.ones(()),
        np.empty((0, 2)),
        {"boxes": [1, 2], "label": "cat"},
        None,
    ],
    ids=lambda value: str(payload.form_of(value)),
)
def test_a_value_comes_out_as_it_went_in(value: Any) -> None:
    """Form, content, and a copy of its own."""
    form = payload.form_of(value)
    memory = memoryview(bytearray(form.room))
    written = payload.write(value, memory)
    found = payload.read(memory, written)
    memory[:] = bytes(len(memory))  # the slot goes to somebody else
    assert (written.kind, written.dtype, written.shape) == (form.kind, form.dtype, form.shape)
    if isinstance(value, torch.Tensor):
        assert torch.equal(found, value)
        assert found.dtype is value.dtype
    elif isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)
    else:
        assert found == value


def test_another_form_is_refused_with_both() -> None:
    """What it must be, what it is, what to do."""
    expected = payload.form_of(torch.zeros(1, 32))
    payload.check(torch.ones(1, 32), expected, "layer 3")
    with pytest.raises(
        ShapeChanged, match=r"layer 3 must be tensor 1x32 float32.*not tensor 1x64 float32.*example"
    ):
        payload.check(torch.ones(1, 64), expected, "layer 3")  # fmt: skip
    with pytest.raises(ShapeChanged, match="float64"):
        payload.check(torch.ones(1, 32, dtype=torch.float64), expected, "layer 3")


def test_a_pickle_may_grow_so_far() -> None:
    """It has twice the room of the example; what is longer is refused, not cut."""
    form = payload.form_of([0] * 10)
    memory = memoryview(bytearray(form.room))
    assert payload.read(memory, payload.write([1] * 1000, memory)) == [1] * 1000
    with pytest.raises(ShapeChanged, match=r"a list of .* bytes must fit the"):
        payload.write([1] * 10000, memory)


def test_a_copy_is_nobody_elses() -> None:
    """A camera fills the same array again."""
    frame, tensor = np.zeros(3), torch.zeros(3)
    kept, held = payload.copied(frame), payload.copied(tensor)
    frame += 1
    tensor += 1
    assert kept.sum() == 0
    assert held.sum() == 0
    assert payload.copied("x") == "x"
