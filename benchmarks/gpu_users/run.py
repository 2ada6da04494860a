"""User A with three kernels that saturate the GPU, user B with one: real uids, a system broker. See README.md."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import FREE, SEEN, Arm
from benchmarks.gpu.people import Driver, People, RemoteNotebook
from benchmarks.gpu.row import Pace, row, shared_house
from benchmarks.gpu.windows import Floor, Job, Seen, warm_clock
from benchmarks.kernels import Counters

QUESTION = "User A with 3 kernels, user B with 1, all saturating: who gets how much?"
NUMBERS = (3, 1)
KIND = "matmul"


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows of four shared kernels and four free ones, three of A's and one of B's each."""
    pace = Pace.of(options, 5, 5.0)
    shared: list[Seen] = []
    free: list[Seen] = []
    with shared_house(options) as stage, contextlib.ExitStack() as ends:
        people = People(stage.folder, 2, imports="torch" if options.device == "cuda" else "")
        drivers = [ends.enter_context(Driver(people, uid)) for uid in people.uids]
        ours, theirs = (_start(drivers, arm, options.device) for arm in (SEEN, FREE))
        floor = Floor(stage, Counters(stage.folder / "counters"))
        warm_clock([theirs[-1]], KIND, floor)  # B's driver has that one only
        for n in range(pace.rounds):
            shared.append(_window(floor, ours, pace.seconds, pace.settle))
            if n < 2:
                free.append(_window(floor, theirs, pace.seconds, pace.settle_free))
            progress(f"round {n + 1} of {pace.rounds}: A {_of_a(shared[-1]):.1f} %")
        explained = floor.explained()
        floor.counters.close()
    of_a = [_of_a(one) for one in shared]
    return [
        Figure("share_of_a", "%", of_a, at_least=48.0, at_most=52.0, worst=True),
        Figure("share_of_a_free", "%", [_of_a(one) for one in free]),
        Figure("ledger_error", "points", [abs(_of_a(s) - sum(s.ledger[:3])) for s in shared]),
        Figure("total_shared", "steps/s", [one.total for one in shared]),
        Figure("total_free", "steps/s", [one.total for one in free]),
        *explained,
    ]


def _start(drivers: Sequence[Driver], arm: Arm, place: str) -> list[RemoteNotebook]:
    for driver, number in zip(drivers, NUMBERS, strict=True):
        driver.send(arm, number, [KIND], place)
    return [notebook for driver in drivers for notebook in driver.meet(arm)]


def _window(floor: Floor, workers: Sequence[RemoteNotebook], seconds: float, settle: float) -> Seen:
    return floor.window([Job(one, KIND) for one in workers], seconds=seconds, settle=settle)


def _of_a(one: Seen) -> float:
    return sum(one.shares[: NUMBERS[0]])


if __name__ == "__main__":
    sys.exit(row("gpu_users", QUESTION, measure))
