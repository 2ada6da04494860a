"""How long does a replay of 10,000 jobs take, under each policy, with parking and without? See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from time import process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from gpushare_kernel.replay.engine import Settings, replay
from gpushare_kernel.replay.salus import CAPACITY, read_salus
from gpushare_kernel.replay.trace import TraceJob

QUESTION = (
    "A replay of 10,000 jobs: how long does it take, under each policy, with parking and without?"
)
DATA = Path(__file__).resolve().parents[1] / "salus_table" / "data"
JOBS, USERS, SPACING = 10_000, 200, 29.8
"""Jobs and users of the trace; seconds between submissions, as in Salus' trace: six times what the device can do."""
POLICIES = ("fifo", "srtf", "pack", "fair")
ARMS = {
    f"{policy}{'_parking' if parking else ''}": Settings(policy=policy, capacity=CAPACITY, parking=parking)
    for parking in (False, True)
    for policy in POLICIES
}  # fmt: skip


def measure(options: Options) -> Sequence[Figure]:
    """Each policy, with parking and without, in turns; a round that has other events, or leaves a job undone, is an error."""
    jobs = trace(1_000 if options.quick else JOBS)
    rounds = 1 if options.quick else 3
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    events: dict[str, set[int]] = {name: set() for name in ARMS}
    for n in range(rounds):
        for name, settings in ARMS.items():
            before = process_time()
            outcome = replay(jobs, settings)
            seconds[name].append(process_time() - before)
            events[name].add(outcome.events)
            if len(outcome.jobs) != len(jobs) or len(events[name]) > 1:
                msg = f"{name}: {len(outcome.jobs)} of {len(jobs)} jobs, events {events[name]}"
                raise AssertionError(msg)
        progress(
            f"round {n + 1} of {rounds}: "
            + ", ".join(f"{name} {s[-1]:.1f}" for name, s in seconds.items())
        )
    return [
        *(Figure(f"{name}_10000_jobs", "s CPU", seconds[name], at_most=10.0) for name in ARMS),
        *(Figure(f"{name}_events", "events", [*map(float, events[name])]) for name in ARMS),
    ]


def trace(number: int) -> list[TraceJob]:
    """Jobs drawn from Salus' trace, evenly spaced."""
    chance, known = Random(1), read_salus(DATA, 0)
    return [
        replace(chance.choice(known), name=str(n), submitted=n * SPACING, user=f"u{n % USERS}")
        for n in range(number)
    ]


if __name__ == "__main__":
    raise SystemExit(main("replay_speed", QUESTION, measure))
