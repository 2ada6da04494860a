"""Works on the GPU from a terminal until a file is there: `hog.py KIND PLACE COUNTERS SLOT STOP`. Counts as cells do."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.workloads import prepare, work

LONGEST = 600.0
"""Seconds after which it ends by itself, should whoever measures be gone."""


def main() -> None:
    """Prepare, say so, and work."""
    kind, place, counters, slot, stop = sys.argv[1:]
    prepare(kind, place)
    print("ready", flush=True)
    work(kind, counters, int(slot), time.monotonic() + LONGEST, stop)


if __name__ == "__main__":
    main()
