"""Forty small jobs under PACK, against one at a time. See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import FREE, SEEN, Arm, notebooks, several
from benchmarks.gpu.row import row, shared_house

QUESTION = "Forty small jobs, start-up included: how much sooner are they done under PACK than one at a time?"
KIND = "lstm"
WORK = 5.0
"""Seconds of training in each job, alone."""
ALONE = "took = repeat({kind!r}, {times})"
PACKED = """
import gpushare_kernel as gpushare
with gpushare.lane("1GiB", time={seconds}):
    took = repeat({kind!r}, {times})
"""


def measure(options: Options) -> Sequence[Figure]:
    """All at once under PACK; then some of them one after the other, in kernels without gpushare."""
    number, alone, work = (6, 2, 0.5) if options.quick else (40, 10, WORK)
    with shared_house(options, "--policy", "pack"):
        times = _calibrated(options, work)
        packed = _jobs(options, SEEN, number, times, work)
        progress(f"{number} under PACK: {packed:.1f} s")
        serial = []
        for n in range(alone):
            serial.append(_jobs(options, FREE, 1, times, work))
            progress(f"{n + 1} of {alone} alone: {serial[-1]:.1f} s")
    whole = sum(serial) * number / alone
    return [
        Figure("sooner", "times", [whole / packed], at_least=2.4),
        Figure("packed", "s", [packed]),
        Figure("one_at_a_time_scaled", "s", [whole]),
        Figure("one_job", "s", serial),
        Figure("jobs", "jobs", [float(number)]),
        Figure("jobs_of_the_serial_arm", "jobs", [float(alone)]),
    ]


def _calibrated(options: Options, seconds: float) -> int:
    """Return how many steps take `seconds` alone."""
    with notebooks(several(FREE, 1), options.device, [KIND]) as (one,):
        one.run(f"repeat({KIND!r}, 20)")
        took = one.run(f"took = repeat({KIND!r}, 100)", "took", timeout=300)
    return max(1, round(seconds * 100 / took))


def _jobs(options: Options, arm: Arm, number: int, times: int, work: float) -> float:
    """Return the seconds from starting `number` kernels at once until the last of their jobs is done."""
    start = time.monotonic()
    code = (PACKED if arm is SEEN else ALONE).format(kind=KIND, times=times, seconds=work)
    with notebooks(several(arm, number), options.device, [KIND]) as started:
        for one in started:
            one.begin(code, "took")
        for one in started:
            one.finish(600.0)
        return time.monotonic() - start


if __name__ == "__main__":
    sys.exit(row("gpu_pack", QUESTION, measure))
