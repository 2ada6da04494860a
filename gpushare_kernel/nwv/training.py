"""Joint optimisation: models take turns at the pages, many short turns each (the paper's Eq. 5).

In its turn a model minimises its own loss and, for each of its pages, the mean over the other occupants of F_o (v - v_o)^2, with v_o as
that occupant left it. One long turn each forgets the others (62 points where it was measured); rounds are what matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from gpushare_kernel.core.errors import BadDeclaration
from gpushare_kernel.nwv.kept import Kept, copied
from gpushare_kernel.nwv.packed import Member
from gpushare_kernel.nwv.pages import Weights, weights_from
from gpushare_kernel.nwv.quantised import stored
from gpushare_kernel.nwv.task import Exhausted, Task, device_of, of_task, score

_SETTLED = 0.1
"""What is left of the learning rate in the last round: models agree in small steps."""


Spans = Mapping[str, tuple[float, float]]
"""By task, how much better its model is than a fresh one: in metric and in loss. What metrics of different kinds are compared by."""
_WHOLE = {"rounds": 0, "steps": 1, "patience": 1}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how fast, and when it is enough.

    Attributes
    ----------
    rounds, steps
        Rounds of turns, and steps of a turn.
    kappa
        What others' pages count for beside the own loss. Fishers have mean 1, and the mean is taken over a model's weights.
    lr
        Adam's, in units of weights; it falls to a tenth by the last round.
    clip
        The largest norm of a gradient, of pages and of private parameters.
    patience
        Rounds without a better validation after which there are no more.
    """

    rounds: int = 15
    steps: int = 30
    kappa: float = 10.0
    lr: float = 1e-3
    clip: float = 5.0
    patience: int = 8

    def __post_init__(self) -> None:
        for one in fields(self):
            given: object = getattr(self, one.name)
            whole, least = one.name in _WHOLE, _WHOLE.get(one.name, 0)
            well = isinstance(given, int if whole else int | float) and least <= given < math.inf
            if not well or (one.name in {"lr", "clip"} and given == 0):
                rule = f"a whole number of {least} or more" if whole else "a number of 0 or more" if one.name == "kappa" else "a number over 0"  # fmt: skip
                msg = f"a plan's {one.name} is {rule}, and {given!r} is not. Leave it out for {one.default}."
                raise BadDeclaration(msg)


@dataclass(slots=True)
class State:
    """What training changes.

    Attributes
    ----------
    pages
        (N, P) float32 values.
    private
        By model what it has to itself: parameters in float32 while they are trained, and buffers.
    left
        By model (M, P): its pages as it left them after its last turn.
    """

    pages: torch.Tensor
    private: dict[str, dict[str, torch.Tensor]]
    left: dict[str, torch.Tensor]

    def copy(self) -> State:
        """Return tensors of its own."""
        return State(
            self.pages.detach().clone(),
            {name: {key: one.detach().clone() for key, one in kept.items()} for name, kept in self.private.items()},
            {name: one.clone() for name, one in self.left.items()},
        )  # fmt: skip


@dataclass(slots=True)
class Progress:
    """How far it is: rounds done, the best state by validation, and what each round scored."""

    state: State
    best: State
    best_score: tuple[float, float] = (float("-inf"), float("-inf"))
    best_round: int = 0
    round: int = 0
    scores: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""


