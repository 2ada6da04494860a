"""Models become chains: nothing of their answer changes, and what cannot be taken apart is said."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn

from gpushare_kernel.realtime.chain import BadModel, chain


class Residual(nn.Module):
    """Two branches inside, one tensor before and after."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: torch.Tensor, gain: float = 2.0) -> torch.Tensor:
        """Add what went around to what came."""
        x = torch.relu(self.first(x)) * self.scale
        return x + self.second(x) * self.scale * gain


class Choosing(nn.Module):
    """Goes where the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Left or right."""
        return self.left(x) if x.sum() > 0 else self.right(x)


@pytest.fixture
def x() -> torch.Tensor:
    """An input."""
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


def test_a_nested_sequential_is_flat(x: torch.Tensor) -> None:
    """Each module a piece, named by its path; the answer is the model's."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(8, 4))))
    links = chain(model, x)
    assert [piece.name for piece in links.pieces] == ["0 Linear", "1.0 ReLU", "1.1.0 Linear"]
    assert torch.equal(links(x), model(x))


def test_a_module_that_is_there_twice_runs_twice(x: torch.Tensor) -> None:
    """`named_children` would leave the second out."""
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    links = chain(model, x)
    assert len(links) == 3
    assert torch.equal(links(x), model(x))


def test_a_sequential_that_does_more_is_not_taken_for_one(x: torch.Tensor) -> None:
    """A subclass with its own forward, and one with a hook: their answer is more than their children's."""

    class Doubling(nn.Sequential):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input) * 2

    hooked = nn.Sequential(nn.Linear(8, 8), nn.Identity())
    hooked.register_forward_hook(lambda _m, _i, out: out + 1)
    for model in (Doubling(nn.Linear(8, 8), nn.ReLU()), hooked):
        assert torch.equal(chain(model, x)(x), model(x))


def test_branches_stay_together(x: torch.Tensor) -> None:
    """Cuts are where one tensor is alive; never inside the branch, and defaults of other arguments hold."""
    model = Residual()
    links = chain(model, x)
    assert len(links) == 4
    assert links.pieces[0].name == "first"
    assert "second" in links.pieces[-1].name
    assert torch.equal(links(x), model(x))


def test_pieces_can_be_sent(x: torch.Tensor) -> None:
    """Each piece by itself, as a node gets it: also those that share a parameter."""
    model = Residual()
    value: Any = x
    for piece in chain(model, x).pieces:
        value = pickle.loads(cloudpickle.dumps(piece.call))(value)
    assert torch.equal(value, model(x))


def test_what_cannot_be_followed_is_one_piece_and_says_why(x: torch.Tensor) -> None:
    """The node behind which the trace ends is named, with its line."""
    model = Choosing()
    links = chain(model, x)
    assert len(links) == 1
    assert "behind node gt" in links.whole
    assert "x.sum() > 0" in links.whole
    assert torch.equal(links(x), model(x))


def test_asked_to_split_it_is_refused_with_the_node(x: torch.Tensor) -> None:
    """The rule, the node, what to do."""
    with pytest.raises(
        BadModel, match=r"model Choosing: it cannot be split: .*behind node gt.*Make that part"
    ):
        chain(Choosing(), x, split=True)  # fmt: skip
    with pytest.raises(BadModel, match="a plain callable cannot be split"):
        chain(abs, split=True)


def test_several_inputs_are_no_chain(x: torch.Tensor) -> None:
    """They are named."""

    class Two(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left + right

    with pytest.raises(BadModel, match=r"more than one input \(left, right\)"):
        chain(Two(), x, split=True)


def test_a_list_of_callables_is_a_chain_as_it_stands() -> None:
    """Named by what they are called."""
    links = chain([abs, lambda x: x + 1, str], name="numbers")
    assert [piece.name for piece in links.pieces] == ["abs", "layer 1", "str"]
    assert links(-3) == "4"


def test_a_model_in_training_is_refused() -> None:
    """Its answers would change from run to run."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    with pytest.raises(BadModel, match=r"Dropout 1 is in training.*Call model\.eval\(\)"):
        chain(model)
    assert len(chain(model.eval())) == 2


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ([], "at least one layer"),
        (nn.Sequential(), "at least one layer"),
        ([abs, 3], "layer 1 must be callable, and is int"),
        (3, "a model is a torch module or callables, not int"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, says: str) -> None:
    """The rule and what was seen."""
    with pytest.raises(BadModel, match=says):
        chain(model)


def test_an_output_of_several_tensors_is_made_by_the_last_piece(x: torch.Tensor) -> None:
    """A dictionary leaves the model as it is."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.body(x)
            return {"left": self.left(x), "right": self.right(x)}

    model = Pair()
    links = chain(model, x)
    assert len(links) == 2
    found, expected = links(x), model(x)
    assert all(torch.equal(found[name], expected[name]) for name in ("left", "right"))
