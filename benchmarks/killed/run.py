"""Broker, guardian or both are killed while kernels stand still: how long do they? See README.md."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import ROOT, Figure, Options, main, progress, staged
from benchmarks.killed.host import hosted

QUESTION = "Broker, guardian or both are killed while kernels stand still: how long do they?"
TRIALS = 200
UNPOLLED = 50
ROUND = 4
"""Kills of a sort on one host: a guardian starts a broker at most five times in a minute."""
SIDE_BY_SIDE = 3
"""Hosts at a time."""
SECONDS = float(os.environ.get("KILLED_SECONDS", "3600"))
"""No round begins later than that; what is missing then is a miss (`trials`)."""
Times = dict[str, list[float]]


def measure(options: Options) -> Sequence[Figure]:
    """Share the rounds out to a few processes, each with hosts of its own."""
    rounds = 2 if options.quick else TRIALS // ROUND
    unpolled = 1 if options.quick else -(-UNPOLLED // ROUND)
    parts = [
        subprocess.Popen(
            [
                *(sys.executable, __file__, "--part", str(n)),
                str(len(range(n, rounds, SIDE_BY_SIDE))),
                str(len(range(n, unpolled, SIDE_BY_SIDE))),
            ],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for n in range(SIDE_BY_SIDE)
    ]
    times: Times = {}
    for part in parts:
        said, _ = part.communicate()
        if part.returncode:
            msg = f"a part of the trials ended with {part.returncode}"
            raise AssertionError(msg)
        for name, values in json.loads(said).items():
            times.setdefault(name, []).extend(values)
    survived = [seconds for seconds in times["no_server"] if seconds >= 0]
    return (
        Figure("broker_killed", "s", times["broker"], at_most=1.0, worst=True),
        Figure("guardian_killed", "s", times["guardian"], at_most=1.0, worst=True),
        Figure("both_killed", "s", times["both"], at_most=5.0, worst=True),
        Figure("both_killed_no_server", "s", survived, at_most=5.0, worst=True),
        Figure(
            "trials", "each", [float(len(times["both"]))], at_least=8 if options.quick else TRIALS
        ),
        Figure(
            "no_server_and_all_still", "of those", [float(len(times["no_server"]) - len(survived))]
        ),
    )


def _part(number: int, rounds: int, unpolled: int) -> Times:
    random.seed(number)
    times: Times = {"broker": [], "guardian": [], "both": [], "no_server": []}
    until = time.monotonic() + SECONDS
    for n in range(rounds):
        if time.monotonic() > until:
            break
        with contextlib.ExitStack() as stack:
            host = stack.enter_context(hosted(stack.enter_context(staged())))
            for _ in range(ROUND):
                times["guardian"].append(host.kill_guardian())
                times["broker"].append(host.kill_broker())
            for _ in range(ROUND):
                times["both"].append(host.kill_both(polled=True))
            for _ in range(ROUND if n < unpolled else 0):
                times["no_server"].append(host.kill_both(polled=False))
            host.broker()
            host.check()
        worst = ", ".join(f"{name} {max(v):.3f}" for name, v in times.items() if v)
        progress(f"host {n + 1} of {rounds}: at worst {worst} s")
    return times


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(_part(*map(int, sys.argv[2:5]))))
        sys.exit()
    sys.exit(main("killed", QUESTION, measure))