class Models:
    """Models that run from pages: their code, tables and how pages are stored. It has no weights of its own but a copy for its code."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        cuts: Mapping[str, Weights],
        tables: Mapping[str, torch.Tensor],
        bits: int,
        dtype: torch.dtype,
    ) -> None:
        self.tasks, self.cuts, self.bits, self.dtype = tasks, cuts, bits, dtype
        self.tables = {name: one.to(device_of(tasks[name].model)) for name, one in tables.items()}
        self.code = {name: copied(task.model) for name, task in tasks.items()}
        self._kept = {name: Kept(one) for name, one in self.code.items()}

    def member(self, name: str) -> Member:
        """Return how a model's vector is laid out."""
        return self.cuts[name].member

    def run(self, name: str, pages: torch.Tensor, private: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:  # fmt: skip
        """Return a model's outputs from its pages, as they will be stored. Differentiable in pages and private parameters."""
        values = stored(pages[self.tables[name]], self.bits, self.dtype)
        return self.run_values(name, values, private, x)

    def run_values(self, name: str, values: torch.Tensor, private: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:  # fmt: skip
        """Return a model's outputs from (M, P) values."""
        types = {key: one.dtype for key, one in self.cuts[name].private.items()}
        # A buffer of its own type goes in as it is, for the module may change it in place (batch norm).
        kept = {key: one.to(types[key]) for key, one in private.items()}
        given = {**weights_from(self.member(name), values), **kept}
        found: torch.Tensor = functional_call(self.code[name], given, (x,))
        return found

    def scores(self, state: State, *, reported: bool = False) -> dict[str, tuple[float, float]]:
        """Return metric and loss by model, on validation data; on what is reported where that is asked for."""
        found = {}
        for name, task in self.tasks.items():
            self._kept[name].put_back()  # a bundle has what the module that it is opened with keeps
            self.code[name].eval()
            run = self._runner(name, state)
            with of_task(name):
                found[name] = score(task, run, task.reported if reported else task.validate, device_of(task.model))  # fmt: skip
        return found

    def _runner(self, name: str, state: State) -> Callable[[torch.Tensor], torch.Tensor]:
        values = stored(state.pages.detach()[self.tables[name]], self.bits, self.dtype)
        return lambda x: self.run_values(name, values, state.private[name], x)


def start(models: Models, fishers: Mapping[str, torch.Tensor], pages: int) -> State:
    """Return where training begins: each page the mean of its occupants, by what each of their weights matters."""
    device = next(iter(models.tables.values())).device
    size = next(iter(models.cuts.values())).raw.shape[1]
    total, weight = torch.zeros(2, pages, size, device=device).unbind()
    for name, table in models.tables.items():
        fisher = fishers[name].clamp(min=1e-6)
        total.index_add_(0, table, fisher * models.cuts[name].values)
        weight.index_add_(0, table, fisher)
    mean = torch.where(weight > 0, total / weight.clamp(min=1e-12), total)
    last, same = torch.zeros_like(mean), torch.ones_like(mean, dtype=torch.bool)
    for name, table in models.tables.items():
        last[table] = models.cuts[name].values
    for name, table in models.tables.items():
        same[table] &= last[table] == models.cuts[name].values
    mean = torch.where(same, last, mean)  # what all occupants agree on stays, bit by bit
    private = {
        name: {key: one.to(torch.float32) if key in cut.trained else one.clone() for key, one in cut.private.items()}
        for name, cut in models.cuts.items()
    }  # fmt: skip
    return State(mean, private, {name: cut.values for name, cut in models.cuts.items()})


class Joint:
    """Training of all models on their pages."""

    def __init__(self, models: Models, fishers: Mapping[str, torch.Tensor], plan: Plan, spans: Spans, seed: int = 0) -> None:  # fmt: skip
        self.models, self.fishers, self.plan, self.spans, self.seed = models, fishers, plan, spans, seed  # fmt: skip
        self._batches = {name: _endless(task) for name, task in models.tasks.items()}

    def rounds(self, progress: Progress) -> Iterator[Progress]:
        """Go on from `progress`, and give it after each round: what it has then can be kept.

        It ends after the plan's rounds, where validation does not get better, or where numbers stop being numbers; `stopped` says
        which. The best state by validation is in it whenever it ends.
        """
        while progress.round < self.plan.rounds and not progress.stopped:
            good = progress.state.copy()
            failed = self._round(progress.state, progress.round)
            if failed:
                progress.state = good
                progress.stopped = f"{failed} in round {progress.round + 1}: the pages before it are kept"  # fmt: skip
                yield progress
                return
            progress.round += 1
            found = self.models.scores(progress.state)
            progress.scores.append({name: metric for name, (metric, _) in found.items()})
            rank = _rank(found, self.spans)
            if rank > progress.best_score:
                progress.best, progress.best_score, progress.best_round = progress.state.copy(), rank, progress.round  # fmt: skip
            elif progress.round - progress.best_round >= self.plan.patience:
                progress.stopped = f"no better validation in {self.plan.patience} rounds"
            yield progress

    def begin(self, state: State) -> Progress:
        """Return the start: nothing trained, and the best so far."""
        found = self.models.scores(state)
        return Progress(state, state.copy(), _rank(found, self.spans))

    def go_on(self, kept: Progress) -> Progress:
        """Return what an earlier call reached; its best is scored anew, by the metric and the data that are given now."""
        kept.best_score = _rank(self.models.scores(kept.best), self.spans)
        return kept

    def _round(self, state: State, number: int) -> str:
        """Each model takes its turn, in an order of the round's own; return what went wrong, or nothing."""
        names = list(self.models.tasks)
        source = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        for place in torch.randperm(len(names), generator=source).tolist():
            with of_task(names[place]):
                well = self._turn(names[place], state, number)
            if not well:
                return f"model {names[place]}: loss or pages were no numbers"
        return ""

    def _turn(self, name: str, state: State, number: int) -> bool:
        plan, models = self.plan, self.models
        task, table, cut = models.tasks[name], models.tables[name], models.cuts[name]
        pages = nn.Parameter(state.pages)
        private = dict(state.private[name])
        trained = [nn.Parameter(private[key]) for key in cut.trained]
        private.update(zip(cut.trained, trained, strict=True))
        # A step is the same for weights of all magnitudes: values are weights over their scale.
        lr = plan.lr * (1 - (1 - _SETTLED) * number / max(1, plan.rounds - 1))
        optimiser = torch.optim.Adam([{"params": [pages], "lr": lr / cut.member.scale}, {"params": trained, "lr": lr}])  # fmt: skip
        pull = self._pull(name, state)
        models.code[name].train()
        for _ in range(plan.steps):
            x, y = next(self._batches[name])
            x, y = x.to(pages.device), y.to(pages.device)
            optimiser.zero_grad()
            loss = task.loss(models.run(name, pages, private, x).float(), y)
            if pull is not None:
                loss = loss + pull(pages[table])
            if not bool(torch.isfinite(loss)):
                return False
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_([pages], plan.clip * cut.member.scale)
            nn.utils.clip_grad_norm_(trained, plan.clip)
            optimiser.step()
        state.pages = pages.detach()
        state.private[name] = {key: one.detach() for key, one in private.items()}
        state.left[name] = state.pages[table].clone()
        return bool(torch.isfinite(state.left[name]).all())

    def _pull(self, name: str, state: State) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Return what holds a model's pages where the others left them; None where it has none with others.

        The mean of F (v - v_o)^2 over occupants is A v^2 - 2 B v + C: two matrices, however many there are.
        """
        if not self.plan.kappa or len(self.models.tables) == 1:
            return None
        table = self.models.tables[name]
        many = torch.zeros(len(state.pages), device=table.device)
        a, b, c = torch.zeros(3, *state.pages.shape, device=table.device).unbind()
        for other, theirs in self.models.tables.items():
            if other != name:
                fisher, left = self.fishers[other], state.left[other]
                many.index_add_(0, theirs, torch.ones_like(theirs, dtype=torch.float32))
                a.index_add_(0, theirs, fisher)
                b.index_add_(0, theirs, fisher * left)
                c.index_add_(0, theirs, fisher * left * left)
        weight = self.plan.kappa / (many.clamp(min=1)[table, None] * self.models.member(name).weights)  # fmt: skip
        quad, line, rest = a[table] * weight, b[table] * weight, (c[table] * weight).sum()
        return lambda values: (quad * values * values - 2 * line * values).sum() + rest


def _rank(found: Mapping[str, tuple[float, float]], spans: Spans) -> tuple[float, float]:
    """Return what states are compared by: the mean metric, then the smaller mean loss; each over its task's span."""
    count = len(found)
    each = [(metric / spans[name][0], loss / spans[name][1]) for name, (metric, loss) in found.items()]  # fmt: skip
    rank = sum(metric for metric, _ in each) / count, -sum(loss for _, loss in each) / count
    return rank if all(one == one for one in rank) else (float("-inf"), float("-inf"))  # noqa: PLR0124  NaN


def _endless(task: Task) -> Iterator[Any]:
    """Give its batches again and again; `check_loaders` saw a first one with rows."""
    while True:
        some = False
        for batch in task.train:
            if len(batch[0]):
                some = True
                yield batch
        if not some:
            role = "training"
            raise Exhausted(role)
