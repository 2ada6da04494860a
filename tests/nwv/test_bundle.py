"""Models of a bundle: what they compute, that they keep out of each other's way, and what they take (docs/bundles.md)."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Callable

import pytest
import torch

from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.nwv.bundle import Bundle
from gpushare_kernel.nwv.packed import BadBundle
from gpushare_kernel.nwv.shell import NotLoaded
from tests.nwv.bundles import Attends, Net, made, nets

MODES = ("switch", "layers")


@pytest.fixture
def x() -> torch.Tensor:
    """An input of nets."""
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_model_computes_what_it_would_with_weights_of_its_own(mode: str, bits: int, x: torch.Tensor) -> None:  # fmt: skip
    """B1: bit by bit, in any order, with every kind of page."""
    one = made(nets(), bits=bits)
    bundle = Bundle(one.packed, one.modules, device="cpu", mode=mode)
    for name in ("net0", "net2", "net2", "net1", "net0"):
        with torch.no_grad():
            expected = one.plain[name](x)
        assert torch.equal(bundle[name](x), expected)
        assert torch.equal(bundle[name].unpacked()(x), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normal", [True, False])
def test_weights_keep_their_type(mode: str, dtype: torch.dtype, normal: bool, x: torch.Tensor) -> None:  # fmt: skip
    """B1: half a model's precision stays half, with pages of its own type and of another."""
    mixed = {"half": Net(4, dtype=dtype).eval(), "whole": Net(6).eval()}
    for pages in (dtype, torch.float32):
        one = made(mixed, dtype=pages, bits=pages.itemsize * 8, normal=normal)
        bundle = Bundle(one.packed, one.modules, device="cpu", mode=mode)
        for name, given in (("half", x.to(dtype)), ("whole", x)):
            with torch.no_grad():
                expected = one.plain[name](given)
            assert bundle[name](given).dtype is given.dtype
            assert torch.equal(bundle[name](given), expected)


@pytest.mark.parametrize("mode", MODES)
def test_modules_that_look_into_others_work(mode: str) -> None:
    """B1: attention, a transformer's layer and an LSTM read weights that are not in the module which is called."""
    torch.manual_seed(0)
    one = made({"a": Attends().eval(), "b": Attends().eval()}, keep=())
    bundle = Bundle(one.packed, one.modules, device="cpu", mode=mode)
    given = torch.randn(4, 7, 16)
    for name in ("a", "b", "a"):
        with torch.no_grad():
            assert torch.equal(bundle[name](given), one.plain[name](given))


