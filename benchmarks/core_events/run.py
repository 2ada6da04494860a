"""The scheduler by itself: microseconds an event, with 100 and with 10,000 sessions. See README.md."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from benchmarks.core_events.world import MIX, World
from gpushare_kernel.core.validate import validate

QUESTION = "The scheduler alone: what does an event take, with 100 and with 10,000 sessions?"
SMALL, LARGE = 100, 10_000
ANSWERS = ("Paused", "BoundaryReached")


def measure(options: Options) -> Sequence[Figure]:
    """Rounds of both sizes in turns, in two worlds that live on; every rule is checked between rounds."""
    rounds, events = (3, 2_000) if options.quick else (11, 10_000)
    gc.collect()
    gc.freeze()  # as the broker does before it has sessions
    worlds = {number: World(number) for number in (SMALL, LARGE)}
    times: dict[int, list[float]] = {SMALL: [], LARGE: []}
    answers: dict[int, list[float]] = {SMALL: [], LARGE: []}
    collected: list[float] = []
    for world in worlds.values():
        world.run(2_000)  # to a steady state
    for n in range(rounds):
        before = _collections()
        for number, world in worlds.items():
            known = world.counts.copy()
            times[number].append(world.run(events))
            _check_mix(world, {kind: world.counts[kind] - known[kind] for kind in MIX}, events)
            _check_work(world)
            answers[number].append(
                sum(world.counts[kind] - known[kind] for kind in ANSWERS) / events * 1000
            )
        collected.append(float(_collections() - before))
        progress(f"round {n + 1} of {rounds}: {times[SMALL][-1]:.1f} and {times[LARGE][-1]:.1f} us")
    _check_replay(worlds[SMALL])
    ratios = [a / b for a, b in zip(times[LARGE], times[SMALL], strict=True)]
    return (
        Figure("event_at_10000", "us", times[LARGE], at_most=100.0),
        Figure("ratio_10000_to_100", "times", ratios, at_most=2.0),
        Figure("event_at_100", "us", times[SMALL]),
        Figure("answers_at_10000", "in 1000", answers[LARGE]),
        Figure("answers_at_100", "in 1000", answers[SMALL]),
        Figure("gc_passes_a_round", "passes", collected),
    )


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def _check_mix(world: World, seen: dict[str, int], events: int) -> None:
    """The events of the round were those of the mix; what found nobody to happen to became samples."""
    for kind, number in MIX.items():
        due = number * events / 1000
        if not 0.5 * due - 5 <= seen[kind] <= (1.4 if kind == "Sampled" else 1.1) * due + 5:
            msg = f"{seen[kind]} {kind} in {events} events with {world.number} sessions; the mix has {due:g}"
            raise AssertionError(msg)


def _check_work(world: World) -> None:
    """Nothing was left out: the rules hold, every job is accounted for, and turns passed."""
    validate(world.core)
    done = world.outcomes
    waiting = sum(1 for job in world.core.jobs.values() if job.granted is None and not job.plain)
    first = done["submitted"] - done["Refuse"] - done["Drop"] - waiting
    if not 0 < first <= done["Grant"] or not done["Pause"] or not done["Ask"]:
        msg = f"{world.number} sessions: {first} jobs began, with {dict(done)}"
        raise AssertionError(msg)


def _check_replay(world: World) -> None:
    """The same seed gives the same instructions (I10)."""
    again = World(world.number)
    again.run(world.ran)
    if again.digest.digest() != world.digest.digest():
        msg = "the same events gave other instructions"
        raise AssertionError(msg)


if __name__ == "__main__":
    sys.exit(main("core_events", QUESTION, measure))
