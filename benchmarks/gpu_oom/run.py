"""Out of memory, then a smaller batch in the same kernel. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.notebooks import SEEN, Notebook, several
from benchmarks.gpu.row import row
from benchmarks.gpu.scene import scene

QUESTION = "Out of memory, then the same cell with a smaller batch: does it work without a restart?"
TRAIN = """
import torch
def train(rows):
    w = torch.randn(4096, 4096, device="cuda", requires_grad=True)
    x, kept = torch.randn(rows, 4096, device="cuda"), []
    for _ in range(8):
        x = torch.relu(x @ w) / 64
        kept.append(x)
    x.mean().backward()
    torch.cuda.synchronize()
    return rows
"""
HOST_TRAIN = """
def train(rows):
    if rows > 100_000:
        raise MemoryError("OutOfMemory, as the stand-in plays it")
    return rows
"""
SMALL = 4096
LINE = "needed about"
"""What is sought in the line after the error."""


def measure(options: Options) -> Sequence[Figure]:
    """Declared and plain, again and again: a batch that cannot fit, then one that does, in the same kernel."""
    rounds = 2 if options.quick else 5
    device = options.device == "cuda"
    found = {"declared": [], "plain": []}
    with scene(options, several(SEEN, 1), []) as (_, (kernel,)):
        kernel.run(TRAIN if device else HOST_TRAIN, timeout=120)
        pid = kernel.pid
        total = (
            kernel.run("total = torch.cuda.mem_get_info()[1]", "total") if device else 80 * 2**30
        )
        large = {"declared": 131_072, "plain": int(1.5 * total / (4096 * 4 * 9))}
        for n in range(rounds):
            for way, magic in [("declared", "%%gpulane 4GiB\n"), ("plain", "")]:
                found[way].append(_twice(kernel, magic, large[way]))
            progress(f"round {n + 1} of {rounds}: {found['declared'][-1]} {found['plain'][-1]}")
        restarted = kernel.pid != pid
    figures = []
    for way, rounds_of in found.items():
        no_error, no_line, second = (float(sum(column)) for column in zip(*rounds_of, strict=True))
        figures += [
            Figure(f"{way}_second_cells_failed", "", [second], at_most=0.0),
            Figure(f"{way}_first_cells_that_fitted", "", [no_error], at_most=0.0),
            Figure(f"{way}_without_our_line", "", [no_line], at_most=0.0 if device else None),
        ]
    return [*figures, Figure("restarts", "", [float(restarted)], at_most=0.0)]


def _twice(kernel: Notebook, magic: str, rows: int) -> tuple[bool, bool, bool]:
    """Return whether the large batch fitted, whether no line of ours followed, and whether the small one failed."""
    known = len(kernel.lines)
    _, failure = kernel.attempt(f"{magic}train({rows})")
    said = any(LINE in line.text for line in kernel.lines[known:])
    if failure is not None and "OutOfMemory" not in failure:
        msg = f"the cell failed, but not for memory: {failure[-800:]}"
        raise AssertionError(msg)
    _, second = kernel.attempt(f"{magic}train({SMALL})")
    if second is not None:
        progress(second[-800:])
    return failure is None, not said, second is not None


if __name__ == "__main__":
    sys.exit(row("gpu_oom", QUESTION, measure))
