"""Layers for tests: gates that stop a node until the test says go, and notes of what ran in which order."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from gpushare_kernel.realtime import payload
from gpushare_kernel.realtime.chain import Chain, chain
from gpushare_kernel.realtime.model import NodeType, Stage
from gpushare_kernel.realtime.nodes import REHEARSALS, Nodes
from gpushare_kernel.realtime.pipeline import Pipeline
from gpushare_kernel.realtime.profile import Costs, Profile

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node need not find the tests

ONE = NodeType(1)
X = np.arange(4.0)
LONG = 600.0


class Gate:
    """A layer that says when it is entered, and goes on when it is opened. Pipes with names: no time is waited for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.inward, self.outward = str(folder / f"{name}-in"), str(folder / f"{name}-out")
        os.mkfifo(self.inward)
        os.mkfifo(self.outward)

    def __call__(self, value: Any) -> Any:
        """In the node."""
        Path(self.inward).write_text("x")
        Path(self.outward).read_text()
        return value

    def entered(self) -> None:
        """Wait until the layer runs."""
        Path(self.inward).read_text()

    def open(self) -> None:
        """Let it go on."""
        Path(self.outward).write_text("x")

    def pass_one(self) -> None:
        """Wait until it runs, and let it go on."""
        self.entered()
        self.open()

    def pass_all(self, count: int) -> threading.Thread:
        """Let so many pass, in a thread."""
        thread = threading.Thread(
            target=lambda: [self.pass_one() for _ in range(count)], daemon=True
        )
        thread.start()
        return thread


class Note:
    """A layer that adds a line to a file: the order of the lines is the order in which layers ran."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = str(path), text

    def __call__(self, value: Any) -> Any:
        """In the node."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{self.text}\n".encode())
        os.close(fd)
        return value


def notes(path: Path) -> list[str]:
    """Return the lines."""
    return path.read_text().split() if path.exists() else []


def profile_of(
    model: Any, example: Any, forms_of: Iterable[Any] = (), *, worst: float = 60.0, types: Sequence[NodeType] = (ONE,)
) -> Profile:  # fmt: skip
    """Return a profile by hand, with all layers taking `worst`; `forms_of` are the layers' outputs where they must not run here."""
    links = chain(model, example)
    values = list(forms_of) or _run(links, example)
    forms = [payload.form_of(example), *map(payload.form_of, values)]
    costs = Costs([worst] * len(links), [0.0] * len(links), [0.0] * len(links), 1)
    names = [piece.name for piece in links.pieces]
    return Profile(links.name, "by hand", names, forms, {str(kind): costs for kind in types})


def _run(links: Chain, value: Any) -> list[Any]:
    values = []
    for piece in links.pieces:
        value = piece.call(value)
        values.append(value)
    return values


def stages(*ends: int) -> tuple[Stage, ...]:
    """Return stages on nodes 0, 1, ...: layers up to each end; -1 where a node is skipped."""
    made, first = [], 0
    for node, last in enumerate(ends):
        if last >= 0:
            made.append(Stage(node, first, last))
            first = last + 1
    return tuple(made)


Layers = list[Callable[[Any], Any]]


def opened(nodes: Nodes, name: str, layers: Layers, gates: Sequence[Gate] = (), **more: Any) -> Pipeline:  # fmt: skip
    """Open a pipeline of layers that give what they get; its gates let the rehearsal through."""
    kind = more.pop("class_", "RT")
    # Best effort is rehearsed on every node, a deadline on its own stages.
    rounds = REHEARSALS * (len(nodes.admission.nodes) if kind == "BE" else 1)  # type: ignore[attr-defined]
    threads = [gate.pass_all(rounds) for gate in gates]
    pipe = Pipeline(
        layers, X, name=name, class_=kind, period=LONG, deadline=LONG, nodes=nodes,
        profile=profile_of(layers, X, [X] * len(layers)), **more,
    )  # fmt: skip
    for thread in threads:
        thread.join()
    return pipe
