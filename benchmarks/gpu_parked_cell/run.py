"""What a notebook can do while its memory is parked, and how soon its next cell has it back. See README.md."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options, Stage, progress
from benchmarks.gpu import parks
from benchmarks.gpu.notebooks import SEEN, Notebook, notebooks, several, together
from benchmarks.gpu.row import note, row, shared_house
from benchmarks.kernels import CellFailed
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.values import GiB, MiB

QUESTION = "4 GiB of a notebook parked, the GPU full: what can its cells do, and how soon has the next one its memory back?"
SIZE = 4 * GiB
LEFT = 1536 * MiB
"""What the other notebook leaves of the GPU: less than what is parked."""
UNUSED = 256 * MiB
"""What it declares beyond what it takes."""
STEP = 2 * MiB
LIMIT = 60.0
"""Seconds for whatever a row waits for."""
WAITS = 2.5
"""Seconds that a cell waits for its memory before it is interrupted, or has it back: its line is shown after one."""
NOTICED = 1.0
"""Seconds from the interrupt to the memory that is free again."""
ASIDE, BACK = "calls to the GPU wait until it is back", "Your GPU memory is back"
"""What is sought in the lines of a cell that waits."""


def to_take(free: int) -> int:
    """Return how many bytes the other notebook is to declare, of what is free; NotMeasured where the parked one would fit beside it."""
    size = (free - LEFT) // STEP * STEP
    if size < SIZE:
        reason = f"{free / GiB:.1f} GiB are free on the GPU: too little for this row"
        raise NotMeasured(reason)
    return size


@dataclass
class Seen:
    """Seconds, and what was counted."""

    add: list[float] = field(default_factory=list)
    save: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    next_cell: list[float] = field(default_factory=list)
    interrupted: list[float] = field(default_factory=list)
    not_interrupted: int = 0
    not_parked: int = 0
    changed: int = 0
    aside: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)


class Pair:
    """A notebook that is parked, and another that takes the GPU meanwhile."""

    def __init__(self, stage: Stage, owner: Notebook, other: Notebook) -> None:
        self.stage, self.owner, self._other = stage, owner, other
        self._numbers = itertools.count()

    def set_aside(self) -> None:
        """Park the owner's memory by its own cell, and wait until it is out."""
        known, until = len(self.owner.lines), time.monotonic() + LIMIT
        self.owner.run("%gpushare park")
        said = " / ".join(line.text for line in self.owner.lines[known:])
        note(f"%gpushare park says: {said}")
        while not self.is_parked():
            if time.monotonic() > until:
                parks.moves(self.stage)
                msg = "the notebook was not parked in time"
                raise AssertionError(msg)
            time.sleep(0.05)

    def is_parked(self) -> bool:
        """Say whether the owner's memory is set aside."""
        with Line(self.stage.places) as line:
            return parks.parked(line, self.owner.pid) is not None

    @contextlib.contextmanager
    def full(self) -> Iterator[Callable[[], float]]:
        """Have the other notebook take the GPU; yield how it gives it back, which returns when that was (monotonic clock)."""
        number = next(self._numbers)
        ready, stop = (self.stage.folder / f"{word}-{number}" for word in ("ready", "stop"))
        size = to_take(parks.free_memory())
        cell = f"{parks.declared(0, size)}\nback = take({size - UNUSED}, {str(ready)!r}, {str(stop)!r})"
        self._other.begin(cell, "back")

        def give_back() -> float:
            stop.touch()
            return float(self._other.finish(LIMIT))

        try:
            _await(ready, lambda: self._other.finish(1.0))
            yield give_back
        finally:
            stop.touch()


def _await(path: Path, otherwise: Callable[[], object]) -> None:
    until = time.monotonic() + LIMIT
    while not path.exists():
        if time.monotonic() > until:
            otherwise()  # raises what the cell failed with
            msg = f"{path.name} did not come"
            raise AssertionError(msg)
        time.sleep(0.01)


