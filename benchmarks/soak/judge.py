"""What was seen, and whether it may be. Pure: times and facts come from outside."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from benchmarks.common import Figure

WITHOUT_BROKER, WITHOUT_BOTH = 1.0, 5.0
"""Seconds that anybody may stand paused after the broker's death; after the guardian's, too."""
EXPECTED = (
    r"^the ledger .* is not written",
    r"^the ledger .* cannot be used",
    r"^the broker died \d+ times",
    r"^the broker could not be started again",
    r"^a guardian cannot be started",
    r"^the broker could not start",
    r"^cannot write the log",
    r"^out of file descriptors",
)
"""What a log may say at level error while somebody breaks disks, descriptors and brokers."""


class Gone(IntEnum):
    """Who of those that can let a paused kernel go on is gone."""

    NOBODY = 0
    BROKER = 1
    BOTH = 2


class PauseWatch:
    """How long kernels stood paused after their broker's death.

    A kernel's time begins when it is seen paused without a broker, and ends only when it is seen running: a new broker
    that does not let it go on is no end. A new broker pauses nobody for 1.5 s, so a run in between is not missed.
    """

    def __init__(self) -> None:
        self._since: dict[Hashable, tuple[float, Gone]] = {}
        #: Every such pause, in seconds, by who was gone.
        self.pauses: dict[Gone, list[float]] = {Gone.BROKER: [], Gone.BOTH: []}

    @property
    def open(self) -> bool:
        """Whether somebody stands paused by a broker that is gone."""
        return bool(self._since)

    def look(self, at: float, gone: Gone, paused: Collection[Hashable]) -> None:
        """Take in who stands paused at a moment, and who is gone then."""
        for key in [key for key in self._since if key not in paused]:
            began, worst = self._since.pop(key)
            self.pauses[worst].append(at - began)
        if gone is Gone.NOBODY:
            return
        for key in paused:
            began, worst = self._since.get(key, (at, gone))
            self._since[key] = began, max(worst, gone)

    def finish(self, at: float) -> None:
        """Nobody looks any more: who still stands paused has done so until now."""
        self.look(at, Gone.NOBODY, ())

    def longest(self, gone: Gone) -> float:
        """The longest such pause, 0.0 where there was none."""
        return max(self.pauses[gone], default=0.0)


class Served:
    """Seconds for which there was a broker, as the watch sees them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked: float | None = None

    def look(self, at: float, *, here: bool) -> None:
        """There is one now, or not."""
        if here and self._looked is not None:
            self.seconds += at - self._looked
        self._looked = at if here else None

    def wait(self, seconds: float, most: float = 600.0) -> Callable[[], bool]:
        """Return what tells whether there has been one for so many seconds since; or none for nearly all of `most`, which no fault of ours lasts."""
        until, end = self.seconds + seconds, time.monotonic() + most
        return lambda: self.seconds >= until or time.monotonic() > end


@dataclass
class Tally:
    """Everything that a run counts. Persons, adversary and watch write into it, each under its own names."""

    done: Counter[str] = field(default_factory=Counter)
    #: Faults that found nobody to be done to.
    missed: Counter[str] = field(default_factory=Counter)
    cells: int = 0
    #: Cells that ended with an error, by its kind: interrupts, no broker for long.
    failed: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    invariants: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    pauses: PauseWatch = field(default_factory=PauseWatch)
    served: Served = field(default_factory=Served)
    #: The longest that a cell took, from its start to its end (seconds).
    longest_cell: float = 0.0

    def figures(self) -> Sequence[Figure]:
        """Return the figures, with what they must be."""

        def none(name: str, found: Sequence[str]) -> Figure:
            return Figure(name, "", [len(found)], at_most=0)

        return (
            none("lost_states", self.lost),
            Figure(
                "longest_pause_without_broker",
                "s",
                [self.pauses.longest(Gone.BROKER)],
                at_most=WITHOUT_BROKER,
            ),
            Figure(
                "longest_pause_without_both",
                "s",
                [self.pauses.longest(Gone.BOTH)],
                at_most=WITHOUT_BOTH,
            ),
            none("leaks", self.leaks),
            none("invariants_broken", self.invariants),
            none("unexpected_errors", self.errors),
            none("stuck_cells", self.stuck),
            Figure("faults", "", [sum(self.done.values())]),
            Figure("cells", "", [self.cells]),
            Figure("longest_cell", "s", [self.longest_cell]),
            Figure("served", "s", [self.served.seconds]),
        )

    def details(self) -> dict[str, object]:
        """Return what stands behind the figures."""
        return {
            "faults": dict(sorted(self.done.items())),
            "missed_faults": dict(sorted(self.missed.items())),
            "failed_cells": dict(self.failed.most_common()),
            "pauses_without_broker": len(self.pauses.pauses[Gone.BROKER]),
            "pauses_without_both": len(self.pauses.pauses[Gone.BOTH]),
            "lost": self.lost,
            "stuck": self.stuck,
            "invariants": self.invariants,
            "errors": self.errors,
            "leaked": self.leaks,
        }


def wrong(lines: Sequence[Mapping[str, object]]) -> tuple[list[str], list[str]]:
    """Return what a log's lines say of broken invariants, and of other errors that no fault explains."""
    broken, errors = [], []
    for line in lines:
        trace = str(line.get("traceback", ""))
        last = trace.strip().rpartition("\n")[2]
        text = f"{line.get('message')}" + (f": {last}" if last else "")
        if "InvariantBroken" in trace:
            broken.append(text)
        elif line.get("level") == "error" and not _explained(text, last):
            errors.append(text)
    return broken, errors


def _explained(text: str, last: str) -> bool:
    """Say whether a fault of ours explains an error: memory, descriptors or the disk were taken away."""
    taken = (
        "MemoryError",
        "Errno 12]",
        "Errno 23]",
        "Errno 24]",
        "Errno 28]",
        "Errno 30]",
        "new thread",
    )
    return any(re.search(one, text) for one in EXPECTED) or any(word in last for word in taken)


def left_over(names: Collection[str]) -> list[str]:
    """Return the files that a broker which was stopped may not leave in its folder."""
    may = re.compile(
        r"(broker|start)\.lock|intents|stopped|(broker\.log|audit\.jsonl)(\.\d)?|ledger\.sqlite(\.corrupt-\d+)?(-wal|-shm)?"
    )
    return sorted(name for name in names if not may.fullmatch(name))
