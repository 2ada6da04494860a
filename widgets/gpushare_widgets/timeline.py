"""The last seconds of a device: who ran when, and who was drained, paused or parked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpushare_kernel.client.shown import DeviceView
from gpushare_widgets.parties import NOBODY, Party

WINDOW = 30.0
"""Seconds that are looked back."""
_TOUCHING = 0.01
"""Seconds between two turns of one session that are one."""
_MOST_SPANS, _ABOUT = 360, 300
"""Pieces that are drawn one by one, and about how many there are else. Usual turns (0.1 s) are 300: not now below, now above."""
_FINEST_CELL = 0.25
_SHORTEST = 0.0001
"""Seconds that a piece lasts at least."""

Span = tuple[float, float, str]
"""Began and ended, in seconds before now (so the first is the larger), and what it was."""


def spans(
    view: DeviceView, drawn: Mapping[str, Party], now: float, *, devices: int = 1
) -> dict[Party, list[Span]]:
    """Return what each did on one of `devices` within the window before `now`, by kind, the oldest first.

    Where that is too much to draw, what was done within a while is one piece, as long as it was in all. These whiles
    do not move with `now`: what only grew older is the same piece.
    """
    raw: dict[Party, dict[str, list[tuple[float, float]]]] = {}
    known: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for turn in getattr(view, "turns", ()):  # hundreds, four times a second
        began, ended = turn.began, turn.ended
        began = began if began < WINDOW else WINDOW
        ended = ended if ended > 0.0 else 0.0
        if began > ended:
            session, kind = turn.session, turn.kind
            kinds = known.get(session)
            if kinds is None:
                kinds = known[session] = raw.setdefault(drawn.get(session, NOBODY), {})
            pieces = kinds.get(kind)
            if pieces is None:
                pieces = kinds[kind] = []
            pieces.append((began, ended))
    found = {who: _merged(kinds) for who, kinds in raw.items()}
    if sum(map(len, found.values())) <= _MOST_SPANS // devices:
        return found
    lines = sum(map(len, raw.values()))
    cell = max(_FINEST_CELL, min(WINDOW, lines * WINDOW * devices / _ABOUT))
    return {who: _gathered(one, cell, now % cell) for who, one in found.items()}


def device(view: DeviceView, found: Mapping[Party, list[Span]]) -> dict[str, Any] | None:
    """Return what is drawn of a device's time; None where nothing was."""
    ordered = sorted(
        found.items(),
        key=lambda item: (not item[0].own, item[0] == NOBODY, item[0].label, item[0].key),
    )
    rows = [
        {
            "session": party.key,
            "label": party.label,
            "own": party.own,
            "user": party.user or None,
            "spans": [list(span) for span in ran],
        }
        for party, ran in ordered
    ]
    return {"device": view.id, "window": WINDOW, "rows": rows} if rows else None


def ran(found: Mapping[Party, list[Span]]) -> dict[str, float]:
    """Return the seconds that each user ran within the window."""
    seconds: dict[str, float] = {}
    for party, one in found.items():
        own = sum([began - ended for began, ended, kind in one if kind == "turn"])
        if own:
            seconds[party.user] = seconds.get(party.user, 0.0) + own
    return seconds


def _merged(kinds: Mapping[str, list[tuple[float, float]]]) -> list[Span]:
    out: list[Span] = []
    for kind, pieces in kinds.items():
        pieces.sort(reverse=True)
        first, until = pieces[0]
        for began, ended in pieces[1:]:
            if until - began > _TOUCHING:
                out.append((first, until, kind))
                first, until = began, ended
            else:
                until = min(until, ended)
        out.append((first, until, kind))
    return out


def _gathered(fine: list[Span], cell: float, newest: float) -> list[Span]:
    """Return one piece for each kind and cell of time, as long as the pieces in it; `newest` is how long ago the last cell began.

    A cell that is only partly within the window is left out.
    """
    count = int((WINDOW - newest) // cell)
    edge = newest + count * cell
    spent: dict[str, list[float]] = {}
    for start, end, kind in fine:
        cells = spent.get(kind)
        if cells is None:
            cells = spent[kind] = [0.0] * (count + 2)
        began, ended = max(0.0, (edge - start) / cell), (edge - end) / cell
        number = int(began)
        while number + 1 < ended:
            cells[number] += number + 1 - began
            began = number = number + 1
        if ended > began:
            cells[number] += ended - began
    return [
        (
            round(edge - number * cell, 4),
            max(0.0, round(edge - (number + min(part, 1.0)) * cell, 4)),
            kind,
        )
        for kind, cells in sorted(spent.items())
        for number, part in enumerate(cells)
        if part * cell > _SHORTEST
    ]
