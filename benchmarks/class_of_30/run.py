"""30 notebooks at one Jupyter server: on the host's cores, then on a GPU in files that has room for 26, with parking and without. See README.md."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.class_of_30.gpu import BUSY, COMMAND, CONTEXT, SEAT
from benchmarks.class_of_30.school import Cell, School
from benchmarks.common import ORPHANED, PATIENCE, Figure, Options, Stage, main, progress, staged
from benchmarks.gpu.parks import moves_of
from benchmarks.kernels import Counters
from gpushare_kernel import procfs
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.values import MoveStatus, WaitReason
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.wire.snapshot import Snapshot

QUESTION = "A class of 30 at one Jupyter server: does everybody finish a first cell, after how long, and does everybody get the same?"
STUDENTS, START, WAIT, JAIN = 30, 60.0, 2.0, 0.98
A_KERNEL = 80 << 20
"""Bytes of the host's memory that a student's kernel takes, at least."""
SETTLE, LOOK, LEAST_WINDOW = 2.0, 0.25, 4.0
"""Seconds after Run before shares are counted, between two looks, and in which too little is seen to say anything."""
SETTLED = 5.0
"""Seconds for which everybody is done or waits for memory, before it is taken to stay so."""
HERE, TESTS = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2] / "tests"
SIDE = (HERE, TESTS / "faults" / "kernel_side", TESTS / "client" / "frameworks")
BURN = """
import time
def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))
"""
FIRST_ON_GPU = "%%gpulane -p 8MiB -e 64MiB\nprint(student.first({}))"
AGAIN_ON_GPU = "%%gpulane -p 8MiB -e 64MiB\nprint('VALUE', student.again({}))"
ENDLESS_ON_GPU = "%%gpulane -p 8MiB -e 64MiB\nstudent.work_until({})"


@dataclass(frozen=True, slots=True)
class Plan:
    """How many students, and for how many seconds the device works for each: on the host, on the GPU, in a cell of those in turn, and while all want it."""

    students: int = STUDENTS
    host: float = 2.0
    gpu: float = 2.0
    turn: float = 0.1
    together: float = 200.0


QUICK = Plan(6, 1.5, 1.0, 0.1, 20.0)


class NotDone(Exception):
    """The class did not do what is measured."""


@dataclass
class Seen:
    """What came of one sort of class, as figures with its name before theirs."""

    name: str
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, unit: str, values: Sequence[float], **bounds: float) -> None:
        """Keep a figure."""
        self.figures.append(Figure(f"{self.name}_{name}", unit, values, **bounds))  # type: ignore[arg-type]
        progress(f"{self.name}: {name} {', '.join(f'{one:.3g}' for one in values[:3])} {unit}")

    def first_cells(self, cells: Sequence[Cell], work: float, device: float) -> None:
        """The first cell of all who pressed Run at once: who finished, and how long the last one took by what the device takes for all of them."""
        for cell in cells:
            if cell.error:
                progress(f"{self.name}: student {cell.number}: {cell.error[-600:]}")
        ideal = work * len(cells) / device
        done = [cell for cell in cells if not cell.error]
        self.add("finished", "students", [float(len(done))], at_least=float(len(cells)))
        if not done:
            problem = "no student finished a cell"
            raise NotDone(problem)
        worst = max(cell.took for cell in done)
        self.add("worst_wait", "of work/device", [worst / ideal], at_most=WAIT)
        self.add("worst_wait_s", "s", [worst])
        self.add("work_by_device", "s", [ideal])

    def jain(self, shares: Sequence[float]) -> None:
        """How equal the device time was."""
        index = sum(shares) ** 2 / (len(shares) * sum(one * one for one in shares))
        self.add("jain", "", [index], at_least=JAIN)
        self.add("device_time", "s", sorted(shares))


def measure(options: Options) -> Sequence[Figure]:
    """Let the class work on each sort of device."""
    plan = QUICK if options.quick else Plan()
    room = Machine().room()
    if room < plan.students * A_KERNEL:
        progress(f"{room >> 20} MiB are free: too little for {plan.students} kernels")
    return [*_on_cores(plan), *_on_gpu(plan), *_without_parking(plan)]


# --- the host's cores -----------------------------------------------------------------------------------------


def _on_cores(plan: Plan) -> list[Figure]:
    seen, cores = Seen("host"), Machine().cores()
    with (
        staged() as stage,
        stage.broker("--device", "host"),
        School(stage, plan.students) as school,
    ):
        seen.add("kernels_up", "s", [school.opens()], at_most=START)
        for cell in _ended(school.all_run(BURN)):
            _well(cell)
        pids = [one.pid for one in school.sessions()]
        cells = school.all_run(f"%%gpulane 64MiB\nwork({plan.host})")
        shares = _while_all_want_it(cells, lambda: [procfs.cpu_seconds(pid or 0) or 0.0 for pid in pids])  # fmt: skip
        seen.first_cells(_ended(cells), plan.host, cores)
        seen.jain(shares)
    return seen.figures


def _while_all_want_it(cells: Sequence[Future[Cell]], read: Callable[[], Sequence[float]]) -> list[float]:  # fmt: skip
    """Return how much more of something each has, from `SETTLE` seconds after Run until the first is done."""
    time.sleep(SETTLE)  # the window's edge is a moment, and no event
    began, first = time.monotonic(), read()
    last, until = first, began
    while not any(cell.done() for cell in cells):
        time.sleep(LOOK)
        now = read()
        if not any(cell.done() for cell in cells):
            last, until = now, time.monotonic()
    if until - began < LEAST_WINDOW:
        problem = f"all wanted the device for {until - began:.1f} s only"
        raise NotDone(problem)
    return [after - before for before, after in zip(first, last, strict=True)]


# --- the GPU in files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _gpu(stage: Stage, plan: Plan, *arguments: str) -> Iterator[tuple[School, Counters]]:
    """Have a class on that GPU, its notebooks open; and what its work has had of the device."""
    place, total = stage.folder / "gpu", SEAT * plan.students
    place.mkdir()
    (place / "total").write_text(str(total))
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, (*SIDE, os.environ.get("PYTHONPATH", "")))).rstrip(os.pathsep),
        "SCRIPTED_GPU": str(place),
        "SCRIPTED_BROKER": " ".join(COMMAND),
        "GPUSHARE_ADAPTERS": "cupy",
        "CLASS_CONTEXT": str(CONTEXT),
        "CLASS_TOTAL": str(total),
    }  # fmt: skip
    with contextlib.closing(Counters(place / BUSY, 3 * (plan.students + 1))) as counters:
        ensure_broker(stage.places, PATIENCE, ["--idle-exit", str(ORPHANED), *arguments], command=COMMAND)  # fmt: skip
        try:
            with School(stage, plan.students, variables) as school:
                yield school, counters
        finally:
            stage.stop_broker()
            _broken(stage)


def _shown(school: School, seconds: float) -> None:
    """The first student shows it to the others, so that the broker knows what a context takes."""
    for cell in _ended(school.all_run("import student")):
        _well(cell)
    _well(school.students[0].run(FIRST_ON_GPU.format(seconds)))
    school.until(lambda seen: seen.devices[0].context >= CONTEXT, "contexts are not measured")


def _on_gpu(plan: Plan) -> list[Figure]:
    seen = Seen("gpu")
    with staged() as stage, _gpu(stage, plan, "--parking", "cold") as (school, counters):
        seen.add("kernels_up", "s", [school.opens()], at_most=START)
        _shown(school, plan.gpu)
        cells = school.all_run(FIRST_ON_GPU.format(plan.gpu), school.students[1:])
        seen.first_cells(_ended(cells), plan.gpu, 1.0)
        crowd = -(-(plan.students * CONTEXT - plan.students * SEAT) // CONTEXT)
        parked = sum(one.parked is not None for one in school.sessions())
        seen.add("parked_after", "students", [float(parked)], at_least=float(crowd))
        seen.add("contexts_of_gpu", "", [CONTEXT / SEAT])
        _in_turn(school, plan, seen)
        _together(school, plan, seen, counters)
        moves = moves_of(stage.places.log.read_text(encoding="utf-8", errors="replace"))
        done = [one for one in moves if one.status == MoveStatus.DONE]
        seen.add("parks", "", [float(sum(one.freed > 0 for one in done))], at_least=float(crowd))
        seen.add("restores", "", [float(sum(not one.freed for one in done))])
        lost = sum(one.status == MoveStatus.LOST for one in moves)
        seen.add("lost", "", [float(lost)], at_most=0.0)
    return seen.figures


def _in_turn(school: School, plan: Plan, seen: Seen) -> None:
    """One student after the other runs a cell; what each keeps must be what it was."""
    cells = [student.run(AGAIN_ON_GPU.format(plan.turn)) for student in school.students]
    finished = [cell for cell in cells if not cell.error]
    kept = sum(f"VALUE {cell.number + 1}\n" in cell.said for cell in finished)
    for cell in cells:
        if cell.error:
            progress(f"in turn, student {cell.number}: {cell.error[-600:]}")
    seen.add("turns_finished", "students", [float(len(finished))], at_least=float(plan.students))
    seen.add("values_changed", "", [float(len(finished) - kept)], at_most=0.0)
    seen.add("turn_took", "s", [cell.took for cell in finished])


def _together(school: School, plan: Plan, seen: Seen, counters: Counters) -> None:
    """All want the device for a while."""
    cells = school.all_run(ENDLESS_ON_GPU.format(time.monotonic() + plan.together))
    words = lambda: [word / 1e9 for word in counters.read()[1 : plan.students + 1]]  # noqa: E731
    shares = _while_all_want_it(cells, words)
    for cell in _ended(cells):
        _well(cell)
    seen.jain(shares)


def _without_parking(plan: Plan) -> list[Figure]:
    seen = Seen("unparked")
    with staged() as stage, _gpu(stage, plan, "--parking", "off") as (school, _):
        school.opens()
        _shown(school, plan.turn)
        others = school.students[1:]
        cells = school.all_run(FIRST_ON_GPU.format(plan.turn), others)
        school.until(_Settled(cells), "some cells neither end nor wait for memory")
        finished = 1 + sum(cell.done() and not cell.result().error for cell in cells)
        fits = _said_by_doctor()
        waiting = [s for s, cell in zip(others, cells, strict=True) if not cell.done()]
        for student in waiting:
            student.interrupt()
        ended = _ended(cells)
        told = sum("Waiting for GPU memory" in cell.said for cell in ended if cell.error)
        for cell in ended:
            if cell.error and "Waiting for GPU memory" not in cell.said:
                progress(f"unparked: student {cell.number}: {cell.error[-600:]}")
        seen.add("fit_by_doctor", "students", [float(fits)])
        seen.add("finished", "students", [float(finished)], at_least=fits, at_most=fits)
        seen.add("waiting_and_told", "students", [float(told)], at_least=float(plan.students - fits))  # fmt: skip
    return seen.figures


class _Settled:
    """Whether each of these cells is done or waits for memory, and has for a while: one that waits may be let in a moment later."""

    def __init__(self, cells: Sequence[Future[Cell]]) -> None:
        self._cells = cells
        self._since: float | None = None

    def __call__(self, seen: Snapshot) -> bool:
        """Look once more."""
        waiting = [one for one in seen.queue if one.reason == WaitReason.MEMORY]
        if sum(cell.done() for cell in self._cells) + len(waiting) != len(self._cells):
            self._since = None
            return False
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since > SETTLED


def _said_by_doctor() -> int:
    """Ask the doctor how many fit."""
    command = [sys.executable, "-m", "gpushare_kernel.app.main", "doctor", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    for check in json.loads(done.stdout)["checks"]:
        if check["name"] == "room":
            progress(f"doctor: {check['text']}")
            return int(check["text"].partition("at most ")[2].split()[0])
    problem = f"doctor does not say how many fit: {done.stdout}"
    raise NotDone(problem)


def _broken(stage: Stage) -> None:
    """A rule of the scheduler that was broken is an error in the broker's log, and no figure."""
    for line in stage.places.log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["level"] in {"error", "critical"}:
            problem = f"the broker's log says: {line[:2000]}"
            raise NotDone(problem)


def _ended(cells: Sequence[Future[Cell]]) -> list[Cell]:
    return [cell.result() for cell in cells]


def _well(cell: Cell) -> None:
    if cell.error:
        problem = f"student {cell.number}: {cell.error}"
        raise NotDone(problem)


if __name__ == "__main__":
    sys.exit(main("class_of_30", QUESTION, measure))
