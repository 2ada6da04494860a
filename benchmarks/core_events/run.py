"""The scheduler by itself: microseconds an event, with 100 and with 10,000 sessions. See README.md."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from benchmarks.core_events.gpu_world import GpuWorld
from benchmarks.core_events.world import MIX, World
from gpushare_kernel.core.policies import POLICIES
from gpushare_kernel.core.validate import validate

QUESTION = "The scheduler alone: what does an event take under each policy, with 100 and with 10,000 sessions?"
SMALL, LARGE = 100, 10_000
ANSWERS = ("Paused", "BoundaryReached", "Parked", "Restored")
KINDS: dict[str, type[World]] = {"": World, "gpu_": GpuWorld}
"""What figures of each kind of device begin with."""
TURNED = {
    ("", "fair"): ("Pause", "Ask"), ("", "srtf"): ("Pause",),
    ("gpu_", "fair"): ("Park", "Ask"), ("gpu_", "srtf"): ("Pause", "Park"), ("gpu_", "pack"): ("Park",),
}  # fmt: skip
"""What must have come of the events at 10,000 sessions, where turns pass or memory is short."""
Which = tuple[str, str, int]
"""Kind of device, policy, number of sessions."""


def measure(options: Options) -> Sequence[Figure]:
    """Rounds of both sizes and all policies in turns, in worlds that live on; every rule is checked between rounds."""
    rounds, events = (3, 2_000) if options.quick else (7, 10_000)
    gc.collect()
    gc.freeze()  # as the broker does before it has sessions
    worlds: dict[Which, World] = {
        (kind, policy, number): made(number, policy=policy)
        for kind, made in KINDS.items()
        for policy in POLICIES
        for number in (SMALL, LARGE)
    }
    times: dict[Which, list[float]] = {which: [] for which in worlds}
    answers: dict[Which, list[float]] = {which: [] for which in worlds}
    collected: list[float] = []
    for world in worlds.values():
        world.run(2_000)  # to a steady state
    for n in range(rounds):
        before = _collections()
        for which, world in worlds.items():
            known = world.counts.copy()
            times[which].append(world.run(events))
            seen = {name: world.counts[name] - known[name] for name in MIX}
            _check_mix(world, seen, events, which[0])
            _check_work(world, which)
            answers[which].append(
                sum(world.counts[kind] - known[kind] for kind in ANSWERS) / events * 1000
            )
        collected.append(float(_collections() - before))
        told = ", ".join(f"{k}{p} {times[k, p, LARGE][-1]:.0f} us" for k in KINDS for p in POLICIES)
        progress(f"round {n + 1} of {rounds}: {told}")
    found = []
    for kind in KINDS:
        for policy in POLICIES:
            _check_replay(worlds[kind, policy, SMALL], kind, policy)
            large, small = times[kind, policy, LARGE], times[kind, policy, SMALL]
            ratios = [a / b for a, b in zip(large, small, strict=True)]
            most = (
                None if kind else 2.0
            )  # with 100 sessions a GPU has memory for all: that is other work
            found += [
                Figure(f"{kind}event_at_10000_{policy}", "us", large, at_most=100.0),
                Figure(f"{kind}ratio_10000_to_100_{policy}", "times", ratios, at_most=most),
                Figure(f"{kind}event_at_100_{policy}", "us", small),
                Figure(f"{kind}answers_at_10000_{policy}", "in 1000", answers[kind, policy, LARGE]),
            ]
    return (*found, Figure("gc_passes_a_round", "passes", collected))


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def _check_mix(world: World, seen: dict[str, int], events: int, kind: str) -> None:
    """The events of the round were those of the mix; what found nobody to happen to became samples.

    On a GPU few jobs run at a time, and only those end: some are cancelled instead.
    """
    mix = dict(MIX)
    if kind:
        for counts in (mix, seen):
            counts["JobEnded"] += counts.pop("JobCancelled")
    for name, number in mix.items():
        due = number * events / 1000
        if not 0.5 * due - 5 <= seen[name] <= (1.4 if name == "Sampled" else 1.1) * due + 5:
            msg = f"{seen[name]} {name} in {events} events with {world.number} sessions; the mix has {due:g}"
            raise AssertionError(msg)


def _check_work(world: World, which: Which) -> None:
    """Nothing was left out: the rules hold, every job is accounted for, and turns passed."""
    validate(world.core)
    done = world.outcomes
    waiting = sum(1 for job in world.core.jobs.values() if job.granted is None and not job.plain)
    first = done["submitted"] - done["lost"] - waiting
    kind, policy, number = which
    turned = TURNED.get((kind, policy), ()) if number == LARGE or not kind else ()
    if not 0 < first <= done["Grant"] or not all(done[kind] for kind in turned):
        msg = f"{world.number} sessions: {first} jobs began, with {dict(done)}"
        raise AssertionError(msg)


def _check_replay(world: World, kind: str, policy: str) -> None:
    """The same seed gives the same instructions (I10)."""
    again = KINDS[kind](world.number, policy=policy)
    again.run(world.ran)
    if again.digest.digest() != world.digest.digest():
        msg = "the same events gave other instructions"
        raise AssertionError(msg)


if __name__ == "__main__":
    sys.exit(main("core_events", QUESTION, measure))
