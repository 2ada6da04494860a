"""What a layer takes: measured in a node's process, kept, shown, and measured again where something else would come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gpushare_kernel.core.errors import Refused, UserError
from gpushare_kernel.realtime import cache, measurement, node, orders, payload
from gpushare_kernel.realtime.chain import BadModel, chain
from gpushare_kernel.realtime.measurement import measure, node_types
from gpushare_kernel.realtime.measuring import Meter
from gpushare_kernel.realtime.model import Kind, NodeType
from gpushare_kernel.realtime.payload import ShapeChanged
from gpushare_kernel.realtime.profile import LEAST, Costs, Profile
from tests.realtime.pieces import ONE, profile_of

X = np.arange(4.0)


def burn(seconds: float) -> Callable[[Any], Any]:
    """Return a layer that uses so much of a core."""

    def layer(x: Any) -> Any:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return x

    return layer


def test_layers_are_measured_where_they_run() -> None:
    """P10: each layer by itself, longest and shortest, with the forms between them; every type that is asked for."""
    layers = [burn(0.002), burn(0.008), lambda x: x.reshape(2, 2)]
    found = measure(layers, X, [ONE], name="burning", repeats=10)
    cost = found.costs["c1"]
    assert cost.repeats == 10
    assert cost.best[0] >= 0.002
    assert cost.best[1] >= 0.008
    assert cost.best[2] < 0.002
    assert all(best <= worst for best, worst in zip(cost.best, cost.worst, strict=True))
    assert all(0 < moves < 1 for moves in cost.moves)
    assert [form.shape for form in found.forms] == [(4,), (4,), (4,), (2, 2)]
    task = found.task("t", Kind.RT, [ONE], period=1, deadline=1)
    assert task.layers[1].worst[ONE] == pytest.approx(1.2 * cost.worst[1])
    assert task.layers[1].best[ONE] == cost.best[1]
    assert task.layers[2].transfer == pytest.approx(1.2 * cost.moves[2])


def test_what_was_measured_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model again starts no process; another type only is measured anew, and both are there then."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    x = torch.ones(1, 4)
    first = measure(model, x, [ONE], repeats=10)
    everywhere = node_types(measurement.host.cores(), 0)
    both = measure(model, x, everywhere, repeats=10)
    assert both.costs["c1"] == first.costs["c1"]
    assert set(both.costs) == set(map(str, everywhere))

    def refuse(*_: Any) -> Any:
        msg = "a process is started"
        raise AssertionError(msg)

    monkeypatch.setattr(node, "start", refuse)
    with torch.no_grad():
        model[0].weight.mul_(2)  # other weights of the same form cost the same
    assert measure(model, x, everywhere) == both
    for other, example in ((model, torch.ones(2, 4)), (nn.Sequential(nn.Linear(4, 5), nn.ReLU()).eval(), x)):  # fmt: skip
        with pytest.raises(AssertionError, match="a process is started"):
            measure(other, example, [ONE])
    with pytest.raises(AssertionError, match="a process is started"):
        measure(model, x, [ONE], again=True)
    with pytest.raises(
        UserError, match="measuring it on c1 would take cores from the deadlines of cam"
    ):
        measure(model, x, [ONE], again=True, beside=["cam"])  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": 3}'])
def test_a_damaged_file_is_none(content: bytes, tmp_path: Path) -> None:
    """It is measured again, and written anew."""
    place = tmp_path / "a" / "b.json"
    profile = profile_of([abs], X)
    cache.save(place, profile)
    assert cache.load(place) == profile
    place.write_bytes(content)
    assert cache.load(place) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("x")
    cache.save(tmp_path / "file" / "b.json", profile_of([abs], X))


def test_code_tells_models_apart() -> None:
    """What a callable does, and what its layers are called."""
    one, two = chain([lambda x: x + 1]), chain([lambda x: x * 1])
    assert cache.fingerprint(one) != cache.fingerprint(two)
    assert cache.fingerprint(one) == cache.fingerprint(chain([one.pieces[0].call]))


def test_where_code_was_written_does_not() -> None:
    """The same cell in another kernel, or some lines further down: a class and a function of a notebook."""
    cell = """
class Net:
    def __init__(self): self.width = {width}
    def __call__(self, x): return {answer}
def last(x): return [n for n in x]
"""

    def found(name: str, **words: Any) -> bytes:
        made: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(cell.format(**words), name, "exec"), made)
        return cache.fingerprint(chain([made["Net"](), made["last"]]))

    one = found("<cell 1>", width=3, answer="x + 1")
    assert found("\n<cell 2>", width=3, answer="x + 1") == one
    assert found("<cell 1>", width=4, answer="x + 1") != one
    assert found("<cell 1>", width=3, answer="x + 2") != one


def test_a_model_that_changes_its_form_is_refused() -> None:
    """P11: with the layer, what it must be and what it was; the process is gone."""

    class Growing:
        def __init__(self) -> None:
            self.size = 1

        def __call__(self, x: Any) -> Any:
            self.size += 1
            return np.zeros(self.size)

    with pytest.raises(
        ShapeChanged, match=r"layer 1 \(Growing\) of list must be array 2 <f8.*not array 3 <f8"
    ):
        measure([abs, Growing()], X, [ONE])  # fmt: skip


def test_a_model_that_raises_says_so() -> None:
    """In one line, without frames of ours: where it is the model's, where it is looked at, where the example is no input."""
    with pytest.raises(BadModel, match=r"model list: it fails with the example: TypeError: bad operand.*model\(example\) must run"):  # fmt: skip
        measure([lambda x: -str(x)], X, [ONE])
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with pytest.raises(BadModel, match=r"fails with the example: TypeError: linear.*must be Tensor, not Sequential"):  # fmt: skip
        measure(net, net, [ONE])
    with pytest.raises(BadModel, match=r"fails with the example: AttributeError: .* has no attribute 'sum'"):  # fmt: skip
        measure(_Branching().eval(), net, [ONE])


