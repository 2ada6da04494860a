"""What a real-time job says of itself: the task whose deadline is to be proven, and its releases. Times in seconds."""

from __future__ import annotations

from msgspec import Struct

from gpushare_kernel.core.values import JobId
from gpushare_kernel.wire.handshake import Message


class RealtimeLayer(Struct, frozen=True, omit_defaults=True):
    """One piece of work that nothing interrupts: its costs by node type (`c2`, `c2g1`), the longest and the shortest measured."""

    worst: dict[str, float]
    best: dict[str, float] = {}
    transfer: float = 0.0
    name: str = ""


class RealtimeChain(Struct, frozen=True, omit_defaults=True):
    """A best-effort chain of the same notebook: each of its layers may hold up a deadline."""

    name: str
    layers: tuple[RealtimeLayer, ...]


class RealtimeTask(Struct, frozen=True, omit_defaults=True):
    """A chain of layers, released at most once in `period`, done `deadline` later. A larger `weight` comes first.

    `beside` is all best effort that its notebook has now.
    """

    name: str
    period: float
    deadline: float
    layers: tuple[RealtimeLayer, ...]
    weight: float = 1.0
    jitter: float = 0.0
    beside: tuple[RealtimeChain, ...] = ()


Stages = tuple[tuple[int, int, int], ...]
"""Node, first layer, and the layer after the last, of each stage in order."""


class RealtimePlacement(Struct, frozen=True, omit_defaults=True):
    """Where an admitted real-time job runs: node types in pipeline order, its stages, what was proven.

    `bound` is how long after a release it is done at the latest; `absorbs` how long others' work may take to stop with that.
    `beside` is where its notebook's best effort runs, by name; `bounds` what is proven now of all jobs of that notebook, by id.
    `spare` is by how much one of those layers may take longer than said, with every deadline kept.
    """

    configuration: tuple[str, ...]
    stages: Stages
    bound: float
    absorbs: float
    beside: dict[str, Stages] = {}
    bounds: dict[str, float] = {}
    spare: float = 0.0


# --- messages ---


class RealtimeGrid(Message, frozen=True):
    """A real-time job of mine is released at `first` (CLOCK_MONOTONIC, seconds) and every period from then on; None: nobody knows when."""

    job: JobId
    first: float | None = None


class RealtimeBeside(Message, frozen=True):
    """All best effort that my notebook has now, one more than before: may it run beside its deadlines? Answered by `RealtimePlaced`."""

    chains: tuple[RealtimeChain, ...]


class RealtimeKept(Message, frozen=True):
    """A real-time job of mine ran on while the broker was gone, as another one had promised: promise it again.

    `first` is as in `RealtimeGrid`.
    """

    job: JobId
    task: RealtimeTask
    placement: RealtimePlacement
    first: float | None = None


class RealtimeReleased(Message, frozen=True):
    """A real-time job of mine, whose releases nobody knows before, is released now."""

    job: JobId


class RealtimeDone(Message, frozen=True):
    """A real-time job of mine has done the work of a release; `left` releases are still to be done.

    A client that says nothing of that says so when none is left.
    """

    job: JobId
    left: int = 0


class RealtimePlaced(Message, frozen=True):
    """Where my real-time jobs run, and what is proven of them now."""

    placements: dict[JobId, RealtimePlacement]
