"""Four nets with deadlines beside four without, on CPU and GPU nodes: the worst response, and the others' throughput. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options
from benchmarks.gpu.row import row
from benchmarks.realtime_cpu import run as nets

QUESTION = "Deadlines beside best effort on CPU and GPU nodes: the worst response, and the others' throughput, against one priority queue over whole models?"
ARMS = ("process_each", "fifo", "priority", "ours")


def measure(options: Options) -> Sequence[Figure]:
    """Run the arms with the nets of a GPU; there is nothing that stands for one."""
    if options.device != "cuda":
        msg = "these nets are of a size for a GPU. On a CPU: python benchmarks/realtime_cpu/run.py."
        raise NotMeasured(msg)
    rounds, seconds = (1, 5.0) if options.quick else (3, 10.0)
    return nets.measure(nets.Course("cuda", "c8,c8g1", ARMS, rounds, seconds, most=1.0))


if __name__ == "__main__":
    sys.exit(row("gpu_realtime_nodes", QUESTION, measure))
