"""Who goes where at the least cost: exact, greedy with swaps, in blocks.

(M, N) costs, M <= N: each row gets a column of its own. Adding a number to a row or a column changes no assignment's rank, so greedy
works on what is left after rows' and columns' means are taken off: a column that is cheap for all is nobody's bargain.
"""

from __future__ import annotations

import torch

EXACT = 2_000
"""Rows up to which it is exact (about a second on a core; its time grows with the third power)."""
ROUNDS = 60
"""Rounds of swaps, at most."""
_TELLS = 1e-3
"""A round of swaps that gains less than this part is the last."""


def assign(costs: torch.Tensor) -> torch.Tensor:
    """Return (M,) columns: exact up to `EXACT` rows, greedy with swaps above."""
    return exact(costs) if len(costs) <= EXACT else polished(costs, greedy(costs))


def exact(costs: torch.Tensor) -> torch.Tensor:
    """Return the best there is, by scipy on a core."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  an extra

    _, columns = linear_sum_assignment(costs.cpu().numpy())
    return torch.from_numpy(columns).to(costs.device, torch.int64)


def greedy(costs: torch.Tensor) -> torch.Tensor:
    """Return columns by rounds: each free row proposes to its cheapest free column, which takes its cheapest proposer."""
    left = costs - costs.mean(dim=0, keepdim=True)
    left -= left.mean(dim=1, keepdim=True)
    rows = torch.arange(len(costs), device=costs.device)
    columns = torch.arange(costs.shape[1], device=costs.device)
    found = torch.empty(len(costs), dtype=torch.int64, device=costs.device)
    while len(rows):
        price, wanted = left.min(dim=1)
        order = price.argsort(descending=True, stable=True)  # the cheapest is written last
        taker = torch.full((len(columns),), -1, device=costs.device)
        taker = _last(taker, wanted[order], order)
        took = taker >= 0
        winners = taker[took]
        found[rows[winners]] = columns[took]
        kept = torch.ones(len(rows), dtype=torch.bool, device=costs.device)
        kept[winners] = False
        rows, columns = rows[kept], columns[~took]
        left = left[kept][:, ~took]
    return found


def _last(into: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Write values to places; of several for one place the last counts, on a GPU too."""
    rank = torch.arange(len(places), device=into.device)
    last = torch.full_like(into, -1).scatter_reduce(0, places, rank, "amax")
    return torch.where(last >= 0, values[last.clamp(min=0)], into)


def polished(costs: torch.Tensor, columns: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
    """Return it after swaps of two rows' columns, and moves to free columns, that make it cheaper. Each round swaps many pairs.

    A round looks at all pairs: M x M numbers more.
    """
    found = columns.clone()
    rows = torch.arange(len(costs), device=costs.device)
    for _ in range(rounds):
        now = costs[rows, found]
        _move(costs, found, now)
        now = costs[rows, found]
        gain = costs[:, found]
        gain = gain + gain.T
        gain -= now[:, None]
        gain -= now[None, :]
        best, partner = gain.min(dim=1)
        mutual = _pairs(best, partner)
        if not len(mutual):
            break
        theirs = partner[mutual]
        won = -float(best[mutual].sum())
        found[mutual], found[theirs] = found[theirs], found[mutual]
        if won <= _TELLS * float(now.sum()) / ROUNDS:
            break
    return found


def _pairs(best: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    """Return rows whose swap with their partner gains, none of them twice: where each is the other's best, or nobody better wants either."""
    rows = torch.arange(len(best), device=best.device)
    wanted = best.clone()  # the best offer that touches a row
    wanted = wanted.scatter_reduce(0, partner, best, "amin")
    strongest = (best < 0) & (best <= wanted) & (best <= wanted[partner])
    mine = torch.where(strongest, torch.minimum(rows, partner), len(best))
    chosen = torch.unique(mine[strongest], return_inverse=True)
    first = torch.full((len(chosen[0]),), len(best), device=best.device)
    first = first.scatter_reduce(0, chosen[1], rows[strongest], "amin")
    touched = torch.bincount(torch.cat([first, partner[first]]), minlength=len(best))
    return first[(touched[first] == 1) & (touched[partner[first]] == 1)]


def _move(costs: torch.Tensor, found: torch.Tensor, now: torch.Tensor) -> None:
    """Let rows go to free columns that are cheaper: each such column takes the row that gains most."""
    free = torch.ones(costs.shape[1], dtype=torch.bool, device=costs.device)
    free[found] = False
    columns = free.nonzero().squeeze(1)
    if not len(columns):
        return
    price, place = costs[:, columns].min(dim=1)
    gain = now - price
    willing = (gain > 0).nonzero().squeeze(1)
    if not len(willing):
        return
    order = willing[gain[willing].argsort(stable=True)]
    taker = _last(torch.full((len(columns),), -1, device=costs.device), place[order], order)
    took = taker >= 0
    found[taker[took]] = columns[took]
