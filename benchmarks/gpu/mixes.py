"""Mixes of four kernels: their arms, what they must reach, and the figures of one mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.common import Figure
from benchmarks.gpu.notebooks import ENFORCED, FREE, SEEN
from benchmarks.gpu.reckoning import by_job, progress_of_share, ratios, total_progress
from benchmarks.gpu.windows import Seen

ARMS = {
    "seen": (SEEN, 5.0, 0.95, 0.90),
    "enforced": (ENFORCED, 5.0, 0.92, 0.80),
    "free": (FREE, 5.0, None, None),
}
"""Arm, length of a window, and what each job must have of its share, and the sum of free co-run."""
Windows = Mapping[str, list[Seen]]


def of_mix(mix: Sequence[str], windows: Windows, alone: Mapping[str, list[float]]) -> list[Figure]:
    """Return the figures of one mix; what is compared is of the same round."""
    singles = list(zip(*(alone[kind] for kind in mix), strict=True))
    sums = {
        name: [
            total_progress(one.rates, single)
            for one, single in zip(windows[name], singles, strict=True)
        ]
        for name in ARMS
    }
    found = []
    for name, (_, _, least, of_free) in ARMS.items():
        jobs = [
            progress_of_share(one.rates, single)
            for one, single in zip(windows[name], singles, strict=True)
        ]
        title = f"{'_'.join(mix)}_{name}"
        found += [
            Figure(f"{title}_jobs_of_share", "", by_job(jobs), at_least=least, worst=True),
            Figure(f"{title}_least_of_share", "", [min(each) for each in jobs]),
            Figure(f"{title}_sum", "", sums[name]),
        ]
        if of_free is not None:
            found.append(
                Figure(f"{title}_of_free", "", ratios(sums[name], sums["free"]), at_least=of_free)
            )
    return found
