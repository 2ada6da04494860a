"""What happens while a pipeline opens, said at once: it may take half a minute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from math import ceil

from gpushare_kernel.client import display
from gpushare_kernel.client.display import Steps
from gpushare_kernel.realtime.model import Kind, NodeType, Task

_AROUND = 4.0
"""Seconds that starting a node and its first runs take at least."""


@contextlib.contextmanager
def shown(step: Steps | None) -> Iterator[Steps]:
    """Say steps by `step`; where none is given as a line that goes at the end."""
    if step is not None:
        yield step
        return
    line = display.steps()
    try:
        yield line
    finally:
        line("")


def measuring_text(name: str, layers: int, types: Sequence[NodeType], seconds: float) -> str:
    """Say what is measured, and for how long at least: `seconds` on each type. A large model's first runs take longer."""
    what = f"{layers} layer{'s' if layers > 1 else ''} of {name}"
    least = ceil(len(types) * (seconds + _AROUND))
    return f"Measuring {what} on {_listed(types)}: {least} s or more, once for this machine."


def proving_text(task: Task, others: int) -> str:
    """Say that it is looked whether deadlines hold, with so many other pipelines of this notebook."""
    beside = f" beside {others} other{'s' if others > 1 else ''}" if others else ""
    if task.kind is Kind.RT:
        return f"Proving the deadline of {task.name}{beside}."
    return f"Placing {task.name}{beside}."


def loading_text(task: Task, nodes: Sequence[NodeType]) -> str:
    """Say that nodes start where they must, and have the model."""
    return f"Loading {task.name} on {_listed(nodes)}: some seconds."


def _listed(types: Sequence[NodeType]) -> str:
    return ", ".join(map(str, types))
