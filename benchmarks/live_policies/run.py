"""Twenty jobs of Salus' trace, scaled, in real kernels under each policy, beside their replay. See README.md."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress, staged
from benchmarks.kernels import SHARED, Kernel
from benchmarks.live_policies.jobs import POLICIES, Beside, run, scaled
from gpushare_kernel.core.values import GiB
from gpushare_kernel.replay.engine import Settings
from gpushare_kernel.replay.law import Law

QUESTION = "Twenty scaled jobs in real kernels: do their completion times follow the replay, under each policy?"
STEP = 0.02
"""Seconds of one iteration, alone."""
TURN = 0.04
"""Seconds of a usual turn (PACK's is ten of them): the jobs are scaled down, and turns of their length would decide who ends when."""
CORE = Law(together=1.0, friction=0.0)
"""One core: what runs at the same time shares it, and loses nothing."""
PREPARE = """
import os, time
import gpushare_kernel as gpushare
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # all on one core, which the broker shares out
def iteration(size):
    total = 0
    for n in range(size):
        total += n
"""
CALIBRATE = """
for _ in range({number}):
    iteration({size})
began = time.thread_time()
for _ in range({number}):
    iteration({size})
took = time.thread_time() - began
"""
JOB = """
began = time.thread_time()
with gpushare.lane(persistent={persistent}, ephemeral={ephemeral}, time={time}) as lane:
    for _ in range({number}):
        iteration({size})
        lane.step()
took, ended = time.thread_time() - began, time.monotonic()
get_ipython().run_line_magic("gpushare", "release")
"""


def measure(options: Options) -> Sequence[Figure]:
    """The policies in turns, each live, then replayed with the work that each job was: processor seconds of its own thread."""
    number, whole, rounds = (6, 6.0, 1) if options.quick else (20, 60.0, options.rounds)
    jobs, beside = scaled(number, whole, STEP, memory=0.5), Beside()
    with staged() as stage, contextlib.ExitStack() as ends:
        ends.enter_context(
            stage.broker("--compute", "1", "--capacity", "8GiB", "--turn", f"{TURN}")
        )
        kernels = []
        for _ in jobs:
            kernels.append(Kernel(SHARED).start())
            ends.callback(kernels[-1].close)
            kernels[-1].run(PREPARE)
        size = _size(kernels[0])
        for n in range(rounds):
            for policy in POLICIES:
                found = run(stage.places, kernels, jobs, policy, JOB, size=size)
                settings = Settings(policy, capacity=8 * GiB, turn=TURN, law=CORE)
                progress(f"round {n + 1} of {rounds}, {beside.add(jobs, found, settings)}")
    return beside.figures()


def _size(kernel: Kernel) -> int:
    """Return how many additions take `STEP` seconds."""
    size, number = 200_000, 100
    took = kernel.run(CALIBRATE.format(number=number, size=size), "took")
    return max(1, round(size * STEP * number / took))


if __name__ == "__main__":
    sys.exit(main("live_policies", QUESTION, measure, rounds=3))
