"""From one kernel's yield to the other kernel's grant. See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, percentile, progress, staged
from benchmarks.kernels import SHARED, Kernel, kernels

QUESTION = (
    "Two cooperative loops pass the turn: how long from release to grant in the other kernel?"
)
LOOP = Path(__file__).with_name("loop.py").read_text(encoding="utf-8")
TURN = 0.02
#: A boundary met, the yield sent, granted again: ns on one clock; and which kernel.
Stamp = tuple[int, int, int]


def measure(options: Options) -> Sequence[Figure]:
    """Let two kernels pass the turn for some windows, and pair each release with the grant that followed."""
    windows, seconds = (3, 3.0) if options.quick else (11, 10.0)
    medians, tails, whole, every, each = [], [], [], [], []
    with (
        staged() as stage,
        stage.broker("--compute", "1", "--turn", str(TURN)),
        kernels(SHARED, 2) as pair,
    ):
        for kernel in pair:
            kernel.run(LOOP)
        for n in range(windows):
            stamps = window(pair, seconds)
            sent, met = hand_overs(stamps, since=1), hand_overs(stamps, since=0)
            if len(sent) < 0.2 * seconds / TURN:
                msg = f"{len(sent)} hand-overs in {seconds:g} s of turns of {TURN:g} s: the loops do not pass it"
                raise AssertionError(msg)
            medians.append(percentile(sent, 50))
            tails.append(percentile(sent, 99))
            whole.append(percentile(met, 50))
            each.append(float(len(sent)))
            every += sent
            progress(
                f"window {n + 1} of {windows}: {len(sent)}, median {medians[-1]:.0f} us, p99 {tails[-1]:.0f} us"
            )
    return (
        Figure("release_to_grant", "us", medians, at_most=150.0),
        Figure("release_to_grant_p99", "us", tails),
        Figure("release_to_grant_p99_all", "us", [percentile(every, 99)]),
        Figure("boundary_to_grant", "us", whole),
        Figure("hand_overs", "a window", each),
    )


def window(pair: Sequence[Kernel], seconds: float) -> list[list[Stamp]]:
    """Let both loop for a while; return the stamps of each."""
    until = time.monotonic() + seconds
    for kernel in pair:
        kernel.begin(f"stamps = hand_over({until})", "stamps")
    return [[tuple(stamp) for stamp in kernel.finish(timeout=60)] for kernel in pair]


def hand_overs(stamps: Sequence[Sequence[Stamp]], *, since: int) -> list[float]:
    """Return the microseconds from each release to the other kernel's next grant.

    A release with no grant of the other before its own next one passed nothing on (the broker granted the
    same kernel again), and is left out.
    """
    found = []
    for own, other in (stamps, stamps[::-1]):
        grants = iter(stamp[2] for stamp in other)
        granted = next(grants, None)
        for stamp in own:
            while granted is not None and granted < stamp[1]:
                granted = next(grants, None)
            if granted is not None and granted < stamp[2]:
                found.append((granted - stamp[since]) / 1000)
    return found


if __name__ == "__main__":
    sys.exit(main("handover", QUESTION, measure))
