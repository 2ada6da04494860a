"""Nothing is lost (W1): whatever a notebook does with tensors, they come back bit-equal, and go on as if nothing had been."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.client.warm.conftest import Tier, is_away
from tests.client.warm.host_memory import DEVICES, torch

pytestmark = pytest.mark.parametrize("device", DEVICES)


def same(one: Any, other: Any) -> bool:
    """Bit for bit, NaN too."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    both = (value.detach().contiguous().reshape(-1).view(torch.uint8) for value in (one, other))
    return bool(torch.equal(*both))


def test_views(tier: Tier, device: str) -> None:
    """Views of every kind keep their shape, stride, offset and version, and still see one another's changes."""
    whole = torch.arange(4096.0, device=device)
    whole.add_(1)
    views = [whole[100:200], whole.view(64, 64).t(), whole[::3], whole.as_strided((5, 5), (7, 1), 3), whole.view(torch.int32)]  # fmt: skip
    before = [(one.clone(), one.shape, one.stride(), one.storage_offset(), one._version) for one in views]  # fmt: skip
    tier.there_and_back(whole, *views)
    after = [(one.shape, one.stride(), one.storage_offset(), one._version) for one in views]
    assert after == [facts[1:] for facts in before]
    assert all(same(one, facts[0]) for one, facts in zip(views, before, strict=True))
    whole[100] = -5
    assert views[0][0] == -5
    assert views[1][100 % 64, 100 // 64] == -5


def test_view_without_its_base(tier: Tier, device: str) -> None:
    """A view whose base nobody names is moved with it, and autograd still knows the base."""
    view = torch.arange(1024.0, device=device)[512:]
    kept = view.clone()
    tier.there_and_back(view)
    assert same(view, kept)
    assert view._base.shape == (1024,)


def test_special_values(tier: Tier, device: str) -> None:
    """NaN payloads, infinities, negative zero and every small dtype are bytes like others."""
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42], device=device)
    odd.view(torch.int32)[0] = 0x7FC12345
    several = [odd, *(torch.arange(7, device=device).to(t) for t in (torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64, torch.float64))]  # fmt: skip
    kept = [one.clone() for one in several]
    tier.there_and_back(*several)
    assert all(same(one, other) for one, other in zip(several, kept, strict=True))


def test_conjugate_and_negative_views(tier: Tier, device: str) -> None:
    """What is negated or conjugated lazily still is."""
    number = torch.complex(torch.arange(4.0), torch.ones(4)).to(device)
    real = torch.arange(4.0, device=device)
    conj, negative = number.conj(), real._neg_view()
    kept = [conj.clone(), negative.clone()]
    tier.there_and_back(number, negative)
    assert conj.is_conj()
    assert negative.is_neg()
    assert same(conj.resolve_conj(), kept[0].resolve_conj())
    assert same(negative.resolve_neg(), kept[1].resolve_neg())


def test_tied_weights(tier: Tier, device: str) -> None:
    """Weights that are one stay one."""
    model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50, bias=False)).to(device)  # fmt: skip
    model[1].weight = model[0].weight
    tier.there_and_back(model[0].weight)
    assert model[1].weight is model[0].weight
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr()
    with torch.no_grad():
        model[0].weight[3, 3] = 9
    assert model[1].weight[3, 3] == 9


def trainer(device: str, kind: str) -> SimpleNamespace:
    """Return a model in training, with a step that can be taken again and again."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).to(device)  # fmt: skip
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **options)
    data = torch.randn(32, 64, device=device)

    def step() -> Any:
        optimizer.zero_grad()
        loss = model(data).square().sum()
        loss.backward()
        optimizer.step()
        return loss.detach().clone()

    return SimpleNamespace(model=model, optimizer=optimizer, data=data, step=step)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_training_goes_on(tier: Tier, device: str, kind: str) -> None:
    """Steps after it, losses and weights, are those of a run that nobody disturbed; gradients and moments were away."""
    undisturbed, disturbed = trainer(device, kind), trainer(device, kind)
    for one in (undisturbed, disturbed):
        one.step()
        one.step()
    weight = disturbed.model[0].weight
    state = [value for value in disturbed.optimizer.state[weight].values() if torch.is_tensor(value) and value.device.type == device]  # fmt: skip
    assert state
    tier.there_and_back(weight, weight.grad, disturbed.model[1].running_mean, disturbed.data, *state)  # fmt: skip
    for _ in range(3):
        assert same(undisturbed.step(), disturbed.step())
    for one, other in zip(undisturbed.model.state_dict().values(), disturbed.model.state_dict().values(), strict=True):  # fmt: skip
        assert same(one, other)


def test_containers_closures_and_attributes(tier: Tier, device: str) -> None:
    """Wherever a tensor is kept, it is found."""

    def ten(number: float) -> Any:
        return torch.full((10,), float(number), device=device)

    def closed_over(inner: Any) -> Callable[[], Any]:
        return lambda: inner * 1

    def default(one: Any = ten(6)) -> Any:  # noqa: B008 - it is what is tested
        return one * 1

    def generator(one: Any) -> Any:
        yield
        yield one * 1

    class Slots:
        __slots__ = ("inner",)

    slots, started = Slots(), generator(ten(8))
    slots.inner = ten(7)
    next(started)
    places: list[tuple[float, Callable[[], Any]]] = []
    nested = {"a": [ten(1), (ten(2), {"b": ten(3)})]}
    places += [(1, lambda: nested["a"][0]), (2, lambda: nested["a"][1][0]), (3, lambda: nested["a"][1][1]["b"])]  # fmt: skip
    places += [(4, closed_over(ten(4))), (6, default), (7, lambda: slots.inner), (8, lambda: next(started))]  # fmt: skip
    aside = tier.out()
    assert len(aside.entries) >= len(places)
    assert is_away(nested["a"][0])
    assert is_away(slots.inner)
    tier.back()
    for number, look in places:
        assert same(look().clone(), torch.full((10,), float(number), device=device))


def test_frames_of_other_threads(tier: Tier, device: str) -> None:
    """A tensor that only the frame of a waiting thread knows comes back under its hands."""
    there, go, results = threading.Event(), threading.Event(), []

    def run() -> None:
        only_here = torch.full((1000,), 3.0, device=device)
        there.set()
        assert go.wait(30)
        results.append(only_here.sum().item())

    thread = threading.Thread(target=run)
    thread.start()
    assert there.wait(30)
    count = len(tier.out().entries)
    tier.back()
    go.set()
    thread.join(30)
    assert count >= 1
    assert results == [3000.0]


def graph(device: str) -> SimpleNamespace:
    """Return a loss whose backward pass is still to come."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).to(device)  # fmt: skip
    data = torch.randn(8, 16, device=device)
    middle = model[:2](data)
    return SimpleNamespace(model=model, data=data, middle=middle, loss=model[2](middle).exp().sum())


