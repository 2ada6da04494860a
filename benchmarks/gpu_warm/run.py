"""Tensors that are set aside by their own notebook: how fast, how soon the memory is free, how soon it is back. See README.md."""

from __future__ import annotations

import contextlib
import itertools
import json
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
from gpushare_kernel.broker.extents import Span
from gpushare_kernel.broker.memfile import MemFile
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.values import GiB, MiB
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.devices.nvml import Nvml

QUESTION = "The warm tier: how fast are tensors copied out, how soon is their memory free and back, alone and with the driver's checkpoint after it?"
RATE, BOTH = 50.0, 1.5
"""GB/s that copies must reach; seconds that both tiers together may take, each way."""
FREE_BY = {4: 0.2, 12: 0.45}
"""Seconds from the request to the memory that is free in NVML, by GiB."""
NEXT_CELL = 0.2
"""Seconds to the first result of the next cell, 4 GiB."""
ARENAS, ARENA = 2, 30 * GiB
"""Arenas of others on the host while both tiers move 12 GiB."""
SPARE = 24 * GiB
"""What the host must have beside them."""
LIMIT = 60.0
_STEP = 2 * MiB
OUT, BACK = "set aside by its client", "put back by its client"
"""What the broker's log says."""


@dataclass
class Seen:
    """Seconds, GB/s, and parts, of one size (and of one size of others' arenas)."""

    free_after: list[float] = field(default_factory=list)
    next_cell: list[float] = field(default_factory=list)
    out: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    frees: list[float] = field(default_factory=list)
    changed: int = 0


