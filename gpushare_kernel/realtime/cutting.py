"""Cut a torch module where exactly one tensor is alive: what is before needs nothing but the input, what is after nothing but it.

Branches that run beside each other (a residual block, say) stay in one piece, so what is left is a chain. The module is
traced by `torch.fx`; what that cannot follow (control flow that depends on data) is said, with the node.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from gpushare_kernel.realtime.chain import Piece

_CONSTANT = ("get_attr",)
"""Nodes that every piece may have for itself: parameters, buffers."""


class CannotTraceError(Exception):
    """A module that torch.fx cannot follow, and where."""


class _Watching(fx.Interpreter):
    """Runs a graph and notes which nodes gave a tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.tensors: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.tensors.add(n)
        return value


def cut(model: torch.nn.Module, example: Any = None) -> tuple[Piece, ...]:
    """Return `model` as pieces.

    Raises
    ------
    CannotTraceError
        Where torch.fx cannot follow it.
    """
    traced = _traced(model)
    nodes = list(traced.graph.nodes)
    tensors = None if example is None else _tensors(traced, example)
    parts = list(_parts(nodes, tensors))
    if len(parts) <= 1:
        return (Piece(type(model).__name__, model),)
    pieces, given = [], _input(nodes)
    for part, leaves in parts:
        pieces.append(Piece(_name_of(part), _module_of(traced, given, part, leaves)))
        given = leaves
    return tuple(pieces)


class _OneInput(torch.nn.Module):
    """A model with all but its first argument left away: what has a default has it, as when a pipeline calls it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, x: Any) -> Any:
        """Call the model."""
        return self.model(x)


class _Tracer(fx.Tracer):
    """Looks into the model itself, also where it is one of torch's own modules."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name != "model" and super().is_leaf_module(m, module_qualified_name)


def _traced(model: torch.nn.Module) -> fx.GraphModule:
    _check_inputs(model)
    tracer = _Tracer()
    try:
        graph = tracer.trace(_OneInput(model))
        return fx.GraphModule(tracer.root, graph)
    except Exception as problem:
        raise CannotTraceError(_where(tracer, problem)) from problem


def _check_inputs(model: torch.nn.Module) -> None:
    found = list(inspect.signature(model.forward).parameters.values())
    needed = [
        one.name
        for one in found
        if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    if len(needed) > 1:
        msg = f"it takes more than one input ({', '.join(needed)})"
        raise CannotTraceError(msg)


def _where(tracer: fx.Tracer, problem: Exception) -> str:
    last = next(reversed(getattr(tracer, "graph", fx.Graph()).nodes), None)
    said = str(problem).strip().splitlines()
    why = said[0] if said else type(problem).__name__
    if last is None:
        return f"torch.fx cannot follow it: {why}"
    ours = (str(Path(torch.__file__).parent), __file__)
    frames = traceback.extract_tb(problem.__traceback__)
    line = next((one.line for one in reversed(frames) if not one.filename.startswith(ours)), "")
    code = f", in `{line}`" if line else ""
    return f"torch.fx cannot follow it behind node {last.name} ({last.target}{code}): {why}"


def _tensors(traced: fx.GraphModule, example: Any) -> set[fx.Node]:
    watching = _Watching(traced)
    with torch.inference_mode():
        watching.run(example)
    return watching.tensors


def _input(nodes: Sequence[fx.Node]) -> fx.Node:
    return next(node for node in nodes if node.op == "placeholder")


def _parts(
    nodes: Sequence[fx.Node], tensors: set[fx.Node] | None
) -> Iterator[tuple[list[fx.Node], fx.Node]]:
    """Give runs of nodes, each with the one value that leaves it."""
    last_use = {node: place for place, user in enumerate(nodes) for node in user.all_input_nodes}
    output = nodes[-1].args[0]
    if not isinstance(
        output, fx.Node
    ):  # a tuple or a dictionary leaves it: the last piece makes it
        output = nodes[-1]
    alive: set[fx.Node] = set()
    part: list[fx.Node] = []
    for place, node in enumerate(nodes[:-1]):
        if node.op not in _CONSTANT and node in last_use:
            alive.add(node)
        alive = {one for one in alive if last_use[one] > place}
        if node.op == "placeholder" or node.op in _CONSTANT:
            continue
        part.append(node)
        left = next(iter(alive)) if len(alive) == 1 else None
        known = tensors is None or left in tensors
        if left is not None and left is not output and known and left in part:
            yield part, left
            part = []
    if part or output is nodes[-1]:
        yield part, output


def _name_of(part: Sequence[fx.Node]) -> str:
    names = [
        str(node.target).removeprefix("model.") if node.op == "call_module" else node.name
        for node in part
    ]
    if not names:
        return "output"
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


def _module_of(
    traced: fx.GraphModule, given: fx.Node, part: Sequence[fx.Node], leaves: fx.Node
) -> fx.GraphModule:
    graph = fx.Graph()
    known = {given: graph.placeholder("x")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in known:
            known[node] = graph.node_copy(node, copied)
        return known[node]

    for node in part:
        known[node] = graph.node_copy(node, copied)
    if leaves.op == "output":
        graph.output(fx.map_arg(leaves.args[0], copied))
    else:
        graph.output(known[leaves])
    return fx.GraphModule(traced, graph)
