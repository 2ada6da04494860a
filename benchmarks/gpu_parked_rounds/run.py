"""Three notebooks on a GPU that has room for two, cells in turn. See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu import parks
from benchmarks.gpu.notebooks import SEEN, Notebook, notebooks, several
from benchmarks.gpu.row import note, row, shared_house
from gpushare_kernel.core.values import GiB, MiB

QUESTION = "3 notebooks on a GPU with room for two, cells in turn: does every cell finish, and are the data the same?"
NOTEBOOKS = 3
WISHED = 60 * GiB
"""What each holds where time and memory allow it."""
CONTEXT = 600 * MiB
"""What a notebook has on the GPU beside its tensors (520 to 680 MiB were seen)."""
RATIO, LEAST_RATIO = 1.32, 1.28
"""What the ballast aims at, of what all hold by what is free; and what it must be as measured."""
A_CELL = 4.5
"""Seconds that a cell's park and restore may take, so that ten rounds fit the row's time."""
CELL_LIMIT, LOAD_LIMIT = 60.0, 120.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of tensors of each notebook, bytes that the ballast leaves free, and what set the size."""

    size: int
    leave: int
    bound: str


def planned(free: int, host: int, seconds: float = A_CELL) -> Sizes:
    """Return the sizes by what is free on the GPU, the host's room for what is parked, and the seconds for a cell's moves."""
    limits = {
        "the row's wish": float(WISHED),
        "the GPU's memory": free * RATIO / NOTEBOOKS - CONTEXT,
        "the host's memory": host / 2 - CONTEXT,  # one is on its way in while another goes
        "the row's time": float(parks.affordable(seconds) - CONTEXT),
    }
    bound, most = parks.least_of(limits)
    size = parks.whole(most, bound, 2 * GiB)  # less, and contexts are what is moved
    return Sizes(size, int(NOTEBOOKS * (size + CONTEXT) / RATIO), bound)


@dataclass
class Seen:
    """What came of the cells."""

    finished: int = 0
    changed: int = 0
    out_of_memory: int = 0
    failed: int = 0
    waited: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)

    def failure(self, text: str) -> None:
        """A cell ended by an error."""
        self.out_of_memory += "OutOfMemory" in text
        self.failed += 1
        note(text[-800:])


def measure(options: Options) -> Sequence[Figure]:
    """Load three notebooks, then let them compute in turn; look at all of their data after each cell."""
    parks.needs_gpu(options)
    rounds = 2 if options.quick else 10
    sizes = planned(parks.free_memory(), parks.host_room())
    note(f"{sizes.size / GiB:.2f} GiB each ({sizes.bound})")
    seen = Seen()
    with shared_house(options, *parks.COLD) as stage:
        parks.check_parks(stage)
        with (
            parks.ballast(stage, sizes.leave) as (free, taken),
            notebooks(several(SEEN, NOTEBOOKS), options.device, []) as three,
        ):
            try:
                _cells(three, sizes.size, rounds, seen)
            except Empty:
                note("a cell did not end in time: the row stops here")
                parks.note_sessions(stage)
            found = parks.moves(stage)
    together = sum(parks.sizes(found).values())
    return [
        Figure("cells_finished", "", [float(seen.finished)], at_least=float(NOTEBOOKS * rounds)),
        Figure("cells_failed", "", [float(seen.failed)], at_most=0.0),
        Figure("out_of_memory", "", [float(seen.out_of_memory)], at_most=0.0),
        Figure("hashes_changed", "", [float(seen.changed)], at_most=0.0),
        Figure("held_of_free", "", [together / free], at_least=LEAST_RATIO),
        *([Figure("a_cell_waited", "s", seen.waited)] if seen.waited else []),
        *([Figure("a_round", "s", seen.rounds)] if seen.rounds else []),
        *parks.figures(found),
        parks.gib("each_holds", sizes.size),
        parks.gib("ballast", taken),
        parks.gib("free_beside_the_ballast", free),
    ]


def _cells(three: Sequence[Notebook], size: int, rounds: int, seen: Seen) -> None:
    """Load all, compute in turn, and look at every byte in the end."""
    before = [_load(notebook, size, seed) for seed, notebook in enumerate(three)]
    for number in range(rounds):
        began = time.monotonic()
        for notebook, (known, _) in zip(three, before, strict=True):
            _turn(notebook, known, seen)
        seen.rounds.append(time.monotonic() - began)
        progress(f"round {number + 1} of {rounds}: {seen.rounds[-1]:.1f} s, {seen.changed} changed")
    for notebook, (_, known) in zip(three, before, strict=True):
        cell = "at = first()\nbytes_now = sha()"  # not in the value: that is asked for when the cell is over
        bytes_now, failure = notebook.attempt(cell, "bytes_now", timeout=CELL_LIMIT)
        if failure is not None:
            seen.failure(failure)
        seen.changed += failure is None and bytes_now != known


def _load(notebook: Notebook, size: int, seed: int) -> tuple[str, list[str]]:
    """Fill a notebook; return the hash by the GPU, and that of every byte."""
    notebook.run(parks.CELLS, timeout=LOAD_LIMIT)
    cell = f"{parks.declared(size + 64 * MiB, 256 * MiB)}\nbuild({size}, {seed})\nknown = [digest(), sha()]"
    gpu, cpu = notebook.run(cell, "known", timeout=LOAD_LIMIT)
    progress(f"notebook {seed + 1} is loaded")
    return gpu, cpu


def _turn(notebook: Notebook, known: str, seen: Seen) -> None:
    """Run a plain cell that uses the GPU at once, and look at what it found."""
    sent = time.monotonic()
    came, failure = notebook.attempt("came = turn()", "came", timeout=CELL_LIMIT)
    if failure is not None:
        seen.failure(failure)
        return
    seen.finished += 1
    seen.waited.append(came["first"] - sent)
    seen.changed += came["digest"] != known


if __name__ == "__main__":
    sys.exit(row("gpu_parked_rounds", QUESTION, measure))
