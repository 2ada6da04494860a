"""The co-run law: how fast jobs go on that run at the same time on one device.

Alone, a job goes at speed 1 and takes `demand` of the device's time. Beside others,

    speed_i = min(1 / (1 + k * sum of the others' demands),  share_i / demand_i)

where the shares divide C of the device's time max-min: what one cannot use goes to others. `k` is what light jobs lose to
each other where the device has time for all, `C` is what is left of a device whose driver switches between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Law:
    """The two constants of the co-run law: `together` is C (a part of 1), `friction` is k (per unit of demand)."""

    together: float
    friction: float

    def speeds(self, demands: Sequence[float]) -> list[float]:
        """Return the speed of each of those who run together, as a part of its speed alone."""
        if len(demands) < 2:  # noqa: PLR2004
            return [1.0] * len(demands)
        whole = sum(demands)
        return [
            min(1.0 / (1.0 + self.friction * (whole - demand)), share / demand)
            for demand, share in zip(demands, max_min(demands, self.together), strict=True)
        ]


DRIVER = Law(together=0.93, friction=0.33)
"""Processes that the driver switches between: fitted to nine mixes on an H200 (`benchmarks/gpu_mixes/law.py`; docs/replay.md has the errors)."""
STREAMS = Law(together=1.0, friction=0.0)
"""Jobs in one process, each with a stream of its own, as in Salus' lanes. Assumed: nothing is lost, nothing gained but
the gaps. Figure 13 gives two jobs of one kind, from which their demand follows (`replay/salus.py`), and no more."""


def max_min(demands: Sequence[float], whole: float) -> list[float]:
    """Divide `whole`: equal parts, but nobody gets more than it demands, and what is left over is divided again."""
    shares = [0.0] * len(demands)
    left = whole
    for n, at in enumerate(sorted(range(len(demands)), key=demands.__getitem__)):
        shares[at] = min(demands[at], left / (len(demands) - n))
        left -= shares[at]
    return shares
