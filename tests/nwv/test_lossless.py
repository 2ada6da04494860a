"""N1 and N3 where scales differ, overflow or shift: a bundle that calls itself lossless gives back every bit."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from gpushare_kernel.nwv import BadBundle, Bundle, Result, pack
from gpushare_kernel.nwv.pages import alike, cut, returns, twins
from tests.nwv.bundles import made
from tests.nwv.small import mlp, task


class Two(nn.Module):
    """Two layers without biases."""

    def __init__(self, x: nn.Linear | None = None, y: nn.Linear | None = None) -> None:
        super().__init__()
        self.x = copy.deepcopy(x) if x else nn.Linear(32, 32, bias=False)
        self.y = copy.deepcopy(y) if y else nn.Linear(32, 32, bias=False)

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """(n, 32) -> (n, 32)."""
        found: torch.Tensor = self.y(self.x(v))
        return found


def bits(one: torch.Tensor) -> torch.Tensor:
    """Return its bytes: torch.equal takes 0.0 for -0.0."""
    return one.detach().contiguous().view(-1).view(torch.uint8)


def gives_back(result: Result, models: dict[str, Any]) -> None:
    """Every weight, bit by bit, by the runtime's own gather."""
    assert "Lossless" in str(result.report)
    bundle = Bundle(result.packed, models, device="cpu")
    for name, model in models.items():
        found = bundle[name].unpacked().state_dict()
        for key, one in model.state_dict().items():
            assert torch.equal(bits(found[key]), bits(one)), (name, key)


def chained() -> dict[str, nn.Module]:
    """Return a model, one of another scale, and a third with a layer of each."""
    torch.manual_seed(0)
    a, b = Two(), Two()
    with torch.no_grad():
        for one in b.parameters():
            one.mul_(8)
    return {"a": a, "b": b, "c": Two(a.x, b.x)}


def test_a_model_with_a_layer_of_each_of_two() -> None:
    """The scale of the second was put over that of the first, whose pages it shared."""
    models = chained()
    gives_back(pack(models, ratio=1, progress=False), models)


def test_a_scale_that_others_overflow_with() -> None:
    """float16: weights of 30 by the scale of weights of 0.0001 were infinite."""
    torch.manual_seed(0)
    a, b = Two(), Two()
    nn.init.normal_(a.x.weight, 0, 1e-4)
    nn.init.normal_(a.y.weight, 0, 1e-4)
    nn.init.normal_(b.y.weight, 0, 30.0)
    b.x.load_state_dict(a.x.state_dict())
    models = {"a": a.half(), "b": b.half()}
    gives_back(pack(models, pages=100, progress=False), models)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_far_from_zero(dtype: torch.dtype) -> None:
    """A shift rounds: there is none where nothing is merged."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64, bias=False)
    nn.init.uniform_(model.weight, 0.2, 1.0)
    models = {"a": model.to(dtype)}
    gives_back(pack(models, pages=16, progress=False), models)


def test_what_tasks_make_matter_differently() -> None:
    """Equal pages are not averaged, by whatever each of their weights matters."""
    one, other = task(0), task(1)
    other.model[2].load_state_dict(one.model[2].state_dict())
    head = [*other.model[0].parameters(), *other.model[4].parameters()]
    optimiser = torch.optim.Adam(head, 5e-3)
    for _ in range(40):
        for x, y in other.train:
            optimiser.zero_grad()
            nn.functional.cross_entropy(other.model(x), y).backward()
            optimiser.step()
    models = {"a": one, "b": other}
    result = pack(models, pages=1000, page_size=32, control=False, progress=False)
    assert len(result.packed.pages) < sum(len(one) for one in result.packed.tables.values())
    gives_back(result, {name: each.model for name, each in models.items()})


def test_a_zero_keeps_its_sign() -> None:
    """Under a scale, too: nothing is added where there is no shift."""
    one = made({"a": mlp(8, 16, 4).half()}, bits=16, keep=())
    scaled = msgspec.structs.replace(one.packed.members["a"], shift=0.0, scale=2.0)
    one.packed.pages.zero_().neg_()
    packed = replace(one.packed, members={"a": scaled})
    found = Bundle(packed, one.modules, device="cpu")["a"].unpacked()
    assert all(bool(weight.signbit().all()) for weight in found.parameters())


def test_merged_models_with_equal_pages_have_one_scale() -> None:
    """Also by way of a third; one under which all of them come out as they were."""
    models = chained()
    cuts = {name: cut(name, model, 256) for name, model in models.items()}
    numbers = twins(cuts)
    found = alike(cuts, numbers, torch.float32)
    assert len({(one.member.shift, one.member.scale) for one in found.values()}) == 1
    assert all(returns(one, one.values) for one in found.values())
    by_number: dict[int, torch.Tensor] = {}
    for name, row in numbers.items():
        for number, page in zip(row, found[name].values, strict=True):
            assert torch.equal(by_number.setdefault(number, page), page)


def test_equal_bytes_of_other_types_are_no_twins() -> None:
    """A float16 and a bfloat16 of the same bits are different numbers."""
    half = nn.Linear(8, 8, bias=False).half()
    other = nn.Linear(8, 8, bias=False).bfloat16()
    with torch.no_grad():
        other.weight.copy_(half.weight.detach().view(torch.bfloat16))
    models = {"a": half, "b": other}
    gives_back(pack(models, pages=100, page_size=16, progress=False), models)


def test_pages_that_are_no_numbers_are_refused() -> None:
    """However they came about."""
    packed = pack({"a": mlp(8, 16, 4), "b": mlp(8, 16, 4, seed=1)}, pages=20, page_size=16, progress=False).packed  # fmt: skip
    packed.pages[1, 2] = float("inf")
    with pytest.raises(BadBundle, match="1 values of this bundle's pages are NaN or infinite"):
        packed.check()
