"""What is packed: a trained model, the data it learns from, and what good is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.nwv.kept import Kept, copied

Batches = Iterable[Any]
"""Anything that gives (x, y) each time it is iterated: a DataLoader, a list."""
_UNTRAINED = 3
"""Copies with fresh weights that a model is compared with."""


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return which part of (n, classes) outputs is largest at its (n,) target."""
    return float((outputs.argmax(dim=1) == targets).to(torch.float64).mean())


@dataclass(frozen=True, slots=True)
class Task:
    """A trained model and how to go on training it.

    Attributes
    ----------
    model
        A trained torch module. It is not changed.
    train, validate
        (x, y) by batch. Validation alone decides when training stops and whether `max_drop` holds.
    metric
        (all outputs, all targets) -> a number of which more is better.
    test
        Where it is given, what the report's figures are of: data that nothing was chosen by.
    loss
        (outputs, targets) -> a scalar to minimise.
    """

    model: nn.Module
    train: Batches
    validate: Batches
    metric: Callable[[torch.Tensor, torch.Tensor], float] = accuracy
    test: Batches | None = None
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = nn.functional.cross_entropy

    @property
    def reported(self) -> Batches:
        """What the report's figures are of."""
        return self.validate if self.test is None else self.test


Run = Callable[[torch.Tensor], torch.Tensor]


class Exhausted(Exception):
    """Data that gave batches once and give none any more."""

    def __init__(self, role: str) -> None:
        super().__init__(f"{role} data gave batches at first and give none any more: they can be read once only, and packing reads them many times. Give a list, or a dataset whose __iter__ begins anew.")  # fmt: skip


@contextmanager
def of_task(name: str) -> Iterator[None]:
    """Have errors of a task's own code say which task it is; their type and their frames stay.

    Raises
    ------
    BadDeclaration
        Where its data are exhausted.
    """
    try:
        yield
    except Exhausted as problem:
        msg = f"task {name}: its {problem}"
        raise BadDeclaration(msg) from None
    except Exception as problem:
        if not isinstance(problem, UserError):
            problem.add_note(
                f"gpushare: this is of task {name}: of its model, data, metric or loss."
            )
        raise


