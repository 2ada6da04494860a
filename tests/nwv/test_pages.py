"""Weights as pages and back: N1, N2, N3 of docs/packing.md."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpushare_kernel.nwv import pack
from gpushare_kernel.nwv.gather import Pages
from gpushare_kernel.nwv.pages import cut, normal, twins, weights_from
from gpushare_kernel.nwv.quantised import LEVELS, encode, stored
from gpushare_kernel.nwv.refusal import BadModel
from tests.nwv.small import mlp, unpack, untimed


class Everything(nn.Module):
    """Convolutions, norms with buffers, a gain of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(self.conv(x)).mean((2, 3)) * self.gain)
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: mlp(5, 9, 3), Everything])
def test_what_is_cut_comes_out_bit_by_bit(make: object, dtype: torch.dtype) -> None:
    """N1, through values and back, in each type; nothing is missing and nothing new."""
    model = make().to(dtype)  # type: ignore[operator]
    weights = cut("m", model, 16)
    back = {**weights_from(weights.member, weights.values), **weights.private}
    state = model.state_dict()
    assert back.keys() == state.keys()
    for key, one in state.items():
        assert back[key].dtype == one.dtype
        assert torch.equal(back[key], one), key


@untimed
@given(st.integers(1, 200), st.sampled_from([2, 16, 100]), st.floats(-6, 6))
def test_pages_are_as_many_as_the_weights_need(count: int, size: int, magnitude: float) -> None:
    """A multiple of the page gets no page more (the published code adds one), and the end is zeros."""
    module = nn.Linear(count, 2, bias=False)
    with torch.no_grad():
        module.weight.mul_(10**magnitude)
    weights = cut("m", module, size)
    assert len(weights.raw) == -(-2 * count // size)
    assert not weights.values.reshape(-1)[2 * count :].any()


@untimed
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=50))
def test_a_scale_is_a_power_of_two(weights: list[float]) -> None:
    """So dividing by it changes no mantissa; a shift is for weights far from zero only."""
    shift, scale = normal(torch.tensor(weights))
    assert scale > 0
    assert torch.frexp(torch.tensor(scale, dtype=torch.float64))[0] == 0.5
    if abs(sum(weights)) < 1e-3:
        assert shift == 0


@pytest.mark.parametrize("bits", LEVELS)
@untimed
@given(st.integers(0, 1000), st.floats(-2, 2))
def test_codes_are_within_half_a_step(bits: int, seed: int, magnitude: float) -> None:
    """N4: what training saw is what is read back, and it is near."""
    values = 10**magnitude * torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
    values[2] = 0
    codes, scales = encode(values, bits)
    back = Pages(codes, scales, 8, bits).rows(torch.arange(len(codes)))
    assert torch.equal(back, stored(values, bits, torch.float32))
    step = values.abs().amax(dim=1, keepdim=True) / LEVELS[bits]
    assert bool(((back - values).abs() <= 0.51 * step + 1e-6).all())
    assert not back[2].any()


def test_gradients_pass_through_codes() -> None:
    """Straight through: as if nothing was rounded."""
    values = torch.randn(3, 4, requires_grad=True)
    (stored(values, 4, torch.float32) * 2).sum().backward()
    assert torch.equal(values.grad, torch.full((3, 4), 2.0))


def test_equal_pages_of_different_models_are_stored_once_and_lose_nothing() -> None:
    """N3: two heads on one frozen trunk, sizes that differ; no data needed."""
    base = mlp(8, 64, 64, 4)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[-1].weight.mul_(
            40
        )  # moves the root mean square, so the scale of its own would be another
    result = pack({"base": base, "tuned": tuned}, pages=1000, page_size=64)
    alone = len(cut("base", base, 64).raw)
    assert alone < len(result.packed.pages) < 1.2 * alone
    for name, model in (("base", base), ("tuned", tuned)):
        for key, one in unpack(result.packed, name).items():
            assert torch.equal(one, model.state_dict()[key]), (name, key)
    assert "Lossless" in str(result.report)


def test_twins_are_of_different_models_only() -> None:
    """A model with two equal pages of its own keeps both: no table names a page twice."""
    module = nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.ones(4, 8))
    cuts = {"a": cut("a", module, 8), "b": cut("b", copy.deepcopy(module), 8)}
    found = twins(cuts)
    assert len(set(found["a"])) == 4
    assert len(set(found["b"])) == 4


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def _with(value: float) -> nn.Module:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight[1, 2] = value
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (_tied(), "1.weight and 0.weight are one tensor"),
        (nn.ReLU(), "no trainable weights: 0 parameters"),
        (nn.Linear(2, 2).requires_grad_(requires_grad=False), "none that requires a gradient"),
        (nn.Linear(2, 2).double(), "weight is torch.float64, and pages hold float32, float16, bfloat16"),
        (_with(float("nan")), "1 of 16 weights of weight are NaN or infinite"),
        (_with(float("inf")), "NaN or infinite"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_in_pages_are_refused(model: nn.Module, said: str) -> None:
    """With the parameter and what to do."""
    with pytest.raises(BadModel, match=said) as refused:
        pack({"m": model, "n": mlp(3, 4, 2)}, ratio=1.5)
    assert str(refused.value).endswith(".")


def test_a_module_in_two_models_is_refused() -> None:
    """One would train the other unseen."""
    trunk = nn.Linear(4, 4)
    with pytest.raises(BadModel, match="models a and b share a tensor"):
        pack({"a": nn.Sequential(trunk), "b": nn.Sequential(trunk, nn.ReLU())}, ratio=1.5)
