"""Two endless trainings, of which the GPU holds one: parked in turn, or paged by the driver. See README.md."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options
from benchmarks.gpu import parks
from benchmarks.gpu.notebooks import FREE, SEEN, Notebook, notebooks, several, together
from benchmarks.gpu.reckoning import share_error
from benchmarks.gpu.row import note, row, shared_house
from benchmarks.gpu.windows import Floor, Job, Seen
from benchmarks.gpu_two_endless.turns import Point, alone, begins, between, parts, start
from benchmarks.kernels import Counters
from gpushare_kernel.core.parking import AMORTISED
from gpushare_kernel.core.values import GiB, MiB

QUESTION = "2 endless trainings, room for 1.4 times one: are they equal, and how much more do they do than under managed-memory paging?"
CELLS = Path(__file__).with_name("cells.py").read_text(encoding="utf-8")
KIND = "train"
ROOM = 1.4
CONTEXT = 750 * MiB
"""What a CuPy process with cuBLAS has on the GPU beside its arrays, as far as is known (torch with cuBLAS: 680 MiB)."""
BESIDE = 512 * MiB
"""What a training declares beside its weights; its cells take half of it."""
KEPT = 128 * MiB
LOOK = 0.25
STALLED = 60.0
"""Seconds without any progress after which something is wrong."""
PAGING_SETTLE = 5.0
CONCURRENT = "import cupy; print(cupy.cuda.runtime.deviceGetAttribute(89, 0))"
"""Asks whether the driver pages at all (cudaDevAttrConcurrentManagedAccess)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long both work in turn (the window, and its longest), in how many turns at least, and how long under paging."""

    window: float
    longest: float
    turns: int
    paging: float

    def residency(self) -> float:
        """Return the seconds for a park, a restore and the turn between them, so that so many turns fit."""
        return self.longest / self.turns


FULL, QUICK = Plan(120.0, 150.0, 4, 45.0), Plan(45.0, 60.0, 2, 10.0)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of weights of each training, bytes that the ballast leaves free, and what set the size."""

    size: int
    leave: int
    bound: str


def planned(free: int, host: int, plan: Plan) -> Sizes:
    """Return the sizes: nobody is displaced before it had its memory for ten times what moving it takes (Q4), so time bounds S, too."""
    moves = plan.residency() / (AMORTISED + 1)
    limits = {
        "the GPU's memory": (free - 2 * CONTEXT) / ROOM,
        "the host's memory": host / 2 - CONTEXT - BESIDE,
        "the policy's residency in this window": float(parks.affordable(moves) - CONTEXT),
    }
    bound, most = parks.least_of(limits)
    size = parks.whole(most, bound, GiB)
    return Sizes(size, int(ROOM * size) + 2 * CONTEXT, bound)


def measure(options: Options) -> Sequence[Figure]:
    """Two of ours with the ballast, then two free ones in managed memory with the same ballast."""
    parks.needs_gpu(options)
    _check_paging()
    plan = QUICK if options.quick else FULL
    sizes = planned(parks.free_memory(), parks.host_room(), plan)
    note(f"S is {sizes.size / GiB:.2f} GiB ({sizes.bound})")
    with shared_house(options, *parks.COLD) as stage:
        parks.check_parks(stage)
        with (
            parks.ballast(stage, sizes.leave) as (free, taken),
            contextlib.closing(Counters(stage.folder / "counters")) as counters,
        ):
            floor = Floor(stage, counters)
            with notebooks(several(SEEN, 2), options.device, []) as two:
                points = _in_turn(floor, two, sizes.size, plan)
            moves = parks.moves(stage)
            _await_room(free)
            with notebooks(several(FREE, 2), options.device, []) as two:
                paged = _paged(floor, two, sizes.size, plan)
    return [
        *_of_turns(points, paged, plan),
        *parks.figures(moves),
        parks.gib("each_holds", sizes.size),
        parks.gib("ballast", taken),
        parks.gib("free_beside_the_ballast", free),
        Figure("free_of_one", "times S", [(free - 2 * CONTEXT) / sizes.size]),
    ]


