"""What the live view costs, and how soon it shows what happens. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, main
from benchmarks.live_view import bare_page, front_ends

QUESTION = (
    "The live view: how soon does it show what happens while a cell runs, and what does it cost?"
)


def measure(options: Options) -> Sequence[Figure]:
    """The front ends with real kernels, then the browser's part by itself."""
    return [*front_ends.measure(quick=options.quick), *bare_page.measure(quick=options.quick)]


if __name__ == "__main__":
    sys.exit(main("live_view", QUESTION, measure))
