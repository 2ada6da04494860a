"""What a bundle must not do in silence: run other code, change a result, lose a use, take a descriptor from a stranger."""

from __future__ import annotations

import copy
import functools
import math
import os
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpushare_kernel import nwv
from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.nwv.code import code_of
from gpushare_kernel.nwv.refusal import BadModel, DropTooLarge

Both = namedtuple("Both", "y weight")


def _layer(**settings: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(16, **{"nhead": 2, "dim_feedforward": 32, **settings})


@dataclass
class _Config:
    sizes: list[int] = field(default_factory=lambda: [1, 2])


class _Own(nn.Module):
    gain = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)
        self.table = {"k": 1}
        self.config = _Config()
        self.acts = (torch.relu, nn.functional.gelu, object())

    @property
    def times(self) -> int:
        return 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x) * self.times * self.gain


@pytest.mark.parametrize("settings", [{"nhead": 4}, {"norm_first": True}, {"activation": "gelu"}])
def test_settings_of_torchs_own_modules_are_code(settings: dict[str, Any]) -> None:
    """B7: they change answers, and are in no `extra_repr`."""
    assert code_of(_layer()) == code_of(_layer())
    assert code_of(_layer()) != code_of(_layer(**settings))


def test_settings_in_containers_constants_and_properties_are_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B7."""
    before, found = code_of(_Own()), []
    changed = _Own()
    changed.table["k"] = 5
    found.append(code_of(changed))
    changed = _Own()
    changed.config.sizes.append(3)
    found.append(code_of(changed))
    with monkeypatch.context() as patch:
        patch.setattr(_Own, "gain", 2.0)
        found.append(code_of(_Own()))
    monkeypatch.setattr(_Own, "times", property(lambda self: 3))
    found.append(code_of(_Own()))
    assert len({before, *found}) == 5


class _Private(nn.Module):
    def __init__(self, gain: Any, times: Any = lambda x: x) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)
        self._gain, self.times = gain, times
        self._owner = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.times(self.line(x)) * self._gain


def _by(gain: float, more: float = 0.0) -> Any:
    return lambda x, more=more: x * gain + more


def test_private_settings_and_what_functions_hold_are_code() -> None:
    """B7: a module of another gain was accepted, and its answers were of that gain."""
    made = [_Private(1.0), _Private(-3.0), _Private([1.0]), _Private(1.0, _by(2.0)), _Private(1.0, _by(3.0)), _Private(1.0, _by(2.0, 1.0)), _Private(1.0, functools.partial(pow, 2)), _Private(1.0, functools.partial(pow, 3))]  # fmt: skip
    assert len({code_of(one) for one in made}) == len(made)
    again = _Private(1.0, _by(2.0))
    assert code_of(again) == code_of(made[3])
    again._owner = object()  # type: ignore[assignment]  as trainers leave it
    assert code_of(again) == code_of(made[3])
    packed = nwv.pack({"m": made[0]}, pages=10, page_size=4, progress=False).packed
    with pytest.raises(nwv.BadBundle, match="packed with other code"):
        nwv.Bundle(packed, {"m": made[1]}, device="cpu")


def test_code_that_holds_itself_has_an_end() -> None:
    """A function that calls itself by name is in its own closure."""

    def again(n: int) -> int:
        return n and again(n - 1)

    assert code_of(_Private(1.0, again)) == code_of(_Private(1.0, again))


class _Bound(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)
        self.fn: Any = self.run
        if how == "lambda":
            self.fn = lambda x: self.line(x).relu()
        elif how == "tensor":
            weight = self.line.weight
            self.fn = functools.partial(lambda x: x @ weight)
        elif how == "inner":
            deep = [self.line]
            self.fn = {"k": lambda x: deep[0](x).relu()}
        elif how == "hook":
            self.line.register_forward_hook(lambda _m, _x, y: y + self.line.weight.sum())

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("lambda", "model m: fn is a function that holds a _Bound"),
        ("tensor", "model m: fn is a function that holds a Parameter"),
        ("inner", "model m: fn is a function that holds a Linear"),
        ("hook", "model m: a forward hook of line is a function that holds a _Bound"),
    ],
)
def test_functions_that_hold_a_module_are_refused(how: str, said: str) -> None:
    """A bundle answered with the weights of whatever module it was opened with."""
    with pytest.raises(BadModel, match=said):
        nwv.pack({"m": _Bound(how)}, pages=10, page_size=4)


def test_methods_and_hooks_that_collect_are_not_refused() -> None:
    """A method goes with the copy; what a hook collects is no weight."""
    seen: list[torch.Tensor] = []
    torch.manual_seed(0)
    one = _Bound("method")
    one.line.register_forward_hook(lambda _m, _x, y: seen.append(y))
    x = torch.ones(1, 4)
    wanted = one(x)
    packed = nwv.pack({"m": one}, pages=10, page_size=4, progress=False).packed
    found = nwv.Bundle(packed, {"m": _Bound("method")}, device="cpu")["m"](x)
    assert torch.equal(found, wanted)
    assert len(seen) == 1


def test_code_is_the_same_in_every_process() -> None:
    """B7: no address is in it."""
    ask = "from tests.nwv.test_trust import _Own, code_of; print(code_of(_Own()))"
    found = {
        subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}).stdout
        for _ in range(2)
    }  # fmt: skip
    assert len(found) == 1


class _Gives(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return Both(self.line(x), {"w": [self.line.weight]})


def _bundle() -> tuple[nwv.Result, dict[str, nn.Module]]:
    torch.manual_seed(3)
    models: dict[str, nn.Module] = {"a": _Gives(), "b": _Gives()}
    return nwv.pack(models, ratio=1.2, page_size=4, progress=False), models


def test_a_result_of_any_form_is_the_callers_own() -> None:
    """B2: also a weight in a named tuple."""
    result, models = _bundle()
    bundle = nwv.Bundle(result.packed, models, device="cpu")
    given = bundle["a"](torch.ones(1, 4))
    assert isinstance(given, Both)
    kept = given.weight["w"][0].clone()
    bundle["b"](torch.ones(1, 4))
    assert torch.equal(given.weight["w"][0], kept)


@dataclass(frozen=True)
class _Answer:
    y: torch.Tensor
    weights: dict[str, list[torch.Tensor]]


@dataclass(slots=True)
class _Outer:
    inner: _Answer


class _Loose:
    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight


class _Returns(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.line, self.how = nn.Linear(4, 4), how

    def forward(self, x: torch.Tensor) -> Any:
        return getattr(self, f"_{self.how}")(x)

    def _dataclass(self, x: torch.Tensor) -> Any:
        return [_Outer(_Answer(self.line(x), {"w": [self.line.weight]}))]

    def _object(self, _: torch.Tensor) -> Any:
        return {"k": _Loose(self.line.weight)}

    def _array(self, _: torch.Tensor) -> Any:
        return self.line.weight.detach().numpy()

    def _generator(self, x: torch.Tensor) -> Any:
        return (self.line(x) for _ in range(2))

    def _coroutine(self, x: torch.Tensor) -> Any:
        return [self._later(x)]

    def _function(self, x: torch.Tensor) -> Any:
        return _Outer(_Answer(x, {"w": [self._later]}))  # type: ignore[list-item]

    def _lock(self, _: torch.Tensor) -> Any:
        return _Loose(threading.Lock())  # type: ignore[arg-type]

    async def _later(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)


def _returning(how: str) -> nwv.Bundle:
    torch.manual_seed(3)
    models = {"a": _Returns(how), "b": _Returns(how)}
    return nwv.Bundle(nwv.pack(models, ratio=1.2, page_size=4, progress=False).packed, models, device="cpu")  # fmt: skip


@pytest.mark.parametrize(
    ("how", "weight"),
    [
        ("dataclass", lambda given: given[0].inner.weights["w"][0]),
        ("object", lambda given: given["k"].weight),
        ("array", torch.from_numpy),
    ],
)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_weight_in_any_object_is_the_callers_own(how: str, weight: Any) -> None:
    """B2: it was the other model's as soon as that one ran."""
    bundle = _returning(how)
    given = bundle["a"](torch.ones(1, 4))
    assert torch.equal(weight(given), bundle["a"].unpacked().line.weight)
    bundle["b"](torch.ones(1, 4))
    assert torch.equal(weight(given), bundle["a"].unpacked().line.weight)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("generator", "model a returns a generator, which computes when it is asked"),
        ("coroutine", "model a returns a coroutine, which computes when it is asked"),
        ("function", "model a returns a method, which computes when it is asked"),
        ("lock", "model a returns a _Loose, and what is returned must be copied: it cannot be"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_results_that_compute_later_are_refused(how: str, said: str) -> None:
    """B2: they gave the other model's outputs. The bundle goes on."""
    bundle = _returning(how)
    with pytest.raises(UserError, match=said):
        bundle["a"](torch.ones(1, 4))
    with pytest.raises(UserError, match="model b returns"):
        bundle["b"](torch.ones(1, 4))


def test_a_bundle_is_not_copied_and_takes_no_descriptor_with_it(tmp_path: Path) -> None:
    """The half-made copy had the number of the original's descriptor, and closed a stranger's."""
    result, models = _bundle()
    bundle = nwv.Bundle(result.packed, models, device="cpu")
    with pytest.raises(UserError, match=r"not copied or pickled.*unpacked"):
        copy.deepcopy(bundle)
    with pytest.raises(TypeError, match="not copied"):
        copy.deepcopy(bundle.region)
    with (tmp_path / "victim").open("w") as file:
        del bundle
        file.write("kept")
    assert (tmp_path / "victim").read_text() == "kept"


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)
        self.register_buffer("n", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n += 1
        return self.line(x)


def test_what_a_model_writes_stays_in_its_bundle() -> None:
    """A second bundle of the same pages begins as the first did."""
    torch.manual_seed(3)
    models = {"a": _Counts(), "b": _Counts()}
    packed = nwv.pack(models, ratio=1.2, page_size=4, progress=False).packed
    nwv.Bundle(packed, models, device="cpu")["a"](torch.ones(1, 4))
    assert float(packed.private["a"]["n"]) == 0.0


def _task(metric: Any) -> nwv.Task:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(64, 4)
    batches = [(x, (x[:, 0] > 0).long())]
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), batches[0][1]).backward()
        optimizer.step()
    return nwv.Task(model, batches, batches, metric)


@pytest.mark.parametrize("value", [math.nan, math.inf, "much"])
def test_what_max_drop_cannot_mean_is_refused(value: Any) -> None:
    """Before anything is computed."""
    with pytest.raises(BadDeclaration, match="a number, and"):
        nwv.pack({"a": _task(nwv.accuracy), "b": _task(nwv.accuracy)}, ratio=1.5, max_drop=value)


def test_a_metric_that_becomes_no_number_keeps_no_max_drop() -> None:
    """It is refused by name; the others' drops do not hide behind it."""
    calls = []

    def metric(*given: Any) -> float:
        calls.append(1)
        return float(nwv.accuracy(*given)) if len(calls) <= 2 else math.nan

    tasks = {"a": _task(metric), "b": _task(nwv.accuracy)}
    with pytest.raises((DropTooLarge, BadDeclaration), match=r"model a|a:"):
        nwv.pack(tasks, ratio=1.5, page_size=4, max_drop=0.5, plan=nwv.Plan(rounds=1), progress=False)  # fmt: skip
