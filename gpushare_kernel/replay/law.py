"""The co-run law: how fast jobs go on that run at the same time on one device.

Alone, a job goes at speed 1 and takes `demand` of the device's time. Beside others,

    speed_i = min(1 / (1 + k * sum of the others' demands),  share_i / demand_i)

where the shares divide C of the device's time max-min: what one cannot use goes to others. `k` is what light jobs lose to
each other where the device has time for all, `C` is what is left of a device whose driver switches between processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


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


DRIVER = Law(together=0.89, friction=0.35)
"""Processes that the driver switches between: fitted to `MIXES` (docs/replay.md has the errors)."""
STREAMS = Law(together=1.0, friction=0.0)
"""Jobs in one process, each with a stream of its own, as in Salus' lanes. Assumed: nothing is lost, nothing gained but
the gaps. Figure 13 gives two jobs of one kind, from which their demand follows (`replay/salus.py`), and no more."""

DEMANDS: Mapping[str, float] = MappingProxyType({"matmul": 0.97, "conv": 0.97, "LSTM": 0.37})
"""Matmul and conv training: the device's own word of how busy one of them makes it. LSTM training: fitted; the device's word
(0.55) counts every moment in which anything runs, also where there is room beside it."""
MIXES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("matmul matmul", (0.455, 0.455)),
    ("matmul matmul matmul matmul", (0.2275, 0.2275, 0.2275, 0.2275)),
    ("conv conv conv conv", (0.234, 0.234, 0.234, 0.234)),
    ("LSTM LSTM", (0.865, 0.865)),
    ("LSTM LSTM LSTM LSTM", (0.615, 0.615, 0.615, 0.615)),
    ("matmul matmul LSTM LSTM", (0.186, 0.186, 0.663, 0.663)),
    ("matmul LSTM LSTM LSTM", (0.169, 0.60, 0.60, 0.60)),
    ("conv conv LSTM LSTM", (0.274, 0.274, 0.443, 0.443)),
    ("matmul conv conv LSTM", (0.135, 0.297, 0.297, 0.481)),
)
"""Measured on an H200, the driver alone: each one's rate over its rate alone."""


def fit_table() -> str:
    """Return the law beside what was measured, as docs/replay.md shows it."""
    lines = ["| mix | measured | law | sum, law / measured |", "|---|---|---|---|"]
    for mix, measured in MIXES:
        speeds = DRIVER.speeds([DEMANDS[kind] for kind in mix.split()])
        off = sum(speeds) / sum(measured) - 1
        lines.append(f"| {mix} | {_row(measured)} | {_row(speeds)} | {off:+.0%} |")
    return "\n".join(lines)


def _row(speeds: Sequence[float]) -> str:
    return " ".join(f"{speed:.2f}".removeprefix("0") for speed in speeds)


def max_min(demands: Sequence[float], whole: float) -> list[float]:
    """Divide `whole`: equal parts, but nobody gets more than it demands, and what is left over is divided again."""
    shares = [0.0] * len(demands)
    left = whole
    for n, at in enumerate(sorted(range(len(demands)), key=demands.__getitem__)):
        shares[at] = min(demands[at], left / (len(demands) - n))
        left -= shares[at]
    return shares
