"""What every GPU row has: its options, its stage with a broker, and its result with the GPU's facts in it."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.common import (
    Figure,
    NotMeasured,
    Options,
    Stage,
    add_rounds,
    as_json,
    environment,
    machine,
    print_table,
    progress,
    staged,
)
from benchmarks.gpu import checkout, facts
from gpushare_kernel.broker.options import parser
from gpushare_kernel.client.line import Line

NOT_MEASURED = 3
NOTES: list[str] = []
"""What this run's result says beside its figures."""
_LOG_LINES = 40
HOST_NOTICE = (
    "CPU stand-ins (--device host): this shows that the script works, and nothing about a GPU"
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How many windows, how long, and how long kernels work before they are counted (seconds).

    Shared kernels get two seconds: that is how long classifying a job may take. The driver shares at once.
    """

    rounds: int
    seconds: float
    settle: float = 2.0
    settle_free: float = 0.3

    @classmethod
    def of(cls, options: Options, rounds: int, seconds: float) -> Pace:
        """Return a row's pace, or a short one that is not for keeping."""
        if options.quick:
            return cls(rounds=2, seconds=min(seconds, 1.0), settle=0.5)
        return cls(rounds, seconds)


def row(
    name: str, question: str, measure: Callable[[Options], Sequence[Figure]], *, rounds: int = 0
) -> int:
    """Measure a row and print it; return 0 (all met), 1 (one missed) or 3 (cannot be measured here). `rounds` as in `main`."""
    parsed = _options(name, question)
    add_rounds(parsed, rounds)
    given = parsed.parse_args()
    often = 1 if given.quick else given.rounds
    options = Options(given.quick, given.device, tuple(shlex.split(given.broker)), often)
    leave_on_signals()  # the one script's limit: end kernels and broker first
    described = {**machine(), **facts.gpus(), "versions": facts.versions()}
    if options.device == "host":
        print(HOST_NOTICE, file=sys.stderr, flush=True)
    try:
        figures: Sequence[Figure] = measure(options)
        why = ""
    except NotMeasured as reason:
        figures, why = (), str(reason)
    found = {
        **as_json(name, question, described, figures, quick=options.quick),
        "device": options.device,
        "command": ["python", f"benchmarks/{name}/run.py", *sys.argv[1:]],
    }
    if options.device == "host":
        found["notice"] = HOST_NOTICE
    if NOTES:
        found["notes"] = NOTES
    if why:
        found |= {"not_measured": why, "met": False}
    if given.json:
        print(json.dumps(found))
    elif why:
        print(f"{question}\n  not measured: {why}")
    else:
        print_table(question, described, figures)
    return NOT_MEASURED if why else 0 if found["met"] else 1


def note(text: str) -> None:
    """Say something that belongs to the result: where a size came from, what a cell showed, why something was not done."""
    progress(text)
    NOTES.append(text)


@contextlib.contextmanager
def shared_house(options: Options, *arguments: str, foreign: str = "ignore") -> Iterator[Stage]:
    """Have a stage with a broker on the device that was asked for; nothing pretends to be a GPU.

    The free kernels of a row are processes that nobody announced: unless that is what is measured, the broker must
    not adopt them (`foreign`).
    """
    said = [*options.broker, *arguments]
    if "--foreign" in parser().format_help():  # a broker that adopts can be told not to
        said += ["--foreign", foreign]
    with house() as stage, stage.broker(*said):
        with Line(stage.places) as line:
            kinds = [device.kind for device in line.snapshot().devices]
        if kinds.count("cuda") != (options.device == "cuda"):
            reason = (
                f"a row is for {'one GPU' if options.device == 'cuda' else 'the CPU'}, but the broker shares "
                f"{', '.join(kinds) or 'none'}: see jupyter gpushare doctor"
            )
            raise NotMeasured(reason)
        yield stage


@contextlib.contextmanager
def house() -> Iterator[Stage]:
    """Have a stage without a broker, on which the checkout is found by every process. What fails shows the logs."""
    with staged() as stage:
        variables = checkout.environment(stage.folder / "site")
        checkout.adopt(variables["PYTHONPATH"])
        with environment(variables):
            try:
                yield stage
            except Exception as problem:
                if not isinstance(problem, NotMeasured):
                    _show_logs(stage)
                raise


def _show_logs(stage: Stage) -> None:
    """Print the ends of the kernels' log and the broker's: the folder they are in goes away."""
    for path in (stage.folder / "jupyter" / "kernels.log", stage.places.log):
        with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
            progress(f"--- the end of {path.name}")
            for line in deque(lines, maxlen=_LOG_LINES):
                progress(line.rstrip())


def _options(name: str, question: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog=f"benchmarks/{name}/run.py", description=question)
    found.add_argument("--json", action="store_true", help="print one JSON object")
    found.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    found.add_argument(
        "--device",
        choices=("cuda", "host"),
        default="cuda",
        help="host: stand-ins on the CPU, to see that the script works without a GPU",
    )
    found.add_argument(
        "--broker", default="", metavar="ARGUMENTS", help="further arguments for the broker"
    )
    return found


def leave_on_signals() -> None:
    """Have SIGTERM and SIGHUP unwind this process, so that whatever it started is ended."""

    def leave(signum: int, frame: object) -> None:  # noqa: ARG001  the signature of a handler
        signal.signal(signum, signal.SIG_IGN)  # the first one is enough
        raise SystemExit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, leave)