def test_graph_alive(tier: Tier, device: str) -> None:
    """A backward pass after it gives the gradients that it would have given before, and sees no change in place."""
    undisturbed, disturbed = graph(device), graph(device)
    undisturbed.loss.backward()
    tier.there_and_back(disturbed.model[0].weight, disturbed.data)
    disturbed.loss.backward()
    for one, other in zip(undisturbed.model.parameters(), disturbed.model.parameters(), strict=True):  # fmt: skip
        assert same(one.grad, other.grad)


def test_change_in_place_is_still_seen(tier: Tier, device: str) -> None:
    """Autograd's own guard against changes works as before: versions are kept."""
    one = graph(device)
    with torch.no_grad():
        one.middle.add_(1)
    tier.out()
    tier.back()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        one.loss.backward()


def test_hooks_do_not_run(tier: Tier, device: str) -> None:
    """No hook of a tensor, a module or a storage is called by it."""
    model = torch.nn.Linear(4, 4).to(device)
    calls: list[str] = []
    model.weight.register_hook(lambda _grad: calls.append("hook"))
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model.register_state_dict_pre_hook(lambda *_: calls.append("state"))
    tier.there_and_back(model.weight)
    assert calls == []


def test_empty_and_shared_zero(tier: Tier, device: str) -> None:
    """Tensors without elements, and expanded ones, are as they were."""
    empty, wide = torch.empty(0, 5, device=device), torch.ones(1, device=device).expand(1000, 1000)
    tier.there_and_back(wide)
    assert empty.shape == (0, 5)
    assert wide.sum() == 1e6


def test_again_and_again(tier: Tier, device: str) -> None:
    """Ten times, with changes in between."""
    one = torch.zeros(5000, device=device)
    for turn in range(1, 11):
        one.add_(1)
        tier.there_and_back(one)
        assert one.sum() == 5000 * turn


def test_grown_storage(tier: Tier, device: str) -> None:
    """All bytes of a storage come back, those too that no tensor looks at now."""
    one = torch.arange(1000.0, device=device)
    one.resize_(10)
    tier.there_and_back(one)
    one.resize_(1000)
    assert same(one, torch.arange(1000.0, device=device))


def test_rng_state(tier: Tier, device: str) -> None:
    """Random numbers go on where they were."""
    torch.manual_seed(1)
    state = torch.Generator(device=device).manual_seed(5)
    kept = torch.rand(4, device=device)
    torch.manual_seed(1)
    tier.there_and_back(kept)
    assert same(kept, torch.rand(4, device=device))
    assert state.initial_seed() == 5


@pytest.fixture
def no_compilers_left() -> Iterator[None]:
    """Where torch had to compile, it keeps a pool of threads for the next time."""
    yield
    compiling = sys.modules.get("torch._inductor.async_compile")
    if compiling is not None and compiling.AsyncCompile.pool.cache_info().currsize:
        compiling.AsyncCompile.pool().shutdown()
        compiling.AsyncCompile.pool.cache_clear()


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.usefixtures("no_compilers_left")
def test_compiled_model(tier: Tier, device: str, backend: str) -> None:
    """A compiled model is moved, is not compiled anew, and gives the same results and gradients."""
    if backend == "inductor" and device == "cpu" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler here")
    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 4)).to(device)  # fmt: skip
    compiled, data = torch.compile(model, backend=backend), torch.randn(8, 32, device=device)
    compiled(data).sum().backward()
    kept, gradient = compiled(data).detach().clone(), model[0].weight.grad.clone()
    torch._dynamo.utils.counters.clear()
    tier.there_and_back(model[0].weight, model[2].bias)
    model.zero_grad()
    result = compiled(data)
    result.sum().backward()
    assert same(result, kept)
    assert same(model[0].weight.grad, gradient)
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
