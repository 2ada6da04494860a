"""What is computed of windows: ratios, shares, errors. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return each value of `over` by the one of `under` that was measured beside it."""
    return [a / b for a, b in zip(over, under, strict=True)]


def share_error(shares: Sequence[float], wanted: Sequence[float]) -> float:
    """Return how far the worst share is from what it should be, in points. `wanted` are weights."""
    whole = sum(wanted)
    return max(
        abs(share - 100 * weight / whole) for share, weight in zip(shares, wanted, strict=True)
    )


def progress_of_share(rates: Sequence[float], alone: Sequence[float]) -> list[float]:
    """Return the progress of each of n jobs (its rate by its rate alone) by its fair share, 1/n."""
    return [rate / single * len(rates) for rate, single in zip(rates, alone, strict=True)]


def total_progress(rates: Sequence[float], alone: Sequence[float]) -> float:
    """Return the sum of what each job makes of its rate alone."""
    return sum(rate / single for rate, single in zip(rates, alone, strict=True))


def by_job(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Return each job's median over the rounds."""
    return [statistics.median(values) for values in zip(*rounds, strict=True)]


def pooled(shares_of: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Return the mean of each column, rows counted by `weights` (a window's total, say)."""
    whole = sum(weights)
    return [
        sum(value * weight for value, weight in zip(column, weights, strict=True)) / whole
        for column in zip(*shares_of, strict=True)
    ]
