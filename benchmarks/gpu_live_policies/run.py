"""Twenty jobs of Salus' trace, scaled, on a GPU under each policy, beside their replay. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import SEEN, Notebook, several, together
from benchmarks.gpu.row import row
from benchmarks.gpu.scene import scene
from benchmarks.live_policies.jobs import POLICIES, Beside, run, scaled
from gpushare_kernel.client.line import Line
from gpushare_kernel.core.values import GiB
from gpushare_kernel.replay.engine import Settings
from gpushare_kernel.transport.places import Places
from gpushare_kernel.wire.messages import SetPolicy

QUESTION = (
    "Twenty scaled jobs on a GPU: do their completion times follow the replay, under each policy?"
)
KIND = "conv"
JOB = """
with gpushare.lane(persistent={persistent}, ephemeral={ephemeral}, time={time}):
    steps = timed({kind!r}, {number})
took, ended = {time} if {together} else {number} * sorted(steps)[{number} // 2], time.monotonic()
get_ipython().run_line_magic("gpushare", "release")
"""


def measure(options: Options) -> Sequence[Figure]:
    """Each policy live, then replayed with the work that each job was: its steps by their median, which no pause is in.

    Under PACK they run at the same time: there it is the step alone, measured before.
    """
    number, whole = (5, 5.0) if options.quick else (20, 40.0)
    beside, steps = Beside(), []
    with scene(options, several(SEEN, number), [KIND]) as (floor, started):
        together(started, "import time\nimport gpushare_kernel as gpushare")
        capacity = _capacity(floor.stage.places)
        for policy in POLICIES * max(1, options.rounds):
            step = _step(floor.stage.places, started[0])
            steps.append(step)
            jobs = scaled(number, whole, step, memory=0.8 * capacity / (16 * GiB))
            found = run(
                floor.stage.places, started, jobs, policy, JOB, kind=KIND, together=policy == "pack"
            )
            progress(beside.add(jobs, found, Settings(policy, capacity=capacity, turn=0.1)))
    return [*beside.figures(), Figure("step_alone", "s", steps)]


def _capacity(places: Places) -> int:
    """Return what jobs may have of the device: its memory less the contexts that are there."""
    with Line(places) as line:
        (device,) = line.snapshot().devices
    return device.capacity - device.reserve


def _step(places: Places, notebook: Notebook) -> float:
    """Return how long a step takes alone, with the clock warm: the median of five looks."""
    with Line(places) as line:
        line.ask(SetPolicy("fair"))
    notebook.run(f"repeat({KIND!r}, 40)")
    looks = [float(notebook.run(f"took = repeat({KIND!r}, 20)", "took")) / 20 for _ in range(5)]
    return median(looks)


if __name__ == "__main__":
    sys.exit(row("gpu_live_policies", QUESTION, measure, rounds=1))