def _of_turns(points: Sequence[Point], paged: Seen, plan: Plan) -> list[Figure]:
    """Return the figures of both arms: shares over whole rounds of turns, and at the end of the window as it fell."""
    rounds = begins(points)
    began = start(points) or points[0]
    end = points[rounds[-1]] if len(rounds) > 1 else points[-1]
    cut = next((point for point in points if point.at >= began.at + plan.window), points[-1])
    done, at_cut = between(began, end), parts(between(began, cut))
    rate, single = sum(done) / (end.at - began.at), alone(points)
    return [
        Figure("least_progress", "iterations", [float(min(done))], at_least=1.0),
        Figure("error_of_shares", "points", [share_error(parts(done), (1, 1))], at_most=5.0),
        Figure("total_of_paging", "", [rate / max(paged.total, 1e-9)], at_least=1.3),
        Figure("total", "iterations/s", [rate]),
        Figure(
            "total_paging", "iterations/s", [paged.total], at_least=0.01
        ),  # else it is no baseline
        Figure("shares_paging", "%", paged.shares if paged.total else [0.0, 0.0]),
        *([Figure("total_of_alone", "", [rate / single])] if single else []),
        Figure("shares_at_the_window_s_end", "%", at_cut),
        Figure("whole_rounds", "", [float(max(0, len(rounds) - 1))], at_least=1.0),
        Figure("counted_for", "s", [end.at - began.at]),
    ]


def _in_turn(floor: Floor, two: Sequence[Notebook], size: int, plan: Plan) -> list[Point]:
    """Start both and look what they count, until whole rounds of turns fill the window. Whoever still works then is ended."""
    together(two, CELLS)
    magic = parks.declared(size + KEPT, BESIDE)
    for slot, notebook in enumerate(two):
        call = f"work({KIND!r}, {str(floor.counters.path)!r}, {slot}, {time.monotonic() + 600})"
        notebook.begin(f"{magic}\nbuild({size})\nfill()\ndone = {call}", "done")
    points, moved = [_point(floor)], time.monotonic()
    while not _enough(points, plan):
        time.sleep(LOOK)
        points.append(_point(floor))
        if points[-1].counts != points[-2].counts:
            moved = points[-1].at
        if time.monotonic() - moved > STALLED:
            note(f"no progress for {STALLED:g} s")
            break
    _tell_failures(two)
    note(f"in turn: {points[-1].counts} iterations, rounds begin at {begins(points)}")
    return points


def _point(floor: Floor) -> Point:
    counts = floor.counters.read()
    return Point(time.monotonic(), (counts[0], counts[1]))


def _enough(points: Sequence[Point], plan: Plan) -> bool:
    began, rounds = start(points), begins(points)
    if began is None:
        return False
    whole = bool(rounds) and points[rounds[-1]].at - began.at >= plan.window
    return whole or points[-1].at - began.at >= plan.longest


def _tell_failures(two: Sequence[Notebook]) -> None:
    """A cell that has ended has failed: it raises here what it failed with."""
    for notebook in two:
        with contextlib.suppress(Empty):
            notebook.finish(0.2)


def _await_room(free: int) -> None:
    """Wait until those of the first arm have left the GPU."""
    until = time.monotonic() + 20.0
    while parks.free_memory() < free - 64 * MiB and time.monotonic() < until:
        time.sleep(0.1)


def _paged(floor: Floor, two: Sequence[Notebook], size: int, plan: Plan) -> Seen:
    """Have both in managed memory. Both ask for all of it before either touches it: none asks for more than is free then."""
    together(two, CELLS)
    together(two, f"build({size}, managed=True)")
    together(two, "fill()")
    jobs = [Job(notebook, KIND) for notebook in two]
    seen = floor.window(jobs, seconds=plan.paging, settle=PAGING_SETTLE)
    note(f"under paging: {seen.total:.2f} iterations/s")
    return seen


def _check_paging() -> None:
    if importlib.util.find_spec("cupy") is None:
        reason = "CuPy is not installed: both trainings are written in it"
        raise NotMeasured(reason)
    asked = subprocess.run(
        [sys.executable, "-c", CONCURRENT], capture_output=True, text=True, check=False, timeout=120
    )
    if asked.stdout.strip() != "1":
        reason = f"the driver does not page managed memory here ({asked.stdout.strip() or asked.stderr[-200:]})"
        raise NotMeasured(reason)


if __name__ == "__main__":
    sys.exit(row("gpu_two_endless", QUESTION, measure))
