"""pack() from end to end: N5 and N7 to N12."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.nwv import (
    DropTooLarge,
    PackingStopped,
    Result,
    Task,
    checkpoint,
    pack,
    training,
    work,
)
from gpushare_kernel.nwv.fisher import fisher
from gpushare_kernel.nwv.task import _fresh, alone, score
from gpushare_kernel.nwv.training import Plan
from tests.nwv.small import QUICK, mlp, task, three, unpack

HOW: dict[str, Any] = {"plan": QUICK, "page_size": 32, "progress": False}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    """Three trained tasks; nobody changes them."""
    return three()


@pytest.fixture(scope="module")
def before(tasks: dict[str, Task]) -> dict[str, dict[str, torch.Tensor]]:
    """Their weights, before anything is packed."""
    return {name: copy.deepcopy(one.model.state_dict()) for name, one in tasks.items()}


@pytest.fixture(scope="module")
def packed(
    tasks: dict[str, Task], before: object, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """A bundle of them."""
    return pack(tasks, ratio=2.0, folder=tmp_path_factory.mktemp("packing"), **HOW)


def loaded(result: Result, name: str, like: nn.Module) -> nn.Module:
    """Return a copy of a module with the bundle's weights."""
    model = copy.deepcopy(like)
    model.load_state_dict(unpack(result.packed, name))
    return model.eval()


def test_the_bundle_is_as_good_as_its_report_says(tasks: dict[str, Task], packed: Result) -> None:
    """N8: what is measured is what is stored: unpacked into ordinary modules it scores the same."""
    for name, one in tasks.items():
        model = loaded(packed, name, one.model)
        assert score(one, model, one.reported, torch.device("cpu"))[0] == packed.report.scores["packed"][name]  # fmt: skip


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_bundles_too(tasks: dict[str, Task], bits: int) -> None:
    """N8 with codes; and it is smaller by all bytes."""
    result = pack(tasks, ratio=5.0, bits=bits, control=False, **HOW)
    assert result.report.ratio >= 5.0
    for name, one in tasks.items():
        model = loaded(result, name, one.model)
        assert score(one, model, one.reported, torch.device("cpu"))[0] == result.report.scores["packed"][name]  # fmt: skip


def test_models_learn_what_merging_lost(packed: Result) -> None:
    """Training brings back most of it."""
    scores = packed.report.scores
    assert sum(scores["packed"].values()) > sum(scores["random"].values()) + 0.5
    assert sum(scores["packed"].values()) > sum(scores["alone"].values()) - 0.3


def test_modules_that_were_given_are_not_changed(tasks: dict[str, Task], before: dict[str, dict[str, torch.Tensor]], packed: Result) -> None:  # fmt: skip
    """N7: neither their weights nor their mode."""
    for name, one in tasks.items():
        assert one.model.training
        for key, tensor in one.model.state_dict().items():
            assert torch.equal(tensor, before[name][key]), (name, key)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_users_random_numbers_stay(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Fresh weights are the same each time; for them no random numbers of the user's change, and no GPU is seeded that the model is not on."""
    model = nn.Linear(3, 2, device=device)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    states = [torch.get_rng_state, *([torch.cuda.get_rng_state] if device == "cuda" else [])]
    before = [state() for state in states]
    first, second = ([one.weight for one in _fresh(model)] for _ in range(2))
    assert all(map(torch.equal, (state() for state in states), before))
    assert seeded == []
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1])


def test_every_byte_is_in_the_ratio(tasks: dict[str, Task], packed: Result) -> None:
    """N5: at least what was asked for, by all bytes; pages alone are more."""
    whole = sum(one.numel() * 4 for task in tasks.values() for one in task.model.state_dict().values())  # fmt: skip
    assert packed.report.ratio == whole / packed.packed.sizes().total
    assert 2.0 <= packed.report.ratio < packed.report.page_ratio
    with_scratch = packed.report.with_scratch(5_000).with_scratch(10_000)
    assert with_scratch.ratio == whole / (packed.packed.sizes().total + 10_000)
    assert (
        with_scratch.bytes["int8"] == packed.report.bytes["int8"] + 10_000
    )  # it runs from pages, too
    assert with_scratch.bytes["alone"] == whole


