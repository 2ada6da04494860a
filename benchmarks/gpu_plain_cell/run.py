"""A plain ResNet cell alone on the GPU, nothing declared. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import FREE, SEEN
from benchmarks.gpu.reckoning import ratios
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job, warm_clock

QUESTION = "A plain ResNet cell alone, nothing declared: does it ever meet a cap of ours?"
KIND = "resnet"
GROW = """
import torch
def grow(free):
    batch, peak = 64, 0
    while 2 * peak < 0.9 * free:
        _steps.pop("resnet", None)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        _steps["resnet"] = FACTORIES["resnet"]("cuda", batch=batch)
        repeat("resnet", 2)
        peak, batch = torch.cuda.max_memory_reserved(), 2 * batch
    _steps.pop("resnet", None)
    torch.cuda.empty_cache()
    return peak
def fill(free):
    block = torch.empty(int(0.95 * free), dtype=torch.uint8, device="cuda")
    block[::2**20] = 1
    torch.cuda.synchronize()
    found = block.numel()
    del block
    torch.cuda.empty_cache()
    return found
"""
"""Train on ever larger batches until another doubling would not fit what is free; and take nearly all of it at once."""


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows of a shared and a free kernel; then let the shared one take all it can."""
    pace = Pace.of(options, 5, 2.0)
    shared: list[float] = []
    free: list[float] = []
    memory: list[Figure] = []
    with scene(options, [(SEEN, None), (FREE, None)], [KIND]) as (floor, (ours, theirs)):
        warm_clock([theirs], KIND, floor)
        for n in range(pace.rounds):
            for kernel, rates in [(ours, shared), (theirs, free)][:: -1 if n % 2 else 1]:
                seen = floor.window(
                    [Job(kernel, KIND)], seconds=pace.seconds, settle=pace.settle_free
                )
                rates.append(seen.total)
        if options.device == "cuda":
            failed = 0
            theirs.run("import gc, torch; _steps.clear(); gc.collect(); torch.cuda.empty_cache()")
            ours.run(f"import gc; _steps.clear(); gc.collect()\n{GROW}\ntorch.cuda.empty_cache()")
            available = theirs.run("", "torch.cuda.mem_get_info()[0]")  # the driver's word
            for name in ("grow", "fill"):
                taken, failure = ours.attempt(f"taken = {name}({available})", "taken")
                failed += failure is not None
                if failure is not None:
                    progress(failure[-800:])
                memory.append(Figure(f"{name}_of_free", "", [(taken or 0) / available]))
            memory.append(Figure("cells_that_met_a_cap", "", [float(failed)], at_most=0.0))
        explained = floor.explained()
    return [
        *memory,
        Figure("rate_of_free", "", ratios(shared, free), at_least=0.99),
        Figure("rate", "steps/s", shared),
        *explained,
    ]


if __name__ == "__main__":
    sys.exit(row("gpu_plain_cell", QUESTION, measure))
