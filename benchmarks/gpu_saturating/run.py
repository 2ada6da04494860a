"""Two and four kernels that saturate the GPU: what is left of one alone, and of the driver's slicing? See README.md."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Figure, Options, progress
from benchmarks.gpu.mixes import ARMS, of_mix
from benchmarks.gpu.notebooks import ENFORCED, FREE, SEEN, several
from benchmarks.gpu.reckoning import ratios
from benchmarks.gpu.row import Pace, row
from benchmarks.gpu.scene import scene
from benchmarks.gpu.windows import Job, Seen, warm_clock

QUESTION = "2 and 4 kernels that saturate the GPU: total of one alone, and of the driver's slicing?"
NUMBERS = (2, 4)
OF_ALONE = {"matmul": 0.97, "conv": 0.95}
_MIX_ARMS = {"seen": "shared", "enforced": "enforced", "free": "driver"}
OF_DRIVER = {"matmul": 1.05, "conv": 1.01}


def measure(options: Options) -> Sequence[Figure]:
    """Alternate windows: n shared kernels, n free ones, one free one alone; for each kind of work.

    Four times conv is one of the five mixes too, so there it is also measured with enforced turns only.
    """
    pace = Pace.of(options, 5, 5.0)
    seen: dict[tuple[str, str, int], list[Seen]] = defaultdict(list)
    most = max(NUMBERS)
    wanted = [one for arm in (SEEN, FREE, ENFORCED) for one in several(arm, most)]
    with scene(options, wanted, OF_ALONE) as (floor, every):
        ours, theirs, unseen = every[:most], every[most : 2 * most], every[2 * most :]
        warm_clock(theirs, "matmul", floor)
        for n in range(pace.rounds):
            for kind in OF_ALONE:
                for arm, number, workers, settle in [
                    *(("shared", number, ours, pace.settle) for number in NUMBERS),
                    *(("driver", number, theirs, pace.settle_free) for number in NUMBERS),
                    ("alone", 1, theirs, pace.settle_free),
                    *([("enforced", most, unseen, pace.settle)] if kind == "conv" else []),
                ]:
                    seconds = min(pace.seconds, ARMS["enforced"][1] if arm == "enforced" else 9)
                    jobs = [Job(worker, kind) for worker in workers[:number]]
                    seen[kind, arm, number].append(
                        floor.window(jobs, seconds=seconds, settle=settle)
                    )
            progress(f"round {n + 1} of {pace.rounds}")
        explained = floor.explained()
    return [*_figures(seen), *explained]


def _figures(seen: dict[tuple[str, str, int], list[Seen]]) -> list[Figure]:
    found = []
    totals = {key: [one.total for one in windows] for key, windows in seen.items()}
    for kind, of_alone in OF_ALONE.items():
        alone = totals[kind, "alone", 1]
        for n in NUMBERS:
            shared, driver = totals[kind, "shared", n], totals[kind, "driver", n]
            found += [
                Figure(f"{kind}_{n}_of_alone", "", ratios(shared, alone), at_least=of_alone),
                Figure(
                    f"{kind}_{n}_of_driver", "", ratios(shared, driver), at_least=OF_DRIVER[kind]
                ),
                Figure(f"{kind}_{n}_driver_of_alone", "", ratios(driver, alone)),
                Figure(
                    f"{kind}_{n}_least_share",
                    "%",
                    [min(one.shares) for one in seen[kind, "shared", n]],
                ),
            ]
        found.append(Figure(f"{kind}_alone", "steps/s", alone))
    mix = {arm: seen["conv", name, 4] for arm, name in _MIX_ARMS.items()}
    return [*found, *of_mix(["conv"] * 4, mix, {"conv": totals["conv", "alone", 1]})]


if __name__ == "__main__":
    sys.exit(row("gpu_saturating", QUESTION, measure))