@pytest.mark.parametrize("budget", [{"pages": 40}, {"bytes": 6000}, {"bytes": "6KiB"}])
def test_budgets_hold(tasks: dict[str, Task], budget: dict[str, Any]) -> None:
    """N5, however it is said."""
    result = pack(tasks, **budget, control=False, **{**HOW, "plan": Plan(rounds=0)})
    if "pages" in budget:
        assert len(result.packed.pages) == 40
    else:
        assert 5000 < result.packed.sizes().total <= 6144


def test_the_report_has_every_way_and_can_be_looked_at(packed: Result) -> None:
    """Text, HTML, a heat map."""
    report = packed.report
    assert list(report.scores) == ["alone", "random", "merged", "packed", "int8", "int4", "control"]
    text = str(packed)
    for said in ("alone, trained as long", "int8, not shared", "all bytes counted", "of test data"):
        assert said in text
    assert "<table" in packed._repr_html_()
    assert f"the best of 4 rounds was round {report.best_round}" in text
    assert report.plot().axes[0].get_title() == "Who shares which page"


def test_plain_quantisation_is_offered_where_it_does_as_well(packed: Result) -> None:
    """N12: said where it is so, and not where it is not."""
    report = packed.report
    same = dict.fromkeys(report.tables, 0.9)
    better = dict.fromkeys(report.tables, 0.95)
    small = {**report.bytes, "int8": report.sizes.total, "int4": report.sizes.total}
    offered = replace(report, bytes=small, scores={**report.scores, "packed": same, "int8": same})
    assert offered.simpler == 8
    assert "int8 without sharing does as well here in as little" in str(offered)
    assert "plain(8) of what gpushare.nwv.pack returns" in str(offered)
    worth = replace(report, bytes=small, scores={**report.scores, "alone": better, "packed": better, "int8": same, "int4": same})  # fmt: skip
    assert worth.simpler is None
    trained = replace(report, bytes=small, scores={**report.scores, "alone": same, "packed": better, "int8": same, "int4": same})  # fmt: skip
    assert trained.simpler == 8  # packing trains; quantisation is not to be blamed for that
    assert "as well as the models alone (0.900; 0.950 when packed is after more training)" in str(trained)  # fmt: skip
    large = {**report.bytes, "int8": 2 * report.sizes.total, "int4": 2 * report.sizes.total}
    assert replace(offered, bytes=large).simpler is None
    assert packed.plain(8).sizes().total == report.bytes["int8"]


def test_what_is_larger_is_not_called_smaller(packed: Result) -> None:
    """And where nothing was trained there is no best round of none."""
    report = packed.report
    bytes_ = {**report.bytes, "alone": report.sizes.total * 4 // 5}
    assert "1.25 times larger, all bytes counted" in str(replace(report, bytes=bytes_))
    assert "nothing was trained" in str(replace(report, rounds=()))
    assert "none of 4 rounds was better than the merge" in str(replace(report, best_round=0))


def test_bare_modules_are_merged_and_that_is_said(tasks: dict[str, Task]) -> None:
    """Nothing is trained, nothing is claimed; and nothing is promised."""
    models = {"a": tasks["a"].model, "b": tasks["b"]}
    result = pack(models, ratio=1.5, page_size=32)
    assert not result.report.scores
    assert "Merged without training" in str(result)
    with pytest.raises(
        BadDeclaration, match=r"max_drop=0.1 cannot be checked: a came without data"
    ):
        pack(models, ratio=1.5, max_drop=0.1)


def _rows(batches: Any) -> Iterator[Any]:
    yield from batches


GOOD = task(7)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "a budget is one of ratio=, pages= and bytes=, and none is given"),
        ({"ratio": 2, "pages": 3}, "and ratio and pages is given"),
        ({"ratio": -1}, "ratio is how many times smaller .* 1 or more, and -1 is not"),
        ({"bytes": "two"}, "is not a size"),
        ({"ratio": 2, "bits": 3}, "bits must be 8 or 4, and 3 is not"),
        ({"ratio": 2, "page_size": 7}, "page_size must be an even number of weights, and 7"),
        ({"ratio": 2, "own": 2}, "from 0 up to 1, and 2 is not"),
        ({"pages": 3}, "3 pages pays for 3 pages of 32 weights, and model a alone needs"),
        ({"ratio": 50}, "none twice. Give at most ratio="),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be_are_refused(tasks: dict[str, Task], given: dict[str, Any], said: str) -> None:  # fmt: skip
    """With what was seen, and what would do."""
    with pytest.raises(UserError, match=said):
        pack(tasks, **{"page_size": 32, **given})