class Pair:
    """A notebook whose tensors are set aside, and another that wants the room."""

    def __init__(self, stage: Stage, owner: Notebook, other: Notebook, nvml: Nvml) -> None:
        self._stage, self.owner, self._other, self._nvml = stage, owner, other, nvml
        self._numbers = itertools.count()
        self._size = 0
        self._known: object = None

    def fill(self, size: int) -> None:
        """Have the owner hold `size` bytes, and know their hashes."""
        cell = f"{parks.declared(size + 64 * MiB, 256 * MiB)}\nbuild({size}, 7)\nknown = [digest(), sha()]"
        self._known = self.owner.run(cell, "known", timeout=LIMIT)
        self._size = size

    def displaced(self, seen: Seen) -> None:
        """Let the other one need half of what the owner holds, and the owner's next cell need it back."""
        time.sleep(
            parks.cost(self._size) + 1.0
        )  # it is idle for long enough then to be parked at once
        number = next(self._numbers)
        ready, stop = (self._stage.folder / f"{word}-{number}" for word in ("ready", "stop"))
        need = (self._free_by_the_broker() + self._size // 2) // _STEP * _STEP
        before, taken = self._nvml.memory().free, need - 768 * MiB
        cell = f"{parks.declared(0, need)}\nback = take({taken}, {str(ready)!r}, {str(stop)!r})"
        began = time.monotonic()
        self._other.begin(cell, "back")
        try:
            self._free(before + int(0.97 * self._size))
            seen.free_after.append(time.monotonic() - began)
            _await(ready)
        finally:
            stop.touch()
        self._other.finish(LIMIT)
        self._room_for(self._size)
        sent = time.monotonic()
        seen.next_cell.append(self.owner.run("at = first()", "at", timeout=LIMIT) - sent)
        self._look(seen)

    def by_hand(self, seen: Seen) -> None:
        """Have all of it parked, what its client cannot move too, and brought back by the next cell."""
        held, before = self._held(), self._nvml.memory().free
        self.owner.run("%gpushare park")
        began = time.monotonic()
        self._free(before + int(0.97 * held))
        seen.out.append(time.monotonic() - began)
        with Line(self._stage.places) as line:
            _until(lambda: parks.parked(line, self.owner.pid) is not None)
        seen.frees.append((held - self._held()) / held)
        sent = time.monotonic()
        seen.back.append(self.owner.run("at = first()", "at", timeout=LIMIT) - sent)
        self._look(seen)

    def _look(self, seen: Seen) -> None:
        seen.changed += (
            self.owner.run("now = [digest(), sha()]", "now", timeout=LIMIT) != self._known
        )

    def _held(self) -> int:
        return sum(one.size for one in self._nvml.processes() if one.pid == self.owner.pid)

    def _free(self, wanted: int) -> None:
        _until(lambda: self._nvml.memory().free >= wanted, pace=0.001)

    def _free_by_the_broker(self) -> int:
        with Line(self._stage.places) as line:
            return int(line.snapshot().devices[0].free)

    def _room_for(self, size: int) -> None:
        _until(lambda: self._free_by_the_broker() > size + GiB)


def measure(options: Options) -> Sequence[Figure]:
    """Set aside for somebody who waits, 4 and 12 GiB; then both tiers together, beside arenas of others."""
    parks.needs_gpu(options)
    sizes, rounds = ((4,), 1) if options.quick else ((4, 12), 2)
    alone = {size: Seen() for size in sizes}
    both: dict[int, Seen] = {}
    with shared_house(options, "--parking", "warm") as stage, contextlib.closing(Nvml()) as nvml:
        parks.check_parks(stage)
        with notebooks(several(SEEN, 2), options.device, []) as (owner, other):
            together([owner, other], parks.CELLS)
            other.run("at = first()")
            pair = Pair(stage, owner, other, nvml)
            try:
                for size, seen in alone.items():
                    pair.fill(size * GiB)
                    for _ in range(rounds):
                        pair.displaced(seen)
                        progress(f"{size} GiB: free after {seen.free_after[-1]:.3f} s, next cell {seen.next_cell[-1]:.3f} s")  # fmt: skip
                for beside in (0,) if options.quick else (0, ARENAS * ARENA // GiB):
                    with _arenas_of_others(beside * GiB):
                        seen = both[beside] = Seen()
                        for _ in range(rounds):
                            pair.by_hand(seen)
                            progress(f"both tiers beside {beside} GiB: out {seen.out[-1]:.2f} s, back {seen.back[-1]:.2f} s, frees {seen.frees[-1]:.3f}")  # fmt: skip
            except AssertionError:
                parks.note_sessions(stage)
                parks.moves(stage)
                raise
            found, log = parks.moves(stage), stage.places.log.read_text(encoding="utf-8", errors="replace")  # fmt: skip
    figures = [*_rates(log, sizes)]
    for size, seen in alone.items():
        figures.append(Figure(f"free_after_{size}GiB", "s", seen.free_after, at_most=FREE_BY[size]))
        bound = NEXT_CELL if size == 4 else None
        figures.append(Figure(f"next_cell_{size}GiB", "s", seen.next_cell, at_most=bound))
    for beside, seen in both.items():
        name = f"{max(sizes)}GiB_beside_{beside}GiB"
        figures += [
            Figure(f"both_out_{name}", "s", seen.out, at_most=BOTH),
            Figure(f"both_back_{name}", "s", seen.back, at_most=BOTH),
            Figure(f"both_free_{name}", "of it", seen.frees, at_least=0.97, worst=True),
        ]
    changed = sum(seen.changed for seen in (*alone.values(), *both.values()))
    return [
        *figures,
        Figure("hashes_changed", "", [float(changed)], at_most=0.0),
        *parks.figures(found),
    ]


def _rates(log: str, sizes: Sequence[int]) -> Iterator[Figure]:
    """Return the rates of copies, of the largest part of each size that was moved, as clients told the broker."""
    told: list[tuple[str, int, float]] = []
    for line in log.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["message"] in (OUT, BACK) and entry["copied"] > 0:
                told.append(
                    (entry["message"], entry["size"], entry["size"] / entry["copied"] / 1e9)
                )
    for size in sizes:
        for name, message, bound in (("out", OUT, RATE), ("back", BACK, None)):
            rates = [rate for what, moved, rate in told if what == message and 0.9 * size * GiB <= moved <= 1.1 * size * GiB]  # fmt: skip
            if rates:
                yield Figure(f"copy_{name}_{size}GiB", "GB/s", rates, at_least=bound)
            else:
                note(f"nothing of {size} GiB was copied {name} by a client")
                yield Figure(f"copy_{name}_{size}GiB", "GB/s", [0.0], at_least=bound)


@contextlib.contextmanager
def _arenas_of_others(size: int) -> Iterator[None]:
    """Have that much of the host's memory in arenas, as a broker makes them."""
    if size + SPARE * bool(size) > Machine().room():
        reason = f"arenas of {size / GiB:.0f} GiB leave less than {SPARE / GiB:.0f} GiB of the host"
        raise NotMeasured(reason)
    with contextlib.ExitStack() as made:
        for _ in range(ARENAS if size else 0):
            file = MemFile()
            made.callback(file.close)
            file.reach(size // ARENAS)
            file.populate(Span(0, size // ARENAS))
        yield


def _await(path: Path) -> None:
    _until(path.exists)


def _until(condition: Callable[[], object], pace: float = 0.01) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > until:
            msg = "what the row waits for did not come in time"
            raise AssertionError(msg)
        time.sleep(pace)


if __name__ == "__main__":
    sys.exit(row("gpu_warm", QUESTION, measure))
