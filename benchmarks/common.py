"""What every benchmark has: its options, its figures with their targets, the machine, and a stage of its own.

A benchmark measures and returns `Figure`s; `main` prints them as a table or, with `--json`, as one object.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpushare_kernel import __version__, procfs
from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.devices.machine import Machine
from gpushare_kernel.kernel_session import KERNEL_VARIABLES
from gpushare_kernel.provisioner import DEFAULT_PROVISIONER
from gpushare_kernel.transport.places import Places, places

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
PATIENCE = 20.0
ORPHANED = 60.0
"""Seconds after which a benchmark's broker leaves by itself, should the benchmark be killed."""
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, a value per window (or round, or pair).

    `at_least` and `at_most` bound the median, or the worst value where `worst` is set.
    A figure with neither is published and judged by nobody.
    """

    name: str
    unit: str
    values: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None
    worst: bool = False

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)

    @property
    def met(self) -> bool:
        """Whether it is within its target."""
        low, high = self.spread if self.worst else (self.median, self.median)
        return (self.at_least is None or low >= self.at_least) and (
            self.at_most is None or high <= self.at_most
        )

    @property
    def target(self) -> str:
        """Its target, to read."""
        bounds = [
            *([f">= {self.at_least:g}"] if self.at_least is not None else []),
            *([f"<= {self.at_most:g}"] if self.at_most is not None else []),
        ]
        return " and ".join(bounds) + (" (every value)" if bounds and self.worst else "")


@dataclass(frozen=True, slots=True)
class Options:
    """How a benchmark was called. `device` and `broker` are of the GPU rows: "cuda" or "host", and the broker's arguments.

    `rounds` is how often it measures, where one can choose (0: one cannot).
    """

    quick: bool
    device: str = ""
    broker: Sequence[str] = ()
    rounds: int = 0


class NotMeasured(Exception):
    """A benchmark cannot be measured here, and why: an answer, not a failure."""


def main(
    name: str, question: str, measure: Callable[[Options], Sequence[Figure]], *, rounds: int = 0
) -> int:
    """Measure, print, and return the exit status: 0 where every target is met, else 1.

    With `rounds` one can choose how many there are; so many where one does not.
    """
    parser = argparse.ArgumentParser(prog=f"benchmarks/{name}/run.py", description=question)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    add_rounds(parser, rounds)
    given = parser.parse_args()
    described, measured = machine(), commit()  # before: the load of others, not ours
    figures = measure(Options(quick=given.quick, rounds=1 if given.quick else given.rounds))
    if given.json:
        found = as_json(name, question, described, figures, quick=given.quick)
        print(json.dumps({**found, "commit": measured}))
    else:
        print_table(question, described, figures)
    return 0 if all(figure.met for figure in figures) else 1


def add_rounds(parser: argparse.ArgumentParser, usual: int) -> None:
    """Let one choose how many rounds there are, of a benchmark that has `usual` ones (0: it has no such choice)."""
    parser.set_defaults(rounds=usual)
    if usual:
        parser.add_argument(
            "--rounds", type=_rounds, metavar="N", help=f"how often all of it is measured ({usual})"
        )


def _rounds(text: str) -> int:
    if not text.isdecimal() or not int(text):
        msg = f"{text} is no number of rounds: give 1 or more"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def machine() -> dict[str, Any]:
    """Describe the machine and what runs here."""
    found = Machine()
    return {
        "cpu": found.cpu_name(),
        "cores": found.cores(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "autogroup": _autogroup(),
        "python": platform.python_version(),
        "gpushare": __version__,
        "uid": os.geteuid(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def commit(checkout: Path = ROOT) -> str:
    """Return the checkout's commit, with `+` where it is changed; empty where nobody knows.

    GPUSHARE_COMMIT goes before git: a copied tree may have another one's `.git`. Results, and new files that are no code, are no change.
    """
    said = os.environ.get("GPUSHARE_COMMIT")
    if said:
        return said
    try:
        head = _git(checkout, "rev-parse", "HEAD")
        status = _git(checkout, "status", "--porcelain", "-uall", "--", ".", f":!{RESULTS}")
    except (OSError, subprocess.CalledProcessError):
        return ""
    changed = (line for line in status.splitlines() if line[:2] != "??" or line.endswith(".py"))
    return f"{head}+" if any(changed) else head


def _git(checkout: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Stage:
    """A folder for one run, and where its broker is."""

    folder: Path
    places: Places

    @contextlib.contextmanager
    def broker(self, *arguments: str) -> Iterator[None]:
        """Have a broker while the block runs."""
        ensure_broker(self.places, PATIENCE, ["--idle-exit", str(ORPHANED), *arguments])
        try:
            yield
        finally:
            self.stop_broker()

    @property
    def pids(self) -> list[int]:
        """The broker's process and its guardian's."""
        with Line(self.places) as line:
            return [line.pid, *procfs.children(line.pid)]

    def stop_broker(self) -> None:
        """Stop the broker where one runs, and wait until it is gone."""
        with contextlib.suppress(BrokerUnavailable):
            stop_broker(self.places, PATIENCE)


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    """A runtime folder, Jupyter folders and an environment of our own; nothing of it stays."""
    folder = Path(tempfile.mkdtemp(prefix="gpushare-bench-"))
    folder.chmod(0o755)  # other users find the socket in it
    try:
        with environment({"GPUSHARE_RUNTIME_DIR": str(folder / "run"), **jupyter_folders(folder)}):
            stage = Stage(folder, places())
            try:
                yield stage
            finally:
                stage.stop_broker()  # whoever started it
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def jupyter_folders(folder: Path) -> dict[str, str]:
    """Return variables that keep a user's own kernelspecs, profiles and history out of it."""
    return {
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "IPYTHONDIR": str(folder / "ipython"),
    }


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Run the block with `variables`, and without what a session of ours around us left."""
    before = dict(os.environ)
    for name in (*KERNEL_VARIABLES, DEFAULT_PROVISIONER, "JUPYTER_PATH"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def progress(text: str) -> None:
    """Say on stderr how far we are; stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def as_json(
    name: str,
    question: str,
    described: Mapping[str, Any],
    figures: Sequence[Figure],
    *,
    quick: bool,
) -> dict[str, Any]:
    """Return a result as it is kept."""
    return {
        "benchmark": name,
        "question": question,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": dict(described),
        "figures": {
            f.name: {"unit": f.unit, "values": [round(v, _DIGITS) for v in f.values]}
            for f in figures
        },
        "medians": {f.name: round(f.median, _DIGITS) for f in figures},
        "spread": {f.name: [round(v, _DIGITS) for v in f.spread] for f in figures},
        "target": {f.name: f.target for f in figures if f.target},
        "missed": [f.name for f in figures if not f.met],
        "met": all(f.met for f in figures),
    }


def print_table(question: str, described: Mapping[str, Any], figures: Sequence[Figure]) -> None:
    """Print figures for people."""
    print(question)
    print(
        f"{described['cpu']}, {described['cores']:g} cores, Linux {described['kernel']}, "
        f"Python {described['python']}, load {described['load'][0]:g}"
    )
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        low, high = figure.spread
        line = f"  {figure.name:<{width}}  {figure.median:10.4g} {figure.unit:<10} [{low:.4g} .. {high:.4g}]"
        if figure.target:
            line += f"  must be {figure.target}: {'met' if figure.met else 'MISSED'}"
        print(line)


def _autogroup() -> bool:
    try:
        return (
            Path("/proc/sys/kernel/sched_autogroup_enabled").read_text(encoding="ascii").strip()
            == "1"
        )
    except OSError:
        return False