def test_threads_do_not_see_each_others_weights(x: torch.Tensor) -> None:
    """B2: eight threads, three models, both modes at once; each answer is its own model's."""
    one = made(nets())
    bundles = [Bundle(one.packed, one.modules, device="cpu", mode=mode) for mode in MODES]
    with torch.no_grad():
        expected = {name: model(x) for name, model in one.plain.items()}
    wrong: list[str] = []
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        start.wait()
        names = itertools.islice(itertools.cycle(sorted(expected)), seed, seed + 30)
        for turn, name in enumerate(names):
            if not torch.equal(bundles[turn % 2][name](x), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_owner_of_the_scratch_is_not_gathered_again(x: torch.Tensor) -> None:
    """B3: a switch to the model that ran last costs nothing; half of a gather is nobody's."""
    one = made(nets(2))
    bundle = Bundle(one.packed, one.modules, device="cpu")
    bundle["net0"](x)
    runner = bundle["net0"].runner
    gathered: list[str] = []
    original = {name: bundle.runners[name]._gather for name in bundle}  # type: ignore[attr-defined]
    for name in bundle:

        def noted(memory: torch.Tensor, name: str = name) -> None:
            gathered.append(name)
            original[name](memory)

        bundle[name].runner._gather = noted  # type: ignore[attr-defined]
    for name in ("net0", "net0", "net1", "net1", "net0"):
        bundle[name].load()
    assert gathered == ["net1", "net0"]
    assert bundle.scratch.owner is runner.key  # type: ignore[attr-defined]

    def broken(memory: torch.Tensor) -> None:
        memory.zero_()
        raise KeyboardInterrupt

    bundle["net1"].runner._gather = broken  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        bundle["net1"](x)
    with torch.no_grad():
        assert torch.equal(bundle["net0"](x), one.plain["net0"](x))


@pytest.mark.parametrize("mode", MODES)
def test_an_error_in_a_model_lets_the_others_go_on(mode: str, x: torch.Tensor) -> None:
    """B2: the lock is free again, and nothing is taken for loaded that is not."""
    one = made(nets(2))
    bundle = Bundle(one.packed, one.modules, device="cpu", mode=mode)
    with pytest.raises(RuntimeError):
        bundle["net0"](x[:, :, :3])
    with torch.no_grad():
        for name in ("net1", "net0"):
            assert torch.equal(bundle[name](x), one.plain[name](x))


class Nests(torch.nn.Module):
    """Calls something else in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.inner: list[Callable[[torch.Tensor], torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for call in INNER:
            x = call(x)
        answer: torch.Tensor = self.layer(x)
        return answer


INNER: list[Callable[[torch.Tensor], torch.Tensor]] = []


def test_a_model_that_calls_another_one_is_refused() -> None:
    """B2: it would go on with the other one's weights. The lock is free afterwards."""
    one = made({"outer": Nests().eval(), "inner": torch.nn.Linear(4, 4)}, page_size=4, keep=())
    bundle = Bundle(one.packed, one.modules, device="cpu")
    INNER.append(bundle["inner"])
    try:
        with pytest.raises(UserError, match="inside another one"):
            bundle["outer"](torch.ones(1, 4))
        INNER[:] = [bundle["inner"].unpacked()]
        with torch.no_grad():
            expected = one.plain["outer"](torch.ones(1, 4))
        assert torch.equal(bundle["outer"](torch.ones(1, 4)), expected)
    finally:
        INNER.clear()


class Peeks(torch.nn.Module):
    """Uses a layer's weights without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(next(self.parameters()).dtype)  # asking is allowed
        return torch.nn.functional.linear(self.one(x), self.two.weight)


def test_a_weight_used_out_of_turn_is_an_error_and_no_wrong_answer() -> None:
    """B4: layer by layer it is refused, and says what to do; switching it works."""
    one = made({"peeks": Peeks().eval()}, page_size=4, keep=())
    x = torch.ones(1, 4)
    with pytest.raises(NotLoaded, match=r"two\.weight is used outside it.*mode='switch'"):
        Bundle(one.packed, one.modules, device="cpu", mode="layers")["peeks"](x)
    with torch.no_grad():
        assert torch.equal(Bundle(one.packed, one.modules, device="cpu")["peeks"](x), one.plain["peeks"](x))  # fmt: skip


class Inside(torch.nn.Module):
    """Calls a layer that is no part of it, between its own."""

    def __init__(self, other: torch.nn.Module) -> None:
        super().__init__()
        self.scale, self.other = torch.nn.Parameter(torch.randn(4)), [other]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.scale * self.other[0](x)
        return answer


class Siblings(torch.nn.Module):
    """Two layers, one of which calls the other."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(4, 4, bias=False)
        self.inside = Inside(self.line)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.inside(x)
        return answer


def test_a_layer_that_would_overwrite_another_one_is_an_error() -> None:
    """B4: the outer one went on with the inner one's weights. Switching works; and the bundle goes on."""
    one = made({"a": Siblings().eval(), "b": torch.nn.Linear(4, 4).eval()}, page_size=4, keep=())
    x = torch.randn(2, 4)
    bundle = Bundle(one.packed, one.modules, device="cpu", mode="layers")
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises(NotLoaded, match=r"line runs inside inside\. Open .*mode='switch'"):
                bundle["a"](x)
            assert torch.equal(bundle["b"](x), one.plain["b"](x))
        assert torch.equal(Bundle(one.packed, one.modules, device="cpu")["a"](x), one.plain["a"](x))


class Position(torch.nn.Module):
    """Returns a part of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(6, 4))

    def forward(self, n: int) -> torch.Tensor:
        return self.table[:n]


class Placed(torch.nn.Module):
    """Adds positions after a layer has run."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.line = Position(), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        where = self.position(len(x))
        answer: torch.Tensor = self.line(x) + where
        return answer


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_may_return_its_weights(mode: str) -> None:
    """B1: the next layer is gathered over them."""
    one = made({"a": Placed().eval()}, page_size=4, keep=())
    x = torch.randn(3, 4)
    with torch.no_grad():
        found = Bundle(one.packed, one.modules, device="cpu", mode=mode)["a"](x)
        assert torch.equal(found, one.plain["a"](x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformers_encoder_goes_the_same_way(mode: str) -> None:
    """B1: with a mask it looks at its layers' weights, and takes another way where these are not there."""
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    one = made({"a": torch.nn.TransformerEncoder(layer, 2).eval()}, keep=())
    x, mask = torch.randn(2, 6, 32), torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 3:] = True
    with torch.no_grad():
        wanted = one.plain["a"](x, src_key_padding_mask=mask)
    found = Bundle(one.packed, one.modules, device="cpu", mode=mode)["a"](x, src_key_padding_mask=mask)  # fmt: skip
    assert torch.equal(found, wanted)


def test_results_are_the_callers_own() -> None:
    """B2: a model that returns its weights returns a copy: the scratch is the next one's."""

    class Tells(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(6, 4)

        def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
            return {"all": [self.table.weight, self.table(x)]}

    one = made({"a": Tells().eval(), "b": Tells().eval()}, page_size=4, keep=())
    bundle = Bundle(one.packed, one.modules, device="cpu")
    rows = bundle["a"](torch.tensor([1]))["all"]
    before = rows[0].clone()
    bundle["b"](torch.tensor([1]))
    assert torch.equal(rows[0], before)
    assert torch.equal(rows[0], one.plain["a"].table.weight)  # type: ignore[union-attr,arg-type]


def test_the_modules_given_stay_as_they_are_or_are_emptied(x: torch.Tensor) -> None:
    """B5: nothing of them is kept; with `take` their weights are gone, and calling them says where to."""
    one = made(nets(2))
    before = {name: module(x).detach() for name, module in one.modules.items()}
    kept = Bundle(one.packed, one.modules, device="cpu")
    for name, module in one.modules.items():
        assert torch.equal(module(x), before[name])
    bundle = Bundle(one.packed, one.modules, device="cpu", take=True)
    weight = weakref.ref(one.modules["net0"].first.weight)  # type: ignore[arg-type]
    assert weight().device.type == "meta"  # type: ignore[union-attr]
    with pytest.raises(NotLoaded, match=r"Call bundle\['net0'\] instead"):
        one.modules["net0"](x)
    assert torch.equal(bundle["net0"](x), kept["net0"](x))


def test_no_copy_of_weights_is_kept() -> None:
    """B5: when the modules go, so do their weights; what stays is what `sizes` says."""
    one = made(nets(3), page_size=20)
    weights = [weakref.ref(p) for m in one.modules.values() for n, p in m.named_parameters() if not n.startswith("norm")]  # fmt: skip
    bundle = Bundle(one.packed, one.modules, device="cpu")
    packed, seen = one.packed, bundle.sizes()
    one.modules.clear()
    gc.collect()
    assert [ref for ref in weights if ref() is not None] == []
    assert seen.pages == packed.pages.nbytes
    assert seen.tables == sum(table.nbytes for table in packed.tables.values())
    assert seen.scratch == bundle.scratch.memory.nbytes
    largest = max(member.weights for member in packed.members.values()) * 4
    assert largest <= seen.scratch <= largest + 256 * 6
    assert seen.total == seen.pages + seen.tables + seen.private + seen.scratch
    assert seen.copies == sum(sum(t.nbytes for t in [*m.parameters(), *m.buffers()]) for m in one.plain.values())  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_bundle_goes_with_its_last_name(mode: str, x: torch.Tensor) -> None:
    """B5: its memory is free at once, not when the collector comes by; a model keeps it."""
    one = made(nets(2))
    gc.disable()
    try:
        bundle = Bundle(one.packed, one.modules, device="cpu", mode=mode)
        model, scratch = bundle["net0"], weakref.ref(bundle.scratch)
        model(x)
        del bundle
        model(x)
        del model
        assert scratch() is None
    finally:
        gc.enable()


def test_layer_by_layer_takes_less_scratch() -> None:
    """B6: on a CPU for the largest unit, and what is held."""
    one = made(nets(3))
    whole = Bundle(one.packed, one.modules, device="cpu").sizes().scratch
    layers = Bundle(one.packed, one.modules, device="cpu", mode="layers").sizes().scratch
    largest = one.plain["net2"].last[1]  # type: ignore[index]
    assert layers <= largest.weight.nbytes + largest.bias.nbytes + 256 * 2  # type: ignore[union-attr,operator]
    assert layers < whole


def test_it_is_shown() -> None:
    """What it takes beside separate copies, as text and as HTML."""
    one = made(nets(2), bits=8)
    bundle = Bundle(one.packed, one.modules, device="cpu")
    text = repr(bundle)
    assert "Bundle of 2 models, mode switch" in text
    assert bundle.sizes().ratio < 1  # so few weights: the scratch is as large as what was saved
    assert f"{1 / bundle.sizes().ratio:.2f} times more" in text
    assert "net0" in bundle._repr_html_()
    assert list(bundle) == ["net0", "net1"]
    assert len(bundle) == 2
    assert "net0" in bundle
    assert "other" not in bundle
    with pytest.raises(UserError, match="no model 'other'; it has net0, net1"):
        bundle["other"]


def test_what_does_not_fit_together_is_refused() -> None:
    """B7: the rule, what was seen, and what to do."""
    one = made(nets(2))
    packed, modules = one.packed, one.modules
    with pytest.raises(BadBundle, match="there is none for net1"):
        Bundle(packed, {"net0": modules["net0"]}, device="cpu")
    with pytest.raises(BadBundle, match="modules came for other too"):
        Bundle(packed, {**modules, "other": modules["net0"]}, device="cpu")
    with pytest.raises(BadBundle, match=r"net0 was packed with parameter scale of shape \(4, 1, 1\), and this module has one of shape \(9"):  # fmt: skip
        Bundle(packed, {**modules, "net0": Net(9)}, device="cpu")
    changed = Net(4, 3)
    changed.first.stride = (2, 2)
    with pytest.raises(BadBundle, match="packed with other code than this module has"):
        Bundle(packed, {**modules, "net0": changed}, device="cpu")
    with pytest.raises(BadDeclaration, match=r"mode is switch .* or layers, not 'fast'"):
        Bundle(packed, modules, device="cpu", mode="fast")
    with pytest.raises(BadDeclaration, match="a bundle is on cpu or cuda, not meta"):
        Bundle(packed, modules, device="meta")
    del packed.private["net0"]["norm.running_mean"]  # type: ignore[attr-defined]
    with pytest.raises(BadBundle, match=r"net0: norm.running_mean of shape \(4,\) must be in the bundle"):  # fmt: skip
        Bundle(packed, modules, device="cpu")


def test_pieces_beyond_the_weights_are_refused() -> None:
    """B7: a kernel would read another model's memory."""
    one = made(nets(1))
    member = one.packed.members["net0"]
    import msgspec

    last = msgspec.structs.replace(member.pieces[-1], first=member.weights)
    one.packed.members = {"net0": msgspec.structs.replace(member, pieces=(*member.pieces[:-1], last))}  # fmt: skip
    with pytest.raises(BadBundle, match=r"last.1.bias must lie in the model's \d+ weights"):
        Bundle(one.packed, one.modules, device="cpu")
