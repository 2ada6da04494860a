"""What each weight matters: the diagonal of the empirical Fisher information, its square root, divided by the model's own mean.

The published code weighs the square of a log-likelihood's gradient by the probability of the predicted class and does not
normalise; means differ 26 times between its nets, so some would count for nothing. Divided by the mean, a Fisher says the same of
weights and of values (which are scaled weights). Root and floor are ours: a Fisher is of small changes, and sharing makes large ones;
and what 256 examples do not need, others may (docs/packing.md has what both are worth).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from gpushare_kernel.nwv.kept import Kept
from gpushare_kernel.nwv.task import Exhausted, Task, device_of

Labels = Literal["true", "predicted"]
EXAMPLES = 256
POWER = 0.5
"""Of the mean squares: 1 would be the Fisher itself."""
FLOOR = 0.1
"""The least that a weight matters, of the mean."""
_CHUNK_BYTES = 256 * 2**20
"""What the gradients of a chunk of examples may take."""


def fisher(task: Task, labels: Labels = "true", examples: int = EXAMPLES) -> dict[str, torch.Tensor]:  # fmt: skip
    """Return, by parameter, the root mean square of the loss' gradient over training examples, at least `FLOOR` of its mean; with mean 1.

    Parameters
    ----------
    labels
        Whether the loss is of the true label, or of the class that the model predicts.
    examples
        How many are taken at most, from the first batches.
    """
    model = task.model
    parameters = {key: one.detach() for key, one in model.named_parameters()}
    buffers = {key: one.detach().clone() for key, one in model.named_buffers()}
    weights = sum(one.numel() for one in parameters.values())
    chunk = max(1, min(64, _CHUNK_BYTES // (4 * weights)))

    def loss(given: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = functional_call(model, {**given, **buffers}, (x.unsqueeze(0),))
        target = out.argmax(dim=1).detach() if labels == "predicted" else y.unsqueeze(0)
        return task.loss(out.float(), target)

    modes, kept = [(one, one.training) for one in model.modules()], Kept(model)
    model.eval()
    try:
        summed = _summed(loss, kept.put_back, parameters, _few(task, chunk, examples, device_of(model)))  # fmt: skip
    finally:
        for one, training in modes:
            one.training = training
    roots = {key: one.pow(POWER) for key, one in summed.items()}
    mean = _mean(roots)
    if not mean > 0:  # a model that is certain of everything: nothing matters more than the rest
        return even(model)
    roots = {key: (one / mean).clamp(min=FLOOR) for key, one in roots.items()}
    mean = _mean(roots)
    return {key: one / mean for key, one in roots.items()}


def _mean(by_name: dict[str, torch.Tensor]) -> float:
    """Return the mean over all weights."""
    count = sum(one.numel() for one in by_name.values())
    return sum(float(one.sum()) for one in by_name.values()) / count


def even(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a Fisher for a model of which nothing is known: all weights matter alike."""
    return {key: torch.ones_like(one, dtype=torch.float32) for key, one in model.named_parameters()}


def _few(task: Task, chunk: int, examples: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    left, role = examples, "training"
    for x, y in task.train:
        if not len(x):
            continue
        for xs, ys in zip(x[:left].split(chunk), y[:left].split(chunk), strict=True):
            yield xs.to(device), ys.to(device)
        left -= len(x)
        if left <= 0:
            return
    if left == examples:
        raise Exhausted(role)


def _summed(
    loss: Callable[..., torch.Tensor],
    put_back: Callable[[], None],
    parameters: dict[str, torch.Tensor],
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    gradient: Callable[..., dict[str, torch.Tensor]] = grad(loss)

    def apart(run: Callable[..., dict[str, torch.Tensor]], *given: Any) -> dict[str, torch.Tensor]:
        try:
            return run(*given)
        finally:
            put_back()  # what the module keeps of this call is of no use outside it

    many = vmap(gradient, in_dims=(None, 0, 0))
    total = {key: torch.zeros_like(one, dtype=torch.float32) for key, one in parameters.items()}
    batched = True
    for x, y in batches:
        if batched:
            try:
                found = apart(many, parameters, x, y)
            except RuntimeError as problem:
                if isinstance(problem, torch.OutOfMemoryError):
                    raise
                batched = False  # something in it that vmap cannot: one after the other
        if not batched:
            each = [apart(gradient, parameters, x[n], y[n]) for n in range(len(x))]
            found = {key: torch.stack([one[key] for one in each]) for key in parameters}
        for key, one in found.items():
            total[key] += one.to(torch.float32).square().sum(dim=0)
    return total
