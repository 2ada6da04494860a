"""A row's scene: a broker, the notebooks of all its arms, and the floor on which they are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from benchmarks.common import Options
from benchmarks.gpu.notebooks import Arm, Notebook, notebooks
from benchmarks.gpu.row import shared_house
from benchmarks.gpu.windows import Floor
from benchmarks.kernels import Counters


@contextlib.contextmanager
def scene(
    options: Options,
    wanted: Sequence[tuple[Arm, float | None]],
    kinds: Sequence[str],
    *arguments: str,
    foreign: str = "ignore",
) -> Iterator[tuple[Floor, list[Notebook]]]:
    """Have a broker (with `arguments`) and a notebook for each (arm, weight) of `wanted`, ready for work of `kinds`."""
    with shared_house(options, *arguments, foreign=foreign) as stage:
        counters = Counters(stage.folder / "counters")
        try:
            with notebooks(wanted, options.device, kinds) as started:
                yield Floor(stage, counters), started
        finally:
            counters.close()
