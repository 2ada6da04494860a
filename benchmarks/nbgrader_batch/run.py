"""Submissions graded on a device that is full: with a grant for the whole batch, and without. See README.md."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, Stage, environment, main, progress, staged
from benchmarks.nbgrader_batch.course import ASSIGNMENT, Course
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.sizes import parse_size
from gpushare_kernel.provisioner import DEFAULT_PROVISIONER
from gpushare_kernel.wire.snapshot import Snapshot

QUESTION = "Submissions graded by nbgrader on a full device: how many marks are lost to waiting?"
DEVICE, GRANT, CELL = "768MiB", "192MiB", "160MiB"
BEFORE, BESIDE = "640MiB", "420MiB"
"""What others hold before the batch has its memory, and beside it: in either case less than a test's cell needs is free."""
TIMEOUT = 30
"""Seconds that nbgrader gives a cell: its own default."""
WAITED = 10.0
"""Seconds for which the batch finds no room at first."""
LOOK = 0.5
"""Seconds between two looks at the device while the batch is graded."""
_GPUSHARE = (sys.executable, "-m", "gpushare_kernel.app.main")
_HOLD = ("--", sys.executable, "-c", "print('ready', flush=True); input()")


def measure(options: Options) -> Sequence[Figure]:
    """Grade with a grant, then some without one."""
    if importlib.util.find_spec("nbgrader") is None:
        sys.exit("nbgrader is not here: pip install nbgrader==0.9.6")
    many, few = (4, 1) if options.quick else (30, 2)
    with staged() as stage, environment(_variables()):
        with stage.broker("--capacity", DEVICE, "--device", "host"):
            lost, took, others, kernels = _with_grant(stage, many)
        with stage.broker("--capacity", DEVICE, "--device", "host"):
            lost_without, of = _without(stage, few)
    return (
        Figure("marks_lost", "marks", [lost], at_most=0.0),
        Figure("graded", "submissions", [many]),
        Figure("free_while_graded", "MiB", others, at_most=parse_size(CELL) / 2**20, worst=True),
        Figure("sessions_of_the_batch", "sessions", kernels, at_most=1.0, worst=True),
        Figure("took", "s", [took]),
        Figure("lost_without_grant", "marks", [lost_without]),
        Figure("marks_without_grant", "marks", [of]),
    )


def _with_grant(stage: Stage, students: int) -> tuple[float, float, list[float], list[float]]:
    """The batch waits for its memory first; then others take the rest, and it is graded."""
    course = Course(stage.folder / "with", CELL, TIMEOUT)
    course.submit(students)
    began = time.monotonic()
    run = (*_GPUSHARE, "run", GRANT, "--name", "grading", "--", *course.command("autograde", ASSIGNMENT))  # fmt: skip
    with _holder(BEFORE) as first:
        batch = subprocess.Popen(run, cwd=stage.folder / "with", stderr=subprocess.DEVNULL)
        _until(stage, lambda snapshot: len(snapshot.queue) == 1)
        time.sleep(WAITED)
        assert not (stage.folder / "with" / "autograded").exists(), "it began without its memory"
        first.communicate("\n")
    with _holder(BESIDE):
        free, sessions = [], []
        while batch.poll() is None:
            with Line(stage.places) as line:
                seen = line.snapshot()
            ours = [one for one in seen.sessions if one.name != "hog"]
            if any(one.jobs for one in ours):  # else it has just given its memory back
                free.append(seen.devices[0].free / 2**20)
                sessions.append(float(len(ours)))
            time.sleep(LOOK)
    took = time.monotonic() - began
    whole, given = course.marks(students)
    progress(f"with a grant: {given:g} of {whole:g} marks in {took:.0f} s, status {batch.returncode}")  # fmt: skip
    return whole - given, took, free, sessions


def _without(stage: Stage, students: int) -> tuple[float, float]:
    """Each kernel asks for itself: its cells wait while nbgrader's clock runs."""
    course = Course(stage.folder / "without", CELL, TIMEOUT)
    course.submit(students)
    with _holder(BEFORE):
        subprocess.run(
            course.command("autograde", ASSIGNMENT),
            cwd=stage.folder / "without",
            stderr=subprocess.DEVNULL,
            check=False,
        )
    whole, given = course.marks(students)
    progress(f"without one: {given:g} of {whole:g} marks")
    return whole - given, whole


@contextmanager
def _holder(size: str) -> Iterator[subprocess.Popen[str]]:
    """Somebody else holds so much of the device."""
    process = subprocess.Popen([*_GPUSHARE, "run", size, "--name", "hog", *_HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        if process.poll() is None:
            process.communicate("\n")


def _until(stage: Stage, condition: Callable[[Snapshot], bool]) -> None:
    for _ in range(600):
        with Line(stage.places) as line:
            if condition(line.snapshot()):
                return
        time.sleep(0.1)
    raise TimeoutError


def _variables() -> dict[str, str]:
    """Kernels start as shared ones; nbgrader finds its own alembic, which it runs by name."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {DEFAULT_PROVISIONER: "gpushare", "PATH": path}


if __name__ == "__main__":
    sys.exit(main("nbgrader_batch", QUESTION, measure))
