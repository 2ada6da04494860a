"""A million events through the scheduler, and what a broker keeps beside it: does its memory grow? See README.md."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main, progress
from benchmarks.core_events.world import World
from gpushare_kernel.core.validate import validate

QUESTION = "A million events through the scheduler: does its memory grow?"
SESSIONS = 200
PARTS = 20
WARM_UP = 2
"""Parts before memory is compared: tables and the interpreter's own pools grow to their size first."""


def measure(options: Options) -> Sequence[Figure]:
    """Run them in parts; after each, collect what is garbage and look at what is resident and how many objects live."""
    events = 100_000 if options.quick else 1_000_000
    world = World(SESSIONS, policy="fair")
    resident, objects = [], []
    for n in range(PARTS):
        world.run(events // PARTS)
        validate(world.core)
        gc.collect()
        resident.append(_resident() / 1e6)
        objects.append(float(len(gc.get_objects())))
        progress(
            f"{(n + 1) * events // PARTS} events: {resident[-1]:.1f} MB, {objects[-1]:.0f} objects"
        )
    settled = resident[WARM_UP:]
    return (
        Figure("resident", "MB", resident),
        Figure("grown", "MB", [settled[-1] - settled[0]], at_most=2.0),
        Figure("objects", "objects", objects),
    )


def _resident() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


if __name__ == "__main__":
    sys.exit(main("flat_memory", QUESTION, measure))
