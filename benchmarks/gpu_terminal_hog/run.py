"""A hog in another user's terminal beside a notebook. See README.md."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options, progress
from benchmarks.gpu.notebooks import SEEN, Notebook, several
from benchmarks.gpu.pauses import Line
from benchmarks.gpu.people import People
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Floor, Job, Seen, warm_clock
from gpushare_kernel.app.main import GpuShareApp

QUESTION = "A hog in another user's terminal beside a notebook: who gets how much?"
KIND = "matmul"
_END_LIMIT = 60.0
_ADOPTION = 6.0
"""Seconds in which a process that nobody announced is seen and becomes a session."""


class Terminal:
    """A program in another user's terminal, working in the counters' second slot until it is ended."""

    shared = False

    def __init__(self, floor: Floor, people: People, place: str, *prefix: str) -> None:
        self.lines: list[Line] = []
        self._stop = floor.stage.folder / f"stop-{time.monotonic_ns()}"
        script = str(people.root / "benchmarks/gpu/hog.py")
        words = [KIND, place, str(floor.counters.path), "1", str(self._stop)]
        self._process = people.start(
            people.uids[0],
            *prefix,
            sys.executable,
            script,
            *words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        if "ready" not in self._process.stdout.readline():
            msg = f"the hog did not start ({self._process.wait()})"
            raise AssertionError(msg)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.touch()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def begin(self, code: str, value: str = "None") -> None:
        """It works already."""

    def finish(self, timeout: float | None = None) -> None:
        """It goes on."""


def measure(options: Options) -> Sequence[Figure]:
    """Windows of a notebook beside a hog: started with `jupyter gpushare run`, then announced to nobody (adopted)."""
    pace = Pace.of(options, 5, 2.0)
    run = [sys.executable, "-m", "gpushare_kernel.app.main", "run", "--"]
    ways = [
        *([("run", run, pace.settle)] if "run" in GpuShareApp.subcommands else []),
        *([("adopted", [], pace.settle + _ADOPTION)] if options.device == "cuda" else []),
    ]
    if not ways:
        reason = "this version has no `jupyter gpushare run`, and a CPU's processes are not adopted"
        raise NotMeasured(reason)
    found: list[Figure] = []
    with scene(options, several(SEEN, 1), [KIND], foreign="adopt") as (floor, (notebook,)):
        people = People(floor.stage.folder, 1, imports="torch" if options.device == "cuda" else "")
        warm_clock([notebook], KIND, floor)
        for name, prefix, settle in ways:
            with Terminal(floor, people, options.device, *prefix) as hog:
                windows = _windows(floor, notebook, hog, pace, settle)
            shares = [one.shares[0] for one in windows]
            found += [
                Figure(f"share_beside_{name}", "%", shares, at_least=45.0, at_most=55.0),
                Figure(f"total_{name}", "steps/s", [one.total for one in windows]),
            ]
            progress(f"{name}: the notebook has {found[-2].median:.1f} %")
        explained = floor.explained()
    return [*found, *explained]


def _windows(
    floor: Floor, notebook: Notebook, hog: Terminal, pace: Pace, settle: float
) -> list[Seen]:
    jobs = [Job(notebook, KIND), Job(hog, KIND)]
    return floor.series(jobs, seconds=pace.seconds, settle=settle, number=pace.rounds)


if __name__ == "__main__":
    sys.exit(row("gpu_terminal_hog", QUESTION, measure))