def outputs_of(run: Run, batches: Batches, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return all outputs and targets, one batch after the other, without gradients."""
    with torch.no_grad():
        pairs = [(run(x.to(device)), y.to(device)) for x, y in batches]
    if not pairs:
        role = "validation or test"
        raise Exhausted(role)
    return torch.cat([out for out, _ in pairs]), torch.cat([y for _, y in pairs])


def score(task: Task, run: Run, batches: Batches, device: torch.device) -> tuple[float, float]:
    """Return the metric and the loss."""
    outputs, targets = outputs_of(run, batches, device)
    return float(task.metric(outputs, targets)), float(task.loss(outputs.float(), targets))


def alone(task: Task, batches: Batches | None = None) -> tuple[float, float]:
    """Return metric and loss of the model as it was given, on validation data unless others are given."""
    kept = Kept(task.model)
    try:
        return score(task, evaluating(task.model), task.validate if batches is None else batches, device_of(task.model))  # fmt: skip
    finally:
        kept.put_back()


def evaluating(model: nn.Module) -> Run:
    """Return the model as a function in evaluation mode; its own mode is as it was after each call."""

    def run(x: torch.Tensor) -> torch.Tensor:
        modes = [(one, one.training) for one in model.modules()]
        model.eval()
        try:
            found: torch.Tensor = model(x)
        finally:
            for one, training in modes:
                one.training = training
        return found

    return run


def device_of(model: nn.Module) -> torch.device:
    """Return where its weights are."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0)).device


def check_loaders(name: str, task: Task) -> None:
    """Refuse what gives no batches, can be read only once, or gives something else than (x, y).

    Raises
    ------
    BadDeclaration
        Naming the task and the loader.
    """
    for role in ("train", "validate", "test"):
        batches = getattr(task, role)
        if batches is None and role == "test":
            continue
        if not isinstance(batches, Iterable):
            msg = f"task {name}: {role} must give (x, y) by batch, and {type(batches).__name__} cannot be iterated. Give a DataLoader or a list."
            raise BadDeclaration(msg)
        if isinstance(batches, Iterator):
            msg = f"task {name}: {role} can be read once only ({type(batches).__name__}), and training reads it many times. Give a DataLoader or a list."
            raise BadDeclaration(msg)
        with of_task(name):
            first = next(iter(batches), None)
        if first is None:
            msg = f"task {name}: {role} is empty. Give a loader with at least one batch of (x, y)."
            raise BadDeclaration(msg)
        if not (isinstance(first, Sequence) and len(first) == 2 and all(isinstance(one, torch.Tensor) for one in first)):  # noqa: PLR2004  # fmt: skip
            msg = f"task {name}: {role} must give (x, y), two tensors, and gives {_form(first)}."
            raise BadDeclaration(msg)
        rows = [len(one) if one.ndim else 0 for one in first]
        if not rows[0] or rows[0] != rows[1]:
            msg = f"task {name}: {role} must give as many rows of x as of y, at least one, and its first batch has {rows[0]} and {rows[1]}. Look at its loader: batches of no rows have no loss."
            raise BadDeclaration(msg)


def _form(thing: Any) -> str:
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"a {type(thing).__name__}"


def check_metric(name: str, task: Task, found: tuple[float, float]) -> tuple[float, float] | None:
    """Refuse a metric that is no number, or that a fresh copy of the model is as good at; return a fresh copy's metric and loss.

    None where that says nothing: no weight could be drawn anew, or its metric is no number.

    Parameters
    ----------
    found
        Metric and loss of the trained model on validation data.

    Raises
    ------
    BadDeclaration
        Saying which of the two it looks like: a metric that falls while the model improves, or a model that is not trained.
    """
    trained, loss = found
    if trained != trained or loss != loss:  # noqa: PLR0124  NaN
        msg = f"task {name}: its metric is {trained:g} and its loss {loss:g} on validation data. Look at its outputs, then give numbers."
        raise BadDeclaration(msg)
    fresh = [alone(Task(one, (), task.validate, task.metric, loss=task.loss)) for one in _fresh(task.model)]  # fmt: skip
    if not fresh:
        return None
    usual, usual_loss = (sorted(values)[len(values) // 2] for values in zip(*fresh, strict=True))
    if trained > usual:
        return usual, usual_loss
    if usual != usual:  # noqa: PLR0124  NaN
        return None
    if loss < usual_loss and trained < usual:
        msg = f"task {name}: its metric goes the wrong way: {trained:.3g} trained, {usual:.3g} with fresh weights, while its loss fell from {usual_loss:.3g} to {loss:.3g}. More must be better: give metric=lambda outputs, targets: -loss(outputs, targets), or an accuracy."
    else:
        msg = f"task {name}: its model is no better than one with fresh weights: metric {trained:.3g} and {usual:.3g}. Train it first, or give the metric that it was trained for (more is better)."
    raise BadDeclaration(msg)


def _fresh(model: nn.Module) -> list[nn.Module]:
    """Return copies with fresh weights; none where no weight can be drawn anew. Leaves random numbers as they were."""
    copies = []
    tensors = chain(model.parameters(), model.buffers())
    gpus = sorted({one.device.index for one in tensors if one.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        for seed in range(_UNTRAINED):
            _seed(seed, gpus)
            one = copied(model)
            for part in one.modules():
                _draw(part)
            if all(torch.equal(a, b) for a, b in zip(one.parameters(), model.parameters(), strict=True)):  # fmt: skip
                return []
            copies.append(one)
    return copies


def _draw(part: nn.Module) -> None:
    """Draw a module's own weights anew, as it does that itself; those that it leaves as they are, in another order."""
    own = [(one, one.detach().clone()) for one in part.parameters(recurse=False)]
    reset = getattr(part, "reset_parameters", None) or (own and getattr(part, "_reset_parameters", None))  # fmt: skip
    if callable(reset):
        reset()
    for one, before in own:
        if torch.equal(one, before):
            order = torch.randperm(before.numel()).to(before.device)
            with torch.no_grad():
                one.copy_(before.reshape(-1)[order].view(before.shape))


def _seed(seed: int, gpus: Iterable[int]) -> None:
    """Seed the CPU's random numbers and these GPUs': `torch.manual_seed` would seed every GPU's."""
    torch.default_generator.manual_seed(seed)
    for gpu in gpus:
        with torch.cuda.device(gpu):
            torch.cuda.manual_seed(seed)


def tasks_of(given: Mapping[str, Task | nn.Module]) -> dict[str, Task]:
    """Return the tasks that can be trained; empty where any is a bare module: then nobody is."""
    tasks = {name: one for name, one in given.items() if isinstance(one, Task)}
    return tasks if len(tasks) == len(given) else {}


def apart(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Return tasks with copies of their models: a forward may keep results, and the user's modules stay as they are."""
    found = {}
    for name, one in tasks.items():
        with of_task(name):
            found[name] = replace(one, model=copied(one.model))
    return found
