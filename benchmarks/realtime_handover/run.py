"""From the end of a layer on one node to the beginning of the next layer on another. See README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.common import Figure, Options, main, percentile
from gpushare_kernel.realtime.model import NodeType, Stage
from gpushare_kernel.realtime.nodes import Nodes
from gpushare_kernel.realtime.payload import form_of
from gpushare_kernel.realtime.pipeline import Pipeline
from gpushare_kernel.realtime.placement import Fixed
from gpushare_kernel.realtime.profile import Costs, Profile

QUESTION = "What does it take to hand a job from one node to the next, and to the notebook?"
LARGE = "4MiB"
"""Published only: two copies of so much take longer than all the rest."""
SIZES = {"4KiB": 512, "256KiB": 32768, "1MiB": 131072, LARGE: 524288}


def ends(x: Any) -> Any:
    """Note when this layer ends."""
    x[0] = time.monotonic()
    return x


def begins(x: Any) -> Any:
    """Note when this one begins."""
    x[1] = time.monotonic()
    return x


def measure(options: Options) -> Sequence[Figure]:
    """Hand jobs over, one at a time."""
    one, figures = NodeType(1), []
    rounds, jobs = (2, 200) if options.quick else (5, 1000)
    for name, length in SIZES.items():
        x = np.zeros(length)
        costs = Costs([60.0] * 2, [0.0] * 2, [0.0] * 2, 1)
        profile = Profile("handover", "by hand", ["ends", "begins"], [form_of(x)] * 3, {"c1": costs})  # fmt: skip
        nodes = Nodes(Fixed((one, one), {"handover": (Stage(0, 0, 0), Stage(1, 1, 1))}))
        between: list[list[float]] = []
        whole: list[list[float]] = []
        with Pipeline([ends, begins], x, name="handover", class_="BE", nodes=nodes, profile=profile) as pipe:  # fmt: skip
            for _ in range(rounds):
                hops, trips = [], []
                for _ in range(jobs):
                    started = time.monotonic()
                    y = pipe(x)
                    trips.append(1e6 * (time.monotonic() - started))
                    hops.append(1e6 * (y[1] - y[0]))
                between.append(hops)
                whole.append(trips)
        figures += [
            Figure(f"{name}_node_to_node_p50", "us", [percentile(hops, 50) for hops in between], at_most=None if name == LARGE else 1000.0),
            Figure(f"{name}_node_to_node_p99", "us", [percentile(hops, 99) for hops in between]),
            Figure(f"{name}_there_and_back_p50", "us", [percentile(trips, 50) for trips in whole]),
        ]  # fmt: skip
    return figures


if __name__ == "__main__":
    sys.exit(main("realtime_handover", QUESTION, measure))
