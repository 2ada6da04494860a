"""Which variable holds which memory, what else pins it, and that looking changes nothing and runs no code of the user's."""

from __future__ import annotations

import gc
import mmap
import sys
import time
import weakref
from collections import deque
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpushare_kernel.client import reach
from gpushare_kernel.client.arrays import Arrays
from gpushare_kernel.client.holders import Found, Kind, find, roots
from tests.client.fake_cuda import torch

KIB = 1024


def look(namespace: dict[str, Any], **more: Any) -> Found:
    """Look at host memory of names alone: modules of these tests are nobody's variables."""
    error, cell = more.pop("error", None), more.pop("cell", lambda _file: "14")
    found = roots(namespace, error=error, cell=cell)
    named = [root for root in found if root.kind is not Kind.MODULE]
    return find(named, Arrays(device=False), opaque=[namespace], **more)


def sizes(found: Found) -> dict[str, int]:
    return {holder.label: holder.size for holder in found.holders}


def tensor(kib: int = 64, **more: Any) -> torch.Tensor:
    return torch.zeros(kib * 256, **more)


def also(found: Found, label: str) -> dict[str, int]:
    (holder,) = (one for one in found.holders if one.label == label)
    return dict(holder.also)


# --- What is counted -----------------------------------------------------------------------------------------


def test_a_storage_is_counted_once() -> None:
    """Views, the same tensor again, and NumPy's view of it: one piece of memory, told with one name."""
    whole = tensor()
    found = look({"whole": whole, "part": whole[:10], "again": whole, "seen": whole.numpy()})
    assert sizes(found) == {"whole": 64 * KIB}
    assert also(found, "whole") == dict.fromkeys(("part", "again", "seen"), 64 * KIB)


def test_a_part_that_alone_is_left_holds_the_whole() -> None:
    """That is what a user wonders about."""
    assert sizes(look({"part": tensor()[:1]})) == {"part": 64 * KIB}
    array = np.zeros(KIB, np.uint8)
    assert sizes(look({"row": array[::2].reshape(2, -1)[0]})) == {"row": KIB}
    strided = np.lib.stride_tricks.as_strided(array, (1000, KIB), (0, 1))
    assert sizes(look({"windows": strided})) == {"windows": KIB}


def test_a_model_its_gradients_and_its_optimizer() -> None:
    """The model is told with its parameters and gradients, the optimizer with its own state only."""
    model = torch.nn.Linear(256, 64, bias=False)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    found = look({"optimizer": optimizer, "parameters": [*model.parameters()], "model": model})
    assert sizes(found) == {"model": 128 * KIB, "optimizer": 128 * KIB + 4}
    assert found.holders[1].type == "Linear"
    assert also(found, "model") == {"optimizer": 128 * KIB, "parameters": 128 * KIB}


def test_a_loss_that_is_kept_keeps_its_graph() -> None:
    """`losses.append(loss)`: activations that backward would have freed."""
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU())
    losses = [model(torch.ones(256, 256)).sum()]
    found = look({"model": model, "losses": losses})
    assert sizes(found)["losses"] >= 2 * 256 * KIB
    assert "losses" in also(found, "model")
    losses[0].backward()
    assert sizes(look({"losses": losses[:1], "model": model}))["losses"] < KIB


def test_a_custom_function_and_saved_tensors_of_the_users_own() -> None:
    """What a Function saved and what it put on its context count; hooks on saved tensors are not called."""
    packed: list[str] = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Any) -> Any:
            ctx.save_for_backward(value)
            ctx.mine = tensor(8)
            return value.sum()

    out = Doubled.apply(tensor(16, requires_grad=True))
    assert sizes(look({"out": out}))["out"] == 24 * KIB + 4

    def unpack(_packed: Any) -> Any:
        packed.append("unpacked")
        return tensor(1)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: SimpleNamespace(kept=t), unpack):
        out = (tensor(16, requires_grad=True) ** 2).sum()
    assert sizes(look({"out": out}))["out"] == 16 * KIB + 4
    assert packed == []


def test_sparse_tensors_and_wrappers_count_by_their_parts() -> None:
    """A sparse tensor has no storage; a subclass that wraps others has none of its own."""
    sparse = torch.sparse_coo_tensor(
        torch.zeros(1, 128, dtype=torch.int64), torch.ones(128), (9,), check_invariants=True
    )
    assert sizes(look({"sparse": sparse})) == {"sparse": 128 * 12}
    assert look({"none": torch.empty(KIB, device="meta")}).holders == ()


