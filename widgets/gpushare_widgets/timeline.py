"""The last seconds of a device: who ran when, and who was drained, paused or parked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpushare_kernel.client.shown import DeviceView
from gpushare_widgets.parties import NOBODY, Party

WINDOW = 30.0
"""Seconds that are looked back."""
_FINEST = 0.05
"""Seconds between two turns of one session that are drawn as one."""
_MOST_SPANS = 300

Span = tuple[float, float, str]
"""Began and ended, in seconds before now (so the first is the larger), and what it was."""


def spans(
    view: DeviceView, drawn: Mapping[str, Party], *, devices: int = 1
) -> dict[Party, list[Span]]:
    """Return what each did on one of `devices` within the window, the oldest first of its kind; coarser where there is much of it."""
    raw: dict[Party, dict[str, list[tuple[float, float]]]] = {}
    for turn in getattr(view, "turns", ()):
        began, ended = min(turn.began, WINDOW), max(turn.ended, 0.0)
        if began > ended:
            kinds = raw.setdefault(drawn.get(turn.session, NOBODY), {})
            kinds.setdefault(turn.kind, []).append((began, ended))
    gap = _FINEST
    while True:
        found = {who: _merged(kinds, gap) for who, kinds in raw.items()}
        if gap > WINDOW or sum(map(len, found.values())) <= _MOST_SPANS // devices:
            return found
        gap *= 2


def device(view: DeviceView, found: Mapping[Party, list[Span]]) -> dict[str, Any] | None:
    """Return what is drawn of a device's time; None where nothing was."""
    ordered = sorted(
        found.items(), key=lambda item: (not item[0].own, item[0] == NOBODY, item[0].label)
    )
    rows = [
        {
            "session": party.key,
            "label": party.label,
            "own": party.own,
            "user": party.user or None,
            "spans": [[round(began, 2), round(ended, 2), kind] for began, ended, kind in ran],
        }
        for party, ran in ordered
    ]
    return {"device": view.id, "window": WINDOW, "rows": rows} if rows else None


def ran(found: Mapping[Party, list[Span]]) -> dict[str, float]:
    """Return the seconds that each user ran within the window."""
    seconds: dict[str, float] = {}
    for party, one in found.items():
        for began, ended, kind in one:
            if kind == "turn":
                seconds[party.user] = seconds.get(party.user, 0.0) + began - ended
    return seconds


def _merged(kinds: Mapping[str, list[tuple[float, float]]], gap: float) -> list[Span]:
    out: list[Span] = []
    for kind, pieces in kinds.items():
        last: tuple[float, float] | None = None
        for began, ended in sorted(pieces, reverse=True):
            if last is not None and last[1] - began <= gap:
                last = (last[0], min(last[1], ended))
            else:
                if last is not None:
                    out.append((*last, kind))
                last = (began, ended)
        if last is not None:
            out.append((*last, kind))
    return out
