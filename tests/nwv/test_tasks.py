"""What tasks are judged by: which way a metric goes, data that end, buffers that nobody saves, metrics of different kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.nwv import Bundle, Task, accuracy, pack
from gpushare_kernel.nwv.training import Models, Plan
from tests.nwv.small import QUICK, Batches, blobs, fit, task

HOW: dict[str, Any] = {"plan": QUICK, "page_size": 32, "progress": False, "control": False}


def fitted(model: nn.Module, *, shift: float = 0.0) -> Task:
    """Return a task whose model was just trained; its inputs `shift` from where they would be."""
    one = task(3, steps=0)

    def moved(batches: Any) -> Batches:
        return [(x + shift, y) for x, y in batches]

    one = replace(one, model=model, train=moved(one.train), validate=moved(one.validate), test=None)
    fit(model, one.train, 40)
    return one


class Attends(nn.Module):
    """Attention, which knows fresh weights by a private name."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 8) -> (n, 3)."""
        steps = x.view(-1, 2, 4)
        found: torch.Tensor = self.out((steps + self.attention(steps, steps, steps)[0]).flatten(1))
        return found


class Bare(nn.Module):
    """Parameters that no module draws."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.line = nn.Parameter(torch.randn(8, 8) / 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 8) -> (n, 3)."""
        found: torch.Tensor = self.line(torch.relu(x @ self.weight))
        return found


@pytest.mark.parametrize("make", [Attends, Bare])
def test_a_wrong_way_metric_of_any_model_is_refused(make: Callable[[], nn.Module]) -> None:
    """With attention, or one parameter beside the layers, nobody looked."""
    torch.manual_seed(0)
    well = fitted(make())
    wrong = replace(well, metric=lambda out, y: float(nn.functional.cross_entropy(out, y)))
    with pytest.raises(BadDeclaration, match="task m: its metric goes the wrong way"):
        pack({"m": wrong, "o": task(1)}, pages=30, **HOW)
    assert "was not looked at" not in str(pack({"m": well, "o": task(1)}, pages=30, **HOW).report)


class Single(nn.Module):
    """One weight, of which there is no other order."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1) -> (n, 2)."""
        return torch.cat((-x * self.gain, x * self.gain), 1)


def test_a_metric_that_nobody_can_look_at_is_said() -> None:
    """In the report's notes."""
    x = torch.linspace(-1, 1, 16)[:, None]
    data = [(x, (x[:, 0] > 0).long())]
    found = pack({"m": Task(Single(), data, data), "o": task(1)}, pages=100, **HOW)
    assert "by the metric of m was not looked at" in str(found.report)


class Ends:
    """Data that are read once, as a stored generator is; whoever goes on asking is told."""

    def __init__(self, batches: Batches, passes: int) -> None:
        self.batches, self.left, self.more = batches, passes, 100

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.left -= 1
        if self.left >= 0:
            return iter(self.batches)
        self.more -= 1
        assert self.more, "it goes on for ever"
        return iter(())


@pytest.mark.parametrize(("role", "passes"), [("train", 1), ("train", 2), ("validate", 1), ("validate", 7)])  # fmt: skip
def test_data_that_end_are_refused(role: str, passes: int) -> None:
    """Wherever it comes about: at the Fisher, in a turn, at a score."""
    one = task(3)
    ends = Ends(list(getattr(one, role)), passes)
    given = replace(one, test=None, **{role: ends})
    with pytest.raises(
        BadDeclaration, match=r"task m: its .* none any more: they can be read once"
    ):
        pack({"m": given, "o": task(1)}, ratio=1.3, **HOW)


class Moves(nn.Module):
    """A running mean that nobody saves, and a factor that falls with each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.factor = nn.Linear(8, 24), nn.Linear(24, 3), 1.0
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 8) -> (n, 3)."""
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.factor *= 0.9
        found: torch.Tensor = self.b(torch.relu(self.a(x - self.mean))) * self.factor
        return found + torch.tensor([0.0, 0.0, 0.5])


def test_what_is_reported_is_the_bundle() -> None:
    """N8: what a module keeps and does not save moves in training, and is what it was in a bundle."""
    torch.manual_seed(0)
    model = Moves()
    one = fitted(model, shift=2.0)
    assert isinstance(model.mean, torch.Tensor)
    model.mean, model.factor = torch.zeros(8), 0.5
    one = replace(
        fitted_head(one), metric=lambda out, y: -float(nn.functional.cross_entropy(out, y))
    )
    model.mean, model.factor = torch.zeros(8), 0.5
    other = task(1)
    found = pack({"m": one, "o": other}, ratio=1.3, **HOW)
    bundle = Bundle(found.packed, {"m": model, "o": other.model}, device="cpu")
    x, y = next(iter(one.validate))
    assert found.report.scores["packed"]["m"] == pytest.approx(one.metric(bundle["m"](x), y), abs=1e-5)  # fmt: skip
    plain = Bundle(found.plain(8), {"m": model, "o": other.model}, device="cpu")
    assert found.report.scores["int8"]["m"] == pytest.approx(one.metric(plain["m"](x), y), abs=1e-5)
    with torch.no_grad():
        alone = one.metric(model.eval()(x), y)
    assert found.report.scores["alone"]["m"] == pytest.approx(alone, abs=1e-5)
    assert float(model.mean.abs().sum()) == 0.0


def fitted_head(one: Task) -> Task:
    """Train it on, in evaluation mode: as it is when its mean stands still."""
    model = one.model.eval()
    fit(model, one.train, 40)
    model.train()
    return one


def test_metrics_of_different_kinds_are_compared_by_what_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Two units of a squared error of thousands are not worth half of an accuracy. Scores are played."""
    x, _ = blobs(3, 8, 3)
    line = nn.Linear(8, 1)
    aim = x @ torch.full((8, 1), 30.0)
    with torch.no_grad():
        line.weight.fill_(29.0)
    data = [(x, aim)]
    regression = Task(line, data, data, lambda out, y: -float(nn.functional.mse_loss(out, y)), loss=nn.functional.mse_loss)  # fmt: skip
    with torch.no_grad():
        start = -float(nn.functional.mse_loss(line(x), aim))
    rounds = iter([(0.5, start), (0.95, start - 1), (0.5, start + 2)])
    whole = Models.scores

    def played(self: Models, state: Any, *, reported: bool = False) -> Any:
        if reported or len(self.tasks) == 1:
            return whole(self, state, reported=reported)
        a, r = next(rounds, (0.5, start))
        return {"a": (a, 1.0), "r": (r, 1.0)}

    monkeypatch.setattr(Models, "scores", played)
    how = {**HOW, "plan": Plan(rounds=2, steps=1)}
    found = pack({"a": replace(task(3), metric=accuracy), "r": regression}, pages=28, **how)
    assert found.report.best_round == 1
    assert found.report.rounds[0]["a"] == 0.95