def measure(options: Options) -> Sequence[Figure]:
    """Park, fill the GPU, look; interrupt a cell that waits; let one have its memory back; and the next cell where there is room."""
    parks.needs_gpu(options)
    seen = Seen()
    with shared_house(options, *parks.COLD) as stage:
        parks.check_parks(stage)
        with notebooks(several(SEEN, 2), options.device, []) as (owner, other):
            together([owner, other], parks.CELLS)
            other.run("at = first()")
            cell = (
                f"{parks.declared(SIZE + 64 * MiB, 256 * MiB)}\nbuild({SIZE}, 7)\nknown = digest()"
            )
            known = owner.run(cell, "known", timeout=LIMIT)
            pair = Pair(stage, owner, other)
            for number in range(1 if options.quick else 2):
                _round(pair, seen)
                seen.changed += owner.run("now = digest()", "now", timeout=LIMIT) != known
                progress(
                    f"round {number + 1}: first {seen.first[-1]:.2f} s, next {seen.next_cell[-1]:.2f} s"
                )
            found = parks.moves(stage)
    return [
        Figure("first_result_once_there_is_room", "s", seen.first, at_most=1.5, worst=True),
        Figure("first_result_of_next_cell", "s", seen.next_cell, at_most=1.5, worst=True),
        Figure("full_add", "s", seen.add, at_most=1.0, worst=True),
        Figure("full_save", "s", seen.save, at_most=1.0, worst=True),
        Figure("full_not_parked_any_more", "", [float(seen.not_parked)], at_most=0.0),
        *([Figure("interrupted_after", "s", seen.interrupted)] if seen.interrupted else []),
        Figure("not_interrupted", "", [float(seen.not_interrupted)], at_most=0.0),
        Figure("cell_said_set_aside", "", seen.aside, at_least=1.0, worst=True),
        Figure("cell_said_back", "", seen.back),
        Figure("hashes_changed", "", [float(seen.changed)], at_most=0.0),
        *parks.figures(found),
    ]


def _round(pair: Pair, seen: Seen) -> None:
    pair.set_aside()
    with pair.full() as give_back:
        _usable(pair, seen)
        _interrupt(pair, give_back, seen)
    pair.set_aside()
    with pair.full() as give_back:
        known = len(pair.owner.lines)
        pair.owner.begin("at = first()", "at")
        time.sleep(WAITS)
        back = give_back()
        seen.first.append(pair.owner.finish(LIMIT) - back)
        _heard(pair.owner, known, seen)
    pair.set_aside()
    sent = time.monotonic()
    seen.next_cell.append(pair.owner.run("at = first()", "at", timeout=LIMIT) - sent)


def _usable(pair: Pair, seen: Seen) -> None:
    """Compute 1 + 1 and save a file while the memory is set aside and there is no room for it."""
    path = str(pair.stage.folder / "saved")
    save = f"_ = __import__('pathlib').Path({path!r}).write_bytes(bytes(2**20))"
    for _ in range(5):
        for cell, seconds in (("1 + 1", seen.add), (save, seen.save)):
            sent = time.monotonic()
            pair.owner.run(cell, timeout=LIMIT)
            seconds.append(time.monotonic() - sent)
    seen.not_parked += not pair.is_parked()


def _interrupt(pair: Pair, give_back: Callable[[], float], seen: Seen) -> None:
    """Interrupt a cell that waits for its memory; once that is free the cell is to end by the interrupt."""
    known = len(pair.owner.lines)
    pair.owner.begin("at = first()\n__import__('time').sleep(0.5)", "at")
    time.sleep(WAITS)
    pair.owner.manager.interrupt_kernel()
    time.sleep(NOTICED)
    back = give_back()
    try:
        pair.owner.finish(LIMIT)
    except CellFailed as failure:
        if "KeyboardInterrupt" not in str(failure):
            raise
        seen.interrupted.append(time.monotonic() - back)
    else:
        seen.not_interrupted += 1
    _heard(pair.owner, known, seen)


def _heard(owner: Notebook, known: int, seen: Seen) -> None:
    """Note what a cell that waited has said, with what came right behind its end."""
    owner.run("None")
    said = [line.text for line in owner.lines[known:]]
    seen.aside.append(float(any(ASIDE in text for text in said)))
    seen.back.append(float(any(BACK in text for text in said)))
    note(f"the cell says: {' / '.join(said)}")


if __name__ == "__main__":
    sys.exit(row("gpu_parked_cell", QUESTION, measure))
