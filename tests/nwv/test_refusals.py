"""What packing and bundles are asked that cannot be: refused before anything is computed, and for the true reason."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.nwv import BadBundle, Bundle, Packed, Plan, Task, pack
from gpushare_kernel.nwv.refusal import BadModel, PackingStopped
from tests.nwv.bundles import Net, made, nets
from tests.nwv.small import mlp, task

GOOD, OTHER = task(7), task(1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ratio": 0.1}, "ratio is how many times smaller .* 1 or more, and 0.1 is not"),
        ({"ratio": "2"}, "ratio is how many times smaller .* and '2' is not"),
        ({"pages": 9.5}, "pages is a whole number of 1 or more, and 9.5 is not"),
        ({"bytes": 1e6}, "bytes is a whole number of 1 or more, and 1000000.0 is not"),
        ({"ratio": 2, "page_size": "a"}, "page_size must be an even number of weights, and 'a' is not"),
        ({"ratio": 2, "own": "x"}, "from 0 up to 1, and 'x' is not"),
        ({"ratio": 2, "plan": {}}, "plan must be a Plan, and is a dict"),
        ({"ratio": 2, "method": "bset"}, "method is best or random or identity, and 'bset' is none of them"),
        ({"ratio": 2, "labels": "ture"}, "labels is true or predicted, and 'ture' is none of them"),
        ({"ratio": 2, "max_drop": "3%"}, "max_drop is what a metric may lose .* and '3%' is none"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(given: dict[str, Any], said: str) -> None:
    """The rule, the value, what to write."""
    with pytest.raises(BadDeclaration, match=said) as refused:
        pack({"t": GOOD, "u": OTHER}, **given)
    assert str(refused.value).endswith((".", ")"))


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([GOOD, OTHER], "models come by name, and this is a list. Give"),
        ({}, "there is nothing to pack. Give"),
        ({1: GOOD}, "models are named by texts, and 1 is none"),
        ({"t": type(GOOD)}, "t must be a Task or a torch module, and is a type"),
        ({"t": replace(GOOD, train=[(torch.zeros(0, 8), torch.zeros(0))])}, "task t: train must give as many rows .* at least one, and its first batch has 0 and 0"),
        ({"t": replace(GOOD, validate=[(torch.zeros(4, 8), torch.zeros(3))])}, "task t: validate must give .* has 4 and 3"),
    ],
)  # fmt: skip
def test_models_that_cannot_be(models: Any, said: str) -> None:
    """Whatever comes instead of tasks by name; data that have no loss."""
    with pytest.raises(BadDeclaration, match=said):
        pack(models, ratio=1.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rounds": -1}, "a plan's rounds is a whole number of 0 or more, and -1 is not. Leave it out for 15"),
        ({"steps": 0}, "steps is a whole number of 1 or more, and 0"),
        ({"steps": 2.5}, "steps is a whole number of 1 or more, and 2.5"),
        ({"lr": float("nan")}, "lr is a number over 0, and nan"),
        ({"clip": 0}, "clip is a number over 0, and 0 is not"),
        ({"kappa": -1}, "kappa is a number of 0 or more, and -1"),
        ({"patience": 0}, "patience is a whole number of 1 or more"),
    ],
)  # fmt: skip
def test_plans_that_cannot_be(given: dict[str, Any], said: str) -> None:
    """Said where they are written."""
    with pytest.raises(BadDeclaration, match=said):
        Plan(**given)


def test_a_plan_may_train_nothing_and_pull_nothing() -> None:
    """Zero makes sense for these two."""
    assert Plan(rounds=0, kappa=0).rounds == 0


@pytest.mark.parametrize("role", ["metric", "loss", "model", "train"])
def test_an_error_of_ones_own_code_names_its_task(role: str) -> None:
    """It stays the error that it is, with its frames."""

    class Breaks(list[Any]):
        def __iter__(self) -> Any:
            raise LookupError(role)

    def breaks(*_: Any) -> Any:
        raise LookupError(role)

    bad = copy.deepcopy(GOOD.model)
    bad.forward = breaks
    own = {"metric": breaks, "loss": breaks, "model": bad, "train": Breaks()}[role]
    with pytest.raises(LookupError, match=role) as seen:
        pack({"t": OTHER, "u": replace(GOOD, **{role: own})}, ratio=1.5, progress=False)
    assert "this is of task u" in seen.value.__notes__[0]


def test_memory_that_runs_out_at_the_start_is_told_too() -> None:
    """Nothing is promised that is not kept."""

    def breaks(*_: Any) -> float:
        raise MemoryError

    with pytest.raises(PackingStopped, match=r"no round was done yet") as stopped:
        pack({"t": replace(GOOD, metric=breaks), "u": OTHER}, ratio=1.5)
    assert stopped.value.folder is None


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_is_a_file(tmp_path: Path, place: str) -> None:
    """Before the first round, not after it."""
    (tmp_path / "file").touch()
    with pytest.raises(BadDeclaration, match=r"and .*/file is a file. Give a folder"):
        pack({"t": GOOD, "u": OTHER}, ratio=1.5, folder=tmp_path / place)


class Extra(nn.Linear):
    """Keeps something that is no tensor."""

    def get_extra_state(self) -> object:
        """Called by `state_dict`."""
        return {"epoch": 3}


def _views(*, expanded: bool = False) -> nn.Module:
    both, model = torch.randn(24), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if expanded:
        model[0].weight = nn.Parameter(torch.randn(1, 4).expand(4, 4))
    else:
        model[0].weight = nn.Parameter(both[:16].view(4, 4))
        model[1].weight = nn.Parameter(both[8:].view(4, 4))
    return model


def _buffer(value: float) -> nn.Module:
    model = nn.BatchNorm1d(4)
    assert model.running_mean is not None
    model.running_mean[1] = value
    return nn.Sequential(nn.Linear(4, 4), model)


def _taken() -> nn.Module:
    one = made(nets(1))
    Bundle(one.packed, one.modules, device="cpu", take=True)
    return one.modules["net0"]


def _empty() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(0, 4))
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_views, "1.weight and 0.weight lie over one another in memory .views., and each weight has one place"),
        (lambda: _views(expanded=True), "weights of 0.weight lie over one another in memory .expanded."),
        (lambda: _buffer(float("nan")), "1 of 4 values of buffer 1.running_mean are NaN"),
        (lambda: nn.LazyLinear(3), "weight has no form yet, as its module is lazy. Run the model"),
        (lambda: Extra(4, 4), "keeps extra state ._extra_state., and a bundle has parameters and buffers only"),
        (lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4))), "0.weight is computed from other weights and kept"),
        (_taken, "device meta.: a bundle took its weights .take=True."),
        (_empty, "no trainable weights: all empty. Leave it out"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Lazy modules")
def test_modules_that_cannot_be_in_pages(make: Callable[[], nn.Module], said: str) -> None:
    """What stands in the way, and what to do."""
    with pytest.raises(BadModel, match=said) as refused:
        pack({"m": make(), "n": mlp(3, 4, 2)}, ratio=1.5)
    assert str(refused.value).endswith(".")


def test_a_buffer_of_two_models_is_refused() -> None:
    """Packed, each would go on with its own."""
    norm = nn.BatchNorm1d(4, affine=False)
    models = {name: nn.Sequential(nn.Linear(4, 4), norm) for name in "ab"}
    with pytest.raises(BadModel, match=r"models a and b share a tensor \(1\."):
        pack(models, ratio=1.5)


def test_what_can_be_in_pages_is_not_refused() -> None:
    """Infinite masks; neighbours in one memory, in a model and of two; weight norm of today, which also runs."""
    both = torch.randn(32)
    masked = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    masked[0].weight = nn.Parameter(both[:16].view(4, 4))
    masked.register_buffer("mask", torch.full((3,), float("-inf")))
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    beside = nn.Linear(4, 4)
    beside.weight = nn.Parameter(both[16:].view(4, 4))
    modules = {"masked": masked, "normed": normed, "beside": beside}
    packed = pack(modules, pages=100, page_size=4).packed
    bundle = Bundle(packed, modules, device="cpu")
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(bundle["normed"](x), normed(x))


def test_no_ratio_is_advised_that_would_be_refused() -> None:
    """Where tables and padding make it larger than the models, that is said."""
    with pytest.raises(BadDeclaration, match=r"These models cannot be smaller so.*give pages="):
        pack({"m": mlp(3, 3, 2)}, ratio=1.5, page_size=256)


def test_plain_pages_are_of_8_or_4_bits() -> None:
    """`Result.plain` says so."""
    with pytest.raises(BadDeclaration, match=r"bits must be 8 or 4, and 16 is not. Write 8"):
        pack({"m": mlp(8, 8), "n": mlp(8, 8, seed=1)}, pages=100).plain(16)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Packed, Path]:
    """A bundle, and its file."""
    packed = made(nets(1)).packed
    return packed, packed.save(tmp_path / "bundle.safetensors")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("description that cannot be read", "{"),
        ("description that cannot be read", "[1]"),
        ("description that cannot be read", '{"version": 1, "page_size": "x"}'),
        ("is a bundle of version 2", '{"version": 2}'),
        (
            "has no checksum: another gpushare wrote it",
            '{"version": 1, "page_size": 24, "bits": 32, "members": []}',
        ),
        ("a page has at least one weight, not 0", None),
    ],
)
def test_a_description_that_is_none(
    saved: tuple[Packed, Path], said: str, text: str | None
) -> None:
    """A file whose tensors are well."""
    packed, place = saved
    if text is None:
        replace(packed, page_size=0).save(place)
    else:
        save_file({name: one.contiguous() for name, one in packed.named().items()}, place, {"gpushare.nwv": text})  # fmt: skip
    with pytest.raises(BadBundle, match=said):
        Packed.load(place)


def test_a_place_that_cannot_be_written(saved: tuple[Packed, Path], tmp_path: Path) -> None:
    """A folder that is missing, or where the file would be; nothing is left there."""
    packed, _ = saved
    with pytest.raises(BadDeclaration, match=r"into a folder that is there, and .*/none is none"):
        packed.save(tmp_path / "none" / "bundle")
    (tmp_path / "sub").mkdir()
    with pytest.raises(BadDeclaration, match=r"sub cannot be written: .*directory"):
        packed.save(tmp_path / "sub")
    assert {one.name for one in tmp_path.iterdir()} == {"bundle.safetensors", "sub"}


def test_bundles_are_opened_from_what_was_packed(saved: tuple[Packed, Path]) -> None:
    """A file, a result, tasks, a list: what to write instead."""
    packed, place = saved
    result = pack({"m": mlp(8, 8), "n": mlp(8, 8, seed=1)}, pages=100)
    net = nets(1)["net0"]
    for one, modules, said in [
        (str(place), {"net0": net}, "this is a str. Write Bundle(Packed.load(path), modules)"),
        (result, {"net0": net}, "this is a Result. Write Bundle(result.packed, modules)"),
        (packed, [net], "modules come by name, and this is a list"),
        (packed, {"net0": Task(net, (), ())}, "this is a Task. Write {'net0': task.model}"),
        (packed, {"net0": None}, "this is a NoneType. Write {'net0': module}"),
    ]:  # fmt: skip
        with pytest.raises(BadDeclaration, match=re.escape(said)):
            Bundle(one, modules, device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda", "device is cuda, and torch sees no GPU here"), ("gpu", "and 'gpu' is none of them")],
)
def test_a_device_that_is_not_there(
    saved: tuple[Packed, Path], monkeypatch: pytest.MonkeyPatch, device: str, said: str
) -> None:
    """Where bundles are opened and where they are loaded."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    packed, place = saved
    for use in (lambda: Bundle(packed, nets(1), device=device), lambda: Packed.load(place, device)):
        with pytest.raises(BadDeclaration, match=said):
            use()


def test_a_module_of_another_type_is_told_from_other_code() -> None:
    """It is the type that was changed."""
    one = made(nets(1))
    with pytest.raises(BadBundle, match=r"in float32, and this module has it in float16. Convert"):
        Bundle(one.packed, {"net0": one.modules["net0"].half()}, device="cpu")


def test_a_module_that_gave_its_weights_is_a_pattern_still() -> None:
    """Only calls of that module itself are refused, not those of another bundle made of it."""
    one = made(nets(1))
    x = torch.ones(1, 1, 8, 8)
    first = Bundle(one.packed, one.modules, device="cpu", take=True)
    assert torch.equal(Bundle(one.packed, one.modules, device="cpu")["net0"](x), first["net0"](x))
    with pytest.raises(UserError, match=r"gave its weights"):
        one.modules["net0"](x)
    assert isinstance(one.modules["net0"], Net)
