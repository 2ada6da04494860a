"""A model of a bundle as a CUDA graph: launched as one thing, at fixed addresses.

The scratch stays at one address, so a graph of a model holds whatever is in the scratch when it is replayed. The gather is
outside the graph (mode `switch`): it is done before a replay where another model ran meanwhile. In mode `layers` the gathers
are part of the graph.

Whoever captures by hand (mode `switch`) does the same: `bundle[name].load()`, then `torch.cuda.graph(...)` around a call, and
before each replay `load()` again, all of it in one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gpushare_kernel.core.errors import BadDeclaration, UserError
from gpushare_kernel.nwv.layers import Layered
from gpushare_kernel.nwv.results import apart
from gpushare_kernel.nwv.scratch import Runner

if TYPE_CHECKING:
    from gpushare_kernel.nwv.bundle import BundleModel

_WARM = 3
"""Runs before a capture: libraries choose what to launch, and take their workspaces."""


class Graphed:
    """Replays a model for inputs of the forms that it was made with; what it returns is the caller's own."""

    def __init__(self, model: BundleModel, example: Sequence[torch.Tensor]) -> None:
        if model.bundle.device.type != "cuda":
            msg = f"a CUDA graph needs a bundle on a GPU, and this one is on {model.bundle.device}. Call the model itself."
            raise UserError(msg)
        if not example or not all(isinstance(one, torch.Tensor) for one in example):
            msg = "a graph is made for tensors, given as an example. Write bundle[name].graphed(x)."
            raise BadDeclaration(msg)
        self._model = model
        self._given = [one.detach().to(model.bundle.device).clone() for one in example]
        self._graph = torch.cuda.CUDAGraph()
        with model.bundle.scratch.held(), torch.no_grad():
            model.bundle.check_mapped()
            self._result = self._captured()

    def __call__(self, *given: torch.Tensor) -> Any:
        """Replay it for these inputs.

        Raises
        ------
        BadDeclaration
            Where they are not of the forms of the example.
        """
        forms = [(one.shape, one.dtype) for one in self._given]
        seen = [(one.shape, one.dtype) for one in given]
        if seen != forms:
            msg = f"this graph was made for inputs {_listed(forms)}, and got {_listed(seen)}. Make another: bundle[name].graphed(x)."
            raise BadDeclaration(msg)
        runner = self._model.runner
        with self._model.bundle.scratch.held(), torch.no_grad():
            self._model.bundle.check_mapped()
            runner.ready()
            for mine, one in zip(self._given, given, strict=True):
                mine.copy_(one)
            self._graph.replay()
            if isinstance(runner, Layered):
                runner.forget()  # the replay has filled the halves, unseen
            return apart(self._result, None, called=self._model.__name__)

    def _captured(self) -> Any:
        device, runner = self._model.bundle.device, self._model.runner
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM):
                runner.ready()
                runner.forward(self._given, {})
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        if not isinstance(runner, Layered):
            return self._capture(runner)
        runner.forget()  # or a gather that warming up has done would not be in the graph
        runner.ready()
        runner.may_be_captured = True
        try:
            return self._capture(runner)
        finally:
            runner.may_be_captured = False
            runner.forget()  # nothing of the capture has run

    def _capture(self, runner: Runner) -> Any:
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return runner.forward(self._given, {})


def _listed(forms: Sequence[tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(f"{tuple(shape)} of {dtype}" for shape, dtype in forms) or "none"