def test_what_lies_in_containers_closures_and_objects() -> None:
    """Wherever a user may put a tensor: nothing has a name of its own there."""

    @dataclass(slots=True)
    class Slotted:
        x: Any

    class Plain:
        shared: Any = None

        def __init__(self) -> None:
            self.deep = {"a": [(Slotted(tensor(1)),)]}

        def method(self) -> None: ...

    Plain.__module__ = "__main__"
    Plain.shared = tensor(2)
    closed = tensor(4)

    def closure(default: Any = tensor(8)) -> Any:  # noqa: B008
        return closed, default

    @lru_cache
    def cached(_n: int) -> Any:
        return tensor(16)

    def generator() -> Any:
        local = tensor(32)
        yield local

    cached(1)
    running = generator()
    next(running)
    namespace = {
        "plain": Plain(),
        "method": Plain().method,
        "closure": closure,
        "cached": partial(cached),
        "running": running,
        "queue": deque([tensor(64)], maxlen=3),
        "arrays": {"only": np.zeros(KIB, np.uint8)},
        "weak": weakref.ref(closed),
    }
    assert sizes(look(namespace)) == {
        "plain": 3 * KIB,
        "method": KIB,
        "closure": 12 * KIB,
        "cached": 16 * KIB,
        "running": 32 * KIB,
        "queue": 64 * KIB,
        "arrays": KIB,
    }


def test_the_memory_of_a_file_is_not_the_process_own(tmp_path: Any) -> None:
    """`np.memmap`."""
    mapped = np.memmap(tmp_path / "file", np.uint8, "w+", shape=(mmap.PAGESIZE,))
    assert look({"mapped": mapped, "view": mapped[1:]}).holders == ()


# --- Whom it is told with ----------------------------------------------------------------------------------------


def test_results_are_told_apart_and_after_names() -> None:
    """`Out[3]` is one thing, whatever IPython calls it besides; what has a name is told with that."""
    kept, named = tensor(1), tensor(2)
    names = {"_oh": {3: kept, 4: named}, "Out": {3: kept}, "_3": kept, "_": named, "_4": named, "_i": "x", "__": tensor(4), "named": named}  # fmt: skip
    found = look(names)
    assert sizes(found) == {"named": 2 * KIB, "Out[3]": KIB, "__": 4 * KIB}
    assert also(found, "named") == {"Out[4]": 2 * KIB}


def raised(error: BaseException | None = None) -> BaseException:
    """An error whose traceback goes through a frame of `notebook` and one with a tensor in it."""

    def inside() -> None:
        too_much = tensor(32)
        raise RuntimeError(too_much.shape) from error

    shell = tensor(8)
    namespace = {"inside": inside, "__builtins__": __builtins__}
    try:
        exec(compile("def f():\n here = inside()\nf()", "cell", "exec"), namespace)
    except RuntimeError as problem:
        problem.notebook = namespace  # type: ignore[attr-defined]
        assert shell is not None
        return problem
    raise AssertionError


def test_the_last_error_keeps_its_frames() -> None:
    """Told with the cell it came from; frames before the notebook's own (IPython's, here the test's) are not in it."""
    problem = raised()
    namespace = problem.__dict__.pop("notebook")
    found = look(namespace, error=problem)
    assert sizes(found) == {"traceback of cell 14": 32 * KIB}
    assert found.holders[0].kind is Kind.ERROR
    assert sizes(look(namespace, error=problem, cell=lambda _f: None)) == {"traceback of the last error": 32 * KIB}  # fmt: skip


def test_looking_at_an_error_leaves_nothing_in_its_frames() -> None:
    """A look at `f_locals` would leave a copy of them: once cleared, the tensor is gone."""
    from gpushare_kernel.client.aftermath import clear_frames

    problem = raised()
    namespace = problem.__dict__.pop("notebook")
    before = sum(type(one) is torch.Tensor for one in gc.get_objects())
    look(namespace, error=problem)
    clear_frames(problem)
    assert look(namespace, error=problem).holders == ()
    assert sum(type(one) is torch.Tensor for one in gc.get_objects()) < before