def test_the_ratio_that_a_refusal_advises_is_possible(tasks: dict[str, Task]) -> None:
    """Both of them: with these pages, and with fewer bits."""
    with pytest.raises(BadDeclaration) as refused:
        pack(tasks, ratio=50, page_size=32)
    words = str(refused.value)
    most = float(words.split("at most ratio=")[1].split(" ", maxsplit=1)[0])
    fewer = float(words.split("bits=8 with up to ratio=")[1].split(",", maxsplit=1)[0])
    how = {**HOW, "plan": Plan(rounds=0), "control": False}
    assert pack(tasks, ratio=most, **how).report.ratio >= most
    assert pack(tasks, ratio=fewer, bits=8, **how).report.ratio >= fewer
    assert fewer > 2 * most


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": []}, "task t: train is empty"),
        ({"validate": []}, "task t: validate is empty"),
        ({"train": 3}, "int cannot be iterated"),
        ({"train": _rows(GOOD.train)}, "can be read once only .generator."),
        ({"validate": [(torch.zeros(2),)]}, "two tensors, and gives a tuple of 1"),
        ({"model": "net"}, "must be a Task or a torch module, and is a str"),
        ({"metric": lambda out, y: float(nn.functional.cross_entropy(out, y))}, "its metric goes the wrong way"),
        ({"metric": lambda out, y: float("nan")}, "its metric is nan"),
        ({"model": mlp(8, 24, 24, 3, seed=5)}, "no better than one with fresh weights"),
    ],
)  # fmt: skip
def test_tasks_that_make_no_sense_are_refused(change: dict[str, Any], said: str) -> None:
    """Before anything is computed that takes long, naming the task."""
    with pytest.raises(BadDeclaration, match=said) as refused:
        pack({"t": replace(GOOD, **change), "u": task(1)}, ratio=1.5, **HOW)
    assert str(refused.value).endswith((".", ")"))


def test_the_wrong_way_is_told_in_full() -> None:
    """The rule, the values, and what to write."""
    wrong = replace(GOOD, metric=lambda out, y: float(nn.functional.cross_entropy(out, y)))
    with pytest.raises(BadDeclaration, match=r"More must be better: give metric=lambda"):
        pack({"t": wrong, "u": task(1)}, ratio=1.5, **HOW)


def test_max_drop_names_a_ratio_that_holds(tasks: dict[str, Task]) -> None:
    """N10: tried, with the bundle that was refused in the error."""
    how = {**HOW, "plan": Plan(rounds=1, steps=1), "control": False}
    with pytest.raises(DropTooLarge, match="was tried and holds") as refused:
        pack(tasks, ratio=2.1, max_drop=0.3, **how)
    found = refused.value
    assert max(found.report.drops.values()) > 0.3
    assert found.holds is not None
    assert max(pack(tasks, ratio=found.holds, max_drop=0.3, **how).report.drops.values()) <= 0.3
    assert found.result is not None
    assert found.result.report.holds(0.3)
    assert found.result.packed.sizes().total == found.result.report.sizes.total


