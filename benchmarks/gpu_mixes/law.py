"""The co-run law beside what was measured: python benchmarks/gpu_mixes/law.py [--fit] (reads benchmarks/results, needs no GPU).

Prints the table of docs/replay.md; with `--fit` the constants that meet the measured sums best (least squares of their relative errors).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpushare_kernel.replay.law import DRIVER, Law

RESULTS = Path(__file__).resolve().parents[1] / "results"
LSTM = 0.44
"""The demand of LSTM training, fitted with the law. Matmul and convolution training saturate: 1."""
FREE = "_free_jobs_of_share"
DIGITS = 100
"""Constants are told to so many parts of 1."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Kinds that ran at the same time with the driver alone: each one's rate over its rate alone, and the figure that says so."""

    kinds: tuple[str, ...]
    measured: tuple[float, ...]
    source: str


def measured(results: Path = RESULTS) -> list[Mix]:
    """Return every mix whose free co-run is in the committed results."""
    saturating, light, mixed = (
        _read(results, name) for name in ("gpu_saturating", "gpu_launch_bound", "gpu_mixes")
    )
    found = []
    for kind, number in product(("matmul", "conv"), (2, 4)):
        name = f"{kind}_{number}_driver_of_alone"
        each = saturating["medians"][name] / number
        found.append(Mix((kind,) * number, (each,) * number, f"gpu_saturating: {name}"))
    totals, alone = (light["figures"][name]["values"] for name in ("total_free", "alone"))
    each = median(a / b for a, b in zip(totals, alone, strict=True)) / 4
    found.append(Mix(("lstm",) * 4, (each,) * 4, "gpu_launch_bound: total_free / alone"))
    for name, figure in mixed["figures"].items():
        if name.endswith(FREE):
            kinds = tuple(name.removesuffix(FREE).split("_"))
            each_of = tuple(value / len(kinds) for value in figure["values"])
            found.append(Mix(kinds, each_of, f"gpu_mixes: {name}"))
    return found


def _read(results: Path, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((results / f"{name}.json").read_text())
    return found


def speeds(mix: Mix, law: Law = DRIVER, lstm: float = LSTM) -> list[float]:
    """Return what the law says of each."""
    return law.speeds([lstm if kind == "lstm" else 1.0 for kind in mix.kinds])


def off(mix: Mix, law: Law = DRIVER, lstm: float = LSTM) -> float:
    """Return by which part the sum of the law is more than the measured one."""
    return sum(speeds(mix, law, lstm)) / sum(mix.measured) - 1


def badness(mixes: Sequence[Mix], law: Law, lstm: float) -> float:
    """Return the squares of the errors of all sums."""
    return sum(off(mix, law, lstm) ** 2 for mix in mixes)


def fit(mixes: Sequence[Mix]) -> tuple[Law, float]:
    """Return the law and the demand of LSTM training that meet `mixes` best, of all in steps of 0.01."""
    _, *best = min(
        (badness(mixes, Law(c / DIGITS, k / DIGITS), d / DIGITS), c, k, d)
        for c, k, d in product(range(85, 101), range(101), range(10, 81))
    )
    together, friction, lstm = (value / DIGITS for value in best)
    return Law(together, friction), lstm


def table(mixes: Sequence[Mix]) -> str:
    """Return the law beside what was measured, as docs/replay.md shows it, and how well it meets the sums."""
    lines = ["| mix | measured | law | sum, law / measured |", "|---|---|---|---|"]
    lines += [
        f"| {' '.join(mix.kinds)} | {_row(mix.measured)} | {_row(speeds(mix))} | {off(mix):+.0%} |"
        for mix in mixes
    ]
    within = max(abs(off(mix)) for mix in mixes)
    return "\n".join([*lines, "", f"The sum is met within {within:.0%}."])


def _row(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}".removeprefix("0") for value in values)


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit the constants anew (seconds)")
    mixes = measured()
    if parser.parse_args().fit:
        law, lstm = fit(mixes)
        print(f"together={law.together} friction={law.friction} LSTM={lstm}")
        return
    print(table(mixes))


if __name__ == "__main__":
    main()
