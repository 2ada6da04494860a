"""User A with three one-thread kernels, user B with one: real users, a system broker. See README.md."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress, staged
from benchmarks.kernels import LOCAL, SHARED, Counters, Window, beside, window
from benchmarks.user_shares.users import Driver, installed, laid_out, may_run, users

QUESTION = (
    "User A with three one-thread kernels, user B with one: who gets how much, and of what total?"
)
NUMBERS = (3, 1)


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows of four shared kernels and four local ones, each sort three of A's and one of B's."""
    missing = may_run()
    if missing:
        msg = f"this benchmark makes users and acts for them: it needs {', '.join(missing)}"
        raise SystemExit(msg)
    pairs, seconds = (2, 6.0) if options.quick else (5, 20.0)
    shared: list[Window] = []
    free: list[Window] = []
    python = installed()
    with users(2) as names, staged() as stage, stage.broker(), contextlib.ExitStack() as ends:
        laid_out(stage.folder)
        arms: dict[str, list] = {SHARED: [], LOCAL: []}
        for provisioner in arms:
            for name, number in zip(names, NUMBERS, strict=True):
                home = stage.folder / provisioner
                home.mkdir(exist_ok=True)
                driver = ends.enter_context(Driver(name, python, stage.folder, home))
                arms[provisioner] += driver.start(provisioner, number)
        counters = Counters(stage.folder / "counters")
        for n in range(pairs):
            shared.append(window(counters, arms[SHARED], seconds=seconds, besides=stage.pids))
            free.append(window(counters, arms[LOCAL], seconds=seconds))
            progress(
                f"pair {n + 1} of {pairs}: A {_of_a(shared[-1]):.1f} % of {shared[-1].total:.0f}, "
                f"free {_of_a(free[-1]):.1f} % of {free[-1].total:.0f}"
            )
        counters.close()
    ratios = [100 * a.total / b.total for a, b in zip(shared, free, strict=True)]
    return (
        Figure(
            "share_of_a",
            "%",
            [_of_a(one) for one in shared],
            at_least=48.0,
            at_most=52.0,
            worst=True,
        ),
        Figure("total_of_free", "%", ratios, at_least=95.0),
        Figure("share_of_a_free", "%", [_of_a(one) for one in free]),
        *beside(shared, "shared"),
        *beside(free, "free"),
    )


def _of_a(one: Window) -> float:
    return sum(one.shares[: NUMBERS[0]])


if __name__ == "__main__":
    sys.exit(main("user_shares", QUESTION, measure))