class _Branching(nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("types", [[ONE], [ONE, NodeType(2)]])
def test_a_deadline_that_is_hopeless_is_refused_after_the_first_runs(types: list[NodeType], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """On no type quick enough, nor where each layer has the best of them: with the numbers, and nothing is kept."""
    asked: list[str] = []

    def on(kind: NodeType, *_: Any, deadline: float | None, **__: Any) -> orders.Measured:
        asked.append(f"{kind} {deadline}")
        best = [0.02, 0.001] if kind == ONE else [0.001, 0.02]
        given_up = deadline is not None and sum(best) > deadline
        return orders.Measured(0, best, best, [0.0] * 2, [payload.form_of(X)] * 3, 50, given_up=given_up)  # fmt: skip

    monkeypatch.setattr(measurement, "_on", on)
    whole = 21 if types == [ONE] else 2
    listed = ", ".join(map(str, types))
    with pytest.raises(Refused, match=rf"took {whole} ms at least, .*\({listed}\): more than its deadline of 1 ms"):  # fmt: skip
        measure([abs, np.negative], X, types, deadline=0.001)
    assert len(asked) == len(types)
    if types != [ONE]:  # no type alone is quick enough, and both together are
        found = measure([abs, np.negative], X, types, deadline=0.01)
        assert len(found.costs) == 2
        assert asked[2:] == ["c1 0.01", "c2 0.01", "c1 None", "c2 None"]


def _takes_50_ms(x: Any) -> Any:
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
    return x


def test_a_node_gives_up_after_the_first_runs() -> None:
    """A real one: it has not run for seconds, and says how long it took."""
    with pytest.raises(Refused, match="ms at least, alone"):
        measure([_takes_50_ms], X, [ONE], deadline=0.001)


def test_it_says_what_it_does_and_for_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    """At once; and nothing where it has been measured already."""
    said: list[str] = []
    for _ in range(2):
        measure([abs, abs], X, [ONE], repeats=10, seconds=0.1, step=said.append)
    assert said == ["Measuring 2 layers of list on c1: 5 s or more, once for this machine."]
    measure([abs], X, [ONE], repeats=10, seconds=0.1)
    assert capsys.readouterr().err == "gpushare: Measuring 1 layer of list on c1: 5 s or more, once for this machine.\n"  # fmt: skip


def test_a_gpu_that_is_not_there_is_refused() -> None:
    """With how many there are."""
    with pytest.raises(UserError, match="node type c1g1 has a GPU, and torch finds 0 here"):
        measure([abs], X, [NodeType(1, 1)])


def test_types_worth_measuring() -> None:
    """Powers of two and all cores; with a GPU and without."""
    assert list(map(str, node_types(6, 0))) == ["c1", "c2", "c4", "c6"]
    assert list(map(str, node_types(2, 3))) == ["c1", "c2", "c1g1", "c2g1"]


def _profile() -> Profile:
    made = profile_of([abs, lambda x: x[:2]], X)
    return Profile(
        "net <1>",
        "a machine",
        made.layers,
        made.forms,
        {"c1": Costs([0.004, 0.01], [0.003, 0.009], [1e-5, 2e-5], 50), "c2": Costs([0.002, 0.006], [0.001, 0.005], [1e-5, 3e-5], 60)},
    )  # fmt: skip


def test_it_is_shown() -> None:
    """Text and HTML say the same; names cannot be markup."""
    text = str(_profile())
    assert text.splitlines()[:3] == [
        "Layers of net <1>",
        "layer      output       c1 max  c2 max  c1 min  c2 min  bring in",
        "0 abs      array 4 <f8       4       2       3       1     0.012",
    ]
    assert (
        "at least 50 runs; deadlines are proven with 20% more than the longest, 0.2 ms at least."
        in text
    )
    html = _profile()._repr_html_()
    assert "net &lt;1&gt;" in html
    assert "0.036" in html


def test_it_is_drawn() -> None:
    """A bar for each layer and type."""
    (axes,) = _profile().plot().axes
    assert [bar.get_height() for bar in axes.patches] == [4, 10, 2, 6]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["c1", "c2"]


def test_a_margin_is_no_less_than_a_hiccup() -> None:
    """A fifth of a short layer is less than what any machine does now and then."""
    profile = profile_of([abs], X, worst=0.01)
    assert profile.worst(0, ONE) == pytest.approx(0.012)
    short = profile_of([abs], X, worst=0.0001)
    assert short.worst(0, ONE) == pytest.approx(0.0001 + LEAST)


def test_a_run_in_which_helpers_waited_is_left_out() -> None:
    """Unless there is no other: nothing is promised by a time that nobody has seen."""
    meter = Meter(2)
    meter.note(0, 0.002, 0.0)
    meter.note(0, 0.009, 0.0, disturbed=True)
    meter.note(1, 0.007, 0.0, disturbed=True)
    assert meter.worst == [0.002, 0.007]
    assert meter.best == [0.002, 0.007]
