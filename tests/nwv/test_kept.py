"""Modules that keep something of a call: an activation, a counter. They are packed, opened anew, and stay as they are (N7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from gpushare_kernel.nwv import Bundle, Task, pack
from gpushare_kernel.nwv.changing import set_by_calls
from gpushare_kernel.nwv.code import code_of
from gpushare_kernel.nwv.fisher import fisher
from gpushare_kernel.nwv.refusal import BadModel
from tests.nwv.small import QUICK, fit, task

HOW: dict[str, Any] = {"plan": QUICK, "page_size": 32, "progress": False, "control": False}


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 8) -> (n, 3)."""
        found: torch.Tensor = self.b(torch.relu(self.a(x)))
        return found


class Keeps(Net):
    """Keeps an activation with its graph."""

    attn: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.attn = torch.relu(self.a(x))
        found: torch.Tensor = self.b(self.attn)
        return found


class KeepsDetached(Net):
    """Keeps one without, in a property's place."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._note(torch.relu(self.a(x)))
        return super().forward(x)

    def _note(self, one: torch.Tensor) -> None:
        self.seen["last"] = one.detach()


class Frozen(dict[str, int]):
    """A configuration that nobody may change."""

    def __setitem__(self, key: str, value: int) -> None:
        raise TypeError

    def update(self, *_: Any, **__: Any) -> None:
        raise TypeError

    clear = update  # type: ignore[assignment]


class Configured(Net):
    """Has one."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Frozen(a=1)


class Counts(Net):
    """Counts its calls, under a name that Python mangles too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.__more = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.__more += 1
        return super().forward(x)


def fitted(model: nn.Module) -> Task:
    """Return a task whose model was just trained."""
    one = task(3, steps=0)
    fit(model, one.train, 30)
    return replace(one, model=model)


@pytest.mark.parametrize("make", [Keeps, KeepsDetached, Counts])
@pytest.mark.parametrize("fresh", [True, False])
def test_what_keeps_something_is_packed_and_opened(make: Callable[[], Net], fresh: bool) -> None:
    """Right after training, with its graph; by the module that was packed, and by a fresh one."""
    torch.manual_seed(0)
    one, other = fitted(make()), task(1)
    before = dict(vars(one.model))
    seen = dict(vars(one.model).get("seen", {}))
    packed = pack({"m": one, "o": other}, ratio=1.3, **HOW).packed
    assert vars(one.model).keys() == before.keys()
    assert all(vars(one.model)[key] is value for key, value in before.items())
    assert vars(one.model).get("seen", {}) == seen
    module = make() if fresh else one.model
    for mode in ("switch", "layers"):
        bundle = Bundle(packed, {"m": module, "o": other.model}, device="cpu", mode=mode)
        x, _ = next(iter(one.validate))
        assert torch.equal(bundle["m"](x), bundle["m"].unpacked()(x))


@pytest.mark.parametrize("make", [Keeps, KeepsDetached, Counts])
def test_a_fisher_leaves_nothing_in_a_module(make: Callable[[], Net]) -> None:
    """No wrapper of torch.func, which nothing can be done with afterwards."""
    one = fitted(make())
    before = dict(vars(one.model))
    assert fisher(one).keys() == dict(one.model.named_parameters()).keys()
    assert all(vars(one.model)[key] is value for key, value in before.items())


def test_what_cannot_be_changed_is_left_alone() -> None:
    """Only plain containers are filled again."""
    one = fitted(Configured())
    assert fisher(one).keys() == dict(one.model.named_parameters()).keys()
    assert one.model.config == {"a": 1}


def test_what_is_computed_once_is_refused() -> None:
    """A bundle would keep what the weights were."""
    model = Net()
    model.twice = model.a.weight * 2
    with pytest.raises(BadModel, match="model m: twice is computed from other weights and kept"):
        pack({"m": model, "n": Net()}, ratio=1)


class Sets(Net):
    """Sets attributes in all the ways that are looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.one, self.two, self.three, self.four, self.five = 1.0, [0], {}, [], None, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.one[0] += 1
        self.two.update(a=1)
        setattr(self, "four", x)  # noqa: B010  as it is written
        return self.gain * super().forward(x) * self.again

    @property
    def again(self) -> float:
        self.three.append(1)
        return 1.0

    def set_gain(self, gain: float) -> None:
        """Nobody calls it in a forward."""
        self.gain, self.five = gain, 1


def test_what_a_forward_sets_is_no_setting() -> None:
    """And what other methods set is one."""
    assert set_by_calls(Sets) == {"one", "two", "three", "four"}
    one = Sets()
    before = code_of(one)
    one(torch.zeros(1, 8))
    assert code_of(one) == before
    one.set_gain(2.0)
    assert code_of(one) != before


def test_a_class_without_source_is_looked_at_too() -> None:
    """As where it was made of a text."""
    made: dict[str, Any] = {"Net": Net}
    exec(
        "class Made(Net):\n    n = 0\n    def forward(self, x):\n        self.n += 1\n        return super().forward(x)",
        made,
    )
    assert set_by_calls(made["Made"]) == {"n"}
