"""Two trainings whose activations fit the GPU only once, in one lane. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import FREE, SEEN, several
from benchmarks.gpu.reckoning import ratios
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job, Seen, warm_clock
from benchmarks.kernels import CellFailed

QUESTION = (
    "2 torch kernels whose activations fit only once: out of memory? And the total of one alone?"
)
KIND = "wide"
DECLARED = {
    "cuda": ("11GiB", "%%gpulane -p 1536MiB -e 5GiB"),
    "host": ("3GiB", "%%gpulane -p 64MiB -e 2GiB"),
}
"""The broker's capacity, in which both P, two contexts and E once find room and E twice does not; and the cell's line."""
HOST_STEP = """
import gpushare_kernel as gpushare
_plain = _steps["wide"]
def _meeting():
    _plain()
    gpushare.current_lane().step()
_steps["wide"] = _meeting
"""
"""On the CPU no adapter sees a boundary: the stand-in meets it by itself."""


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows: both in one lane, one of them alone in it, a free one alone."""
    pace = Pace.of(options, 5, 4.0)
    capacity, magic = DECLARED[options.device]
    both: list[Seen] = []
    one: list[Seen] = []
    free: list[Seen] = []
    failed = 0
    wanted = [*several(SEEN, 2), *several(FREE, 1)]
    with scene(options, wanted, [], "--capacity", capacity) as (floor, kernels):
        *ours, theirs = kernels
        for kernel in ours:
            kernel.run(f"{magic}\nprepare({KIND!r}, {options.device!r})", timeout=120)
            if options.device == "host":
                kernel.run(HOST_STEP)
        theirs.run(f"prepare({KIND!r}, {options.device!r})", timeout=120)
        jobs, alone = [Job(kernel, KIND, magic) for kernel in ours], [Job(theirs, KIND)]
        warm_clock([theirs], KIND, floor)
        for n in range(pace.rounds):
            try:
                both.append(floor.window(jobs, seconds=pace.seconds, settle=pace.settle))
                one.append(floor.window(jobs[:1], seconds=2.0, settle=pace.settle_free))
            except CellFailed as failure:
                if "OutOfMemory" not in str(failure):
                    raise
                failed += 1
                progress(str(failure)[-500:])
                break  # its mate still works: what follows would not be a window
            free.append(floor.window(alone, seconds=2.0, settle=pace.settle_free))
            progress(f"round {n + 1} of {pace.rounds}: {both[-1].total / free[-1].total:.3f}")
        explained = floor.explained()
    out = Figure("out_of_memory", "", [float(failed)], at_most=0.0)
    if failed:
        return [out, *explained]
    totals = [[each.total for each in windows] for windows in (both, one, free)]
    return [
        out,
        Figure("total_of_alone", "", ratios(totals[0], totals[2]), at_least=0.90),
        Figure("least_share", "%", [min(each.shares) for each in both]),
        Figure("one_in_its_lane_of_alone", "", ratios(totals[1], totals[2])),
        Figure("alone", "steps/s", totals[2]),
        *explained,
    ]


if __name__ == "__main__":
    sys.exit(row("gpu_lane_mates", QUESTION, measure))