def test_variables_of_the_users_own_modules(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in `helpers.py`; installed modules are not looked at."""
    module = ModuleType("helpers")
    module.__file__ = str(tmp_path / "helpers.py")
    module.CACHE = {"x": tensor()}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "helpers", module)
    own = [root for root in roots({}) if root.label.startswith(("helpers.", "numpy.", "torch."))]
    found = find(own, Arrays(device=False))
    assert sizes(found) == {"helpers.CACHE": 64 * KIB}
    assert {root.label.partition(".")[0] for root in own} == {"helpers"}


# --- What it must not do -----------------------------------------------------------------------------------------


class Touchy:
    """Whoever runs code of this fails the test."""

    def __init__(self) -> None:
        object.__setattr__(self, "inner", tensor(1))

    def touched(self, *_: Any) -> Any:
        pytest.fail("code of the user's ran")

    __getattr__ = __getattribute__ = __len__ = __iter__ = __eq__ = __bool__ = touched  # type: ignore[assignment]
    __hash__ = __repr__ = __reduce__ = touched  # type: ignore[assignment]
    __class__ = property(touched)  # type: ignore[assignment]
    prop = property(touched)


class Meta(type):
    def touched(cls, *_: Any) -> Any:
        pytest.fail("code of the user's ran")

    __getattribute__ = __instancecheck__ = __subclasscheck__ = touched  # type: ignore[assignment]
    __eq__ = __hash__ = touched  # type: ignore[assignment]


def test_no_code_of_the_users_runs() -> None:
    """No property, no `__getattr__`, no `__class__`, no metaclass, no tensor subclass of theirs."""
    ran: list[str] = []

    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # fmt: skip
            ran.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    class Array(np.ndarray):
        @property
        def base(self) -> Any:
            ran.append("base")
            return None

    class List(list[Any]):
        def __iter__(self) -> Any:
            ran.append("iter")
            return iter(())

    mine = tensor(2).as_subclass(Mine)
    odd = Meta("odd", (), {"__slots__": ("x",)})()
    array = np.zeros(4 * KIB, np.uint8).view(Array)
    ran.clear()
    found = look({"touchy": Touchy(), "odd": odd, "mine": mine, "array": array, "list": List([tensor(8)])})  # fmt: skip
    assert ran == []
    assert sizes(found) == {"touchy": KIB, "mine": 2 * KIB, "array": 4 * KIB, "list": 8 * KIB}


def test_nothing_is_kept_by_looking() -> None:
    """What was looked at can go when its user lets go of it."""
    one = tensor()
    gone = weakref.ref(one)
    assert look({"one": [one]}).holders
    del one
    assert gone() is None


def test_no_framework_is_imported_and_cuda_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is, no CUDA starts; where it is not, it stays so."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA was started"))
    assert find(roots({"x": tensor()}), Arrays(device=True)).size == 0
    for name in ("torch", "numpy"):
        monkeypatch.delitem(sys.modules, name)
    assert look({"x": [1]}).holders == ()
    assert "torch" not in sys.modules


# --- Bounds ------------------------------------------------------------------------------------------------------


@dataclass
class Thing:
    number: int
    more: list[int]
    next: Any = None


def test_a_hundred_thousand_objects_take_no_longer_than_half_a_second() -> None:
    """With a model beside them, which is found."""
    namespace = {"things": [Thing(n, [n]) for n in range(50_000)], "model": torch.nn.Linear(256, 64, bias=False)}  # fmt: skip
    took = []
    for _ in range(3):  # others use this machine, too
        began = time.perf_counter()
        found = look(namespace)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5
    assert sizes(found) == {"model": 64 * KIB}


def test_a_bound_that_is_reached_is_said() -> None:
    """Time, depth, and lists that are too long; what lies near a name is found all the same."""
    namespace: dict[str, Any] = {"near": tensor(1)}
    assert not look(namespace).cut
    namespace["things"] = [Thing(n, [n]) for n in range(20_000)]
    out_of_time = look(namespace, seconds=0.0)
    assert out_of_time.cut
    chain = Thing(0, [], tensor(2))
    for n in range(50):
        chain = Thing(n, [], chain)
    deep = look({"near": tensor(1), "chain": chain}, depth=40)
    assert deep.cut
    assert sizes(deep) == {"near": KIB}
    assert not look({"chain": chain}).cut


def test_long_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers: nothing to see. Of objects: so many, and it is said."""
    monkeypatch.setattr(reach, "MANY", 1000)
    assert not look({"numbers": [*range(5000)], "table": dict.fromkeys(map(str, range(5000)), 1)}).cut  # fmt: skip
    found = look({"things": [tensor(1) for _ in range(1500)]})
    assert found.cut
    assert sizes(found) == {"things": 1000 * KIB}


def test_circles_and_itself() -> None:
    """A namespace that holds itself, lists in circles."""
    namespace: dict[str, Any] = {"x": [tensor(1)]}
    namespace["me"] = namespace
    namespace["x"].append(namespace["x"])
    assert sizes(look(namespace)) == {"x": KIB}
