"""Packed models on a GPU: memory, switches, calls, and matching their pages. See README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, NotMeasured, Options
from benchmarks.gpu.row import row

QUESTION = "Packed models on a GPU: memory beside copies, a switch beside disk and pinned memory, a call beside a plain one, and how long does matching take?"


def measure(options: Options) -> Sequence[Figure]:
    """Run both benchmarks on the GPU; there is nothing that stands for one."""
    if options.device != "cuda":
        msg = "on a CPU: python benchmarks/nwv_runtime/run.py, python benchmarks/nwv_pack/run.py."
        raise NotMeasured(msg)
    from benchmarks.nwv_pack import run as packing  # noqa: PLC0415  it imports torch
    from benchmarks.nwv_runtime import run as runtime  # noqa: PLC0415

    runtime.GIVEN = argparse.Namespace(device="cuda", bandwidth=4.8, folder=None)
    packing.GIVEN = argparse.Namespace(device="cuda", parts=("matching",), large=True)
    return [*runtime.measure(options), *packing.measure(options)]


if __name__ == "__main__":
    sys.exit(row("gpu_nwv", QUESTION, measure))