def test_no_control_is_trained_for_a_bundle_that_is_refused(tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """It would take as long again; and what is tried instead is said in the bar."""
    titles: list[str] = []
    whole = work.Call.shown

    def noted(self: work.Call, rounds: Any, done: int, title: str) -> Any:
        titles.append(title)
        return whole(self, rounds, done, title)

    monkeypatch.setattr(work.Call, "shown", noted)
    with pytest.raises(DropTooLarge):
        pack(tasks, ratio=2.1, max_drop=0.3, **{**HOW, "plan": Plan(rounds=1, steps=1)})
    assert titles[0] == "packing"
    assert all(", trying ratio 1." in one for one in titles[1:])
    assert len(titles) > 1


def test_a_drop_that_nothing_holds_says_what_was_tried(tasks: dict[str, Task]) -> None:
    """Not a guess."""
    with pytest.raises(DropTooLarge, match="None of these held either: 1") as refused:
        pack(
            tasks, ratio=1.5, max_drop=-1, control=False, **{**HOW, "plan": Plan(rounds=1, steps=1)}
        )
    assert refused.value.holds is None


class Killed(BaseException):
    """As a kill would: no handler of ours sees it."""


def _killed(*_: object) -> str:
    raise Killed


@pytest.mark.parametrize("problem", [Killed(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")])  # fmt: skip
def test_nothing_is_lost(tasks: dict[str, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:  # fmt: skip
    """N9: killed, or out of memory, in the third round: the same call goes on from the second."""
    whole, turns = training.Joint._round, []

    def breaks(self: training.Joint, state: training.State, number: int) -> str:
        turns.append(number)
        if number == 2 and turns.count(2) == 1:
            raise problem
        return whole(self, state, number)

    monkeypatch.setattr(training.Joint, "_round", breaks)
    how = {**HOW, "control": False, "folder": tmp_path / "kept"}
    with pytest.raises((Killed, PackingStopped)) as stopped:
        pack(tasks, ratio=2.0, **how)
    if isinstance(stopped.value, PackingStopped):
        assert stopped.value.folder == tmp_path / "kept"
        assert "make the same call again" in str(stopped.value)
    found = pack(tasks, ratio=2.0, **how)
    assert turns == [0, 1, 2, 2, 3]
    assert len(found.report.rounds) == 4
    with pytest.raises(BadDeclaration, match="has another packing"):
        pack(tasks, ratio=1.8, **how)


def test_what_is_resumed_is_what_was_kept(tasks: dict[str, Task], tmp_path: Path) -> None:
    """N9: state for state."""
    first = pack(tasks, ratio=2.0, folder=tmp_path, control=False, **HOW)
    again = pack(tasks, ratio=2.0, folder=tmp_path, control=False, **HOW)  # nothing is left to do
    assert torch.equal(first.packed.pages, again.packed.pages)
    assert again.report.scores == first.report.scores


@pytest.mark.parametrize("change", ["metric", "validate"])
def test_another_metric_or_other_data_do_not_mix_with_what_was_kept(tasks: dict[str, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:  # fmt: skip
    """N9: another metric is another packing; what is best is judged by the data that are given now."""
    plan = Plan(rounds=2, steps=5)
    how: dict[str, Any] = {"ratio": 2.0, "folder": tmp_path, "control": False, **HOW, "plan": plan}
    pack(tasks, **how)
    if change == "metric":
        other = replace(tasks["a"], metric=lambda out, y: 10 + float((out.argmax(dim=1) == y).float().mean()))  # fmt: skip
        with pytest.raises(BadDeclaration, match="another metric or loss"):
            pack({**tasks, "a": other}, **how)
        return
    seen: list[training.Progress] = []
    whole = training.Joint.rounds

    def noted(self: training.Joint, progress: training.Progress) -> Iterator[training.Progress]:
        seen.append(progress)
        assert progress.best_score == training._rank(self.models.scores(progress.best), self.spans)
        yield from whole(self, progress)

    monkeypatch.setattr(training.Joint, "rounds", noted)
    pack({name: replace(one, validate=one.train) for name, one in tasks.items()}, **how)
    assert len(seen) == 1
    assert seen[0].round == 2


def test_the_cache_has_a_bound(tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """Packings that were killed and never went on: the last eight stay, and what may be under way."""
    base = checkpoint.default_folder("x").parent
    for n in range(12):
        (base / f"old{n:02}").mkdir(parents=True)
        os.utime(base / f"old{n:02}", (1000 + n, 1000 + n))
    monkeypatch.setattr(training.Joint, "_round", _killed)
    with pytest.raises(Killed):
        pack(tasks, ratio=2.0, control=False, **HOW)
    assert sorted(one.name for one in base.iterdir()) == [f"old{n:02}" for n in range(5, 12)]
    for n in range(12):
        (base / f"new{n:02}").mkdir()
    checkpoint.tidy(base / "mine")
    assert len(list(base.glob("new*"))) == 12
    assert not list(base.glob("old*"))


def test_our_own_folder_goes_when_it_is_done(tasks: dict[str, Task]) -> None:
    """Nothing of a packing stays in the cache."""
    pack(tasks, ratio=2.0, control=False, **{**HOW, "plan": Plan(rounds=1, steps=1)})
    kept = checkpoint.default_folder("x").parent
    assert not list(kept.glob("*"))


def test_a_batch_of_no_rows_is_passed_over(tasks: dict[str, Task]) -> None:
    """A filtered last one has no loss, and stops nothing."""
    one = tasks["a"]
    x, y = one.train[0]
    empty = replace(one, train=[*one.train, (x[:0], y[:0])], validate=[*one.validate, (x[:0], y[:0])])  # fmt: skip
    result = pack({**tasks, "a": empty}, ratio=2.0, control=False, **HOW)
    assert len(result.report.rounds) == 4
    assert "no numbers" not in str(result)


def test_numbers_that_are_none_stop_it_with_the_last_good_pages(tasks: dict[str, Task]) -> None:
    """N11: the loss of one is NaN from its 25th call on."""
    calls = []

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(out.requires_grad)
        found = nn.functional.cross_entropy(out, y)
        return found * float("nan") if sum(calls) > 25 else found

    result = pack({**tasks, "a": replace(tasks["a"], loss=loss)}, ratio=2.0, control=False, **{**HOW, "plan": replace(QUICK, rounds=6)})  # fmt: skip
    assert "model a: loss or pages were no numbers in round" in str(result)
    assert bool(torch.isfinite(result.packed.pages).all())
    assert 1 <= len(result.report.rounds) < 6


def test_only_validation_decides(tasks: dict[str, Task]) -> None:
    """N8: another test set changes no page."""
    how = {**HOW, "control": False, "seed": 3}
    torch.manual_seed(0)
    one = pack(tasks, ratio=2.0, **how)
    other = {name: replace(task, test=task.train) for name, task in tasks.items()}
    torch.manual_seed(0)
    assert torch.equal(one.packed.pages, pack(other, ratio=2.0, **how).packed.pages)


def test_buffers_are_private_and_learn(tasks: dict[str, Task]) -> None:
    """Running means of batch norm are its model's own, and follow what is trained."""
    x, y = next(iter(tasks["a"].train))
    model = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    before = copy.deepcopy(model.state_dict())
    one = replace(tasks["a"], model=model)
    result = pack({"n": one, "b": tasks["b"]}, ratio=1.3, control=False, **HOW)
    assert result.packed.private["n"]["1.running_mean"].dtype == torch.float32
    assert int(result.packed.private["n"]["1.num_batches_tracked"]) > int(
        before["1.num_batches_tracked"]
    )
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_fisher_is_the_loop_over_examples() -> None:
    """Batched or one by one, true labels: the root of the mean square gradient, over its mean, with a floor."""
    one = task(3)
    found = fisher(one)
    total = {key: torch.zeros_like(tensor) for key, tensor in one.model.named_parameters()}
    for x, y in one.train:
        for n in range(len(x)):
            one.model.zero_grad()
            one.loss(one.model(x[n : n + 1]), y[n : n + 1]).backward()
            for key, tensor in one.model.named_parameters():
                total[key] += tensor.grad**2
    roots = torch.cat([tensor.sqrt().reshape(-1) for tensor in total.values()])
    floored = (roots / roots.mean()).clamp(min=0.1)
    vector = torch.cat([found[key].reshape(-1) for key in total])
    assert torch.allclose(vector, floored / floored.mean(), rtol=1e-3, atol=1e-6)


class Branching(nn.Module):
    """Looks at its values: vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.line(x if float(x.sum().item()) > 0 else -x)
        return found


def test_fisher_of_what_cannot_be_batched_is_a_loop() -> None:
    """It has an answer all the same; predicted labels too."""
    model = Branching()
    one = replace(task(3), model=model)
    for labels in ("true", "predicted"):
        found = fisher(one, labels)  # type: ignore[arg-type]
        assert found.keys() == dict(model.named_parameters()).keys()
        mean = sum(float(tensor.sum()) for tensor in found.values()) / 27
        assert mean == pytest.approx(1.0, rel=1e-4)


def test_alone_is_the_module_as_it_was_given() -> None:
    """Its mode too: evaluation for the score, as it was afterwards."""
    one = task(4)
    one.model[0].eval()
    modes = [part.training for part in one.model.modules()]
    assert alone(one)[0] > 0.7
    assert [part.training for part in one.model.modules()] == modes
