"""What the runs of one piece of code have shown, and what its next run is taken to need. Sizes in bytes, times in seconds.

The last `KEPT` runs are kept, not a log: people change their data, so old runs stop counting, and eight are enough for a
median and a spread.

The rule of the margin: the most that was seen x (1 + spread), where the spread is (most - least) / most of the runs without
the largest (of two runs, of both), from `LEAST` to `MOST`; after a single run, which shows no spread, `MOST`. The largest is
asked for already: were it in the spread, too, one run out of line would count twice, and have the next `KEPT` ask for nearly
twice what any of them took. The margin is never under `GRAIN`: what is measured is as coarse as that. The time is the
median: it ranks jobs, and needs no safety.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from gpushare_kernel.core.values import MiB

KEPT = 8
LEAST, MOST = 0.10, 0.25
"""Parts of what was seen; beyond `MOST` too little, which is corrected at the next boundary, costs less than what others wait for."""
GRAIN = 32 * MiB


@dataclass(frozen=True, slots=True)
class Run:
    """One run that came to its end: P and E as measured, how long it had the device, how long an iteration took (0: none seen)."""

    persistent: int
    ephemeral: int
    time: float
    iteration: float = 0.0


@dataclass(frozen=True, slots=True)
class Declared:
    """What a run declared; None for what it did not."""

    size: int | None = None
    persistent: int | None = None
    ephemeral: int | None = None
    time: float | None = None

    @property
    def nothing(self) -> bool:
        """Whether it declared no size."""
        return self.size is None and self.persistent is None and self.ephemeral is None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run was: the device's kind and name, and frameworks with their versions (`torch 2.9.0`), as far as they were loaded."""

    kind: str
    device: str
    frameworks: tuple[str, ...] = ()

    def differs(self, other: Place) -> str:
        """Return what is otherwise at `other`, as it is called there; empty where nothing known is."""
        if (self.kind, self.device) != (other.kind, other.device):
            return other.device
        here, there = _versions(self.frameworks), _versions(other.frameworks)
        named = [f"{n} {there[n]}" for n in here.keys() & there.keys() if here[n] != there[n]]
        return ", ".join(sorted(named))

    def joined(self, other: Place) -> Place:
        """Return this place with the frameworks of both; the versions of `other` count."""
        both = _versions(self.frameworks) | _versions(other.frameworks)
        return replace(self, frameworks=tuple(f"{name} {both[name]}" for name in sorted(both)))


@dataclass(frozen=True, slots=True)
class Learned:
    """How often it ran, and its last runs (the newest last; at least one)."""

    count: int
    runs: tuple[Run, ...]

    def and_then(self, run: Run) -> Self:
        """Return what is known after one more run."""
        return replace(self, count=self.count + 1, runs=(*self.runs, run)[-KEPT:])

    @property
    def last(self) -> Run:
        """The newest run."""
        return self.runs[-1]

    @property
    def persistent(self) -> int:
        """P for the next run, with the margin."""
        return with_margin([run.persistent for run in self.runs])

    @property
    def ephemeral(self) -> int:
        """E for the next run, with the margin."""
        return with_margin([run.ephemeral for run in self.runs])

    @property
    def least(self) -> tuple[int, int]:
        """P and E without a margin: less than that was not enough before."""
        return max(run.persistent for run in self.runs), max(run.ephemeral for run in self.runs)

    @property
    def time(self) -> float | None:
        """How long the next run has the device to itself; None where no run had it for any time."""
        return _median([run.time for run in self.runs if run.time > 0])

    @property
    def iteration(self) -> float | None:
        """How long an iteration takes; None where none was seen."""
        return _median([run.iteration for run in self.runs if run.iteration > 0])


def with_margin(seen: Sequence[int]) -> int:
    """Return the bytes to ask for after `seen` (not empty) were measured."""
    *usual, most = sorted(seen)
    return most + max(GRAIN, int(_spread(usual if len(usual) > 1 else seen) * most))


def _spread(seen: Sequence[int]) -> float:
    """Return by which part of the largest of `seen` they differ, within bounds; of a single one nobody knows that."""
    if len(seen) == 1:
        return MOST
    most = max(seen)
    return min(MOST, max(LEAST, (most - min(seen)) / max(1, most)))


def _median(seen: Sequence[float]) -> float | None:
    """Return the middle one (of two the larger: who is taken for shorter than it is passes others); None of none."""
    return sorted(seen)[len(seen) // 2] if seen else None


def _versions(frameworks: Sequence[str]) -> dict[str, str]:
    return {name: version for name, _, version in (one.partition(" ") for one in frameworks)}
