"""Times of a scene that do not move: a span that nothing happened to is the same in the next scene. Pure.

A scene says how long before it a span began and ended, which is another number every time. Here it becomes a moment,
on the broker's side of what an answer took: moments that are as near as that are one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

_NEAR = 0.06
"""Seconds within which two scenes may put the same moment: answers do not all take the same time."""

Span = list[Any]
"""Began and ended in seconds after the device's `since`, and what it was. None: before the window, and: it still does."""


def settled(scene: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `scene` with moments in its spans, those of `before` (settled already) where they are the same."""
    told = dict(scene)
    if "shares" in scene:
        # Nobody sees more than a hundredth, and the seconds change with every look.
        told["shares"] = [
            {
                **{k: v for k, v in share.items() if k != "used"},
                "share": round(share["share"], 2),
                "fair": round(share["fair"], 2),
            }
            for share in scene["shares"]
        ]
    if "time" in scene:
        known = {device["device"]: device for device in (before or {}).get("time", ())}
        told["time"] = [
            _device(scene["at"], device, known.get(device["device"])) for device in scene["time"]
        ]
    return told


def _device(
    at: float, device: Mapping[str, Any], before: Mapping[str, Any] | None
) -> dict[str, Any]:
    since = int(at) if before is None else before["since"]  # short numbers: there are hundreds
    known = {} if before is None else {row["session"]: row["spans"] for row in before["rows"]}
    rows = [
        {
            **row,
            "spans": _spans(
                at - since, device["window"], row["spans"], known.get(row["session"], ())
            ),
        }
        for row in device["rows"]
    ]
    return {**device, "since": since, "rows": rows}


def _spans(at: float, window: float, spans: Any, before: Any) -> list[Span]:
    began = sorted([span[0] for span in before if span[0] is not None])
    ended = sorted([span[1] for span in before if span[1] is not None])
    oldest = window - _NEAR
    return [
        [
            None if start >= oldest else _snapped(at - start, began),
            None if end <= 0 else _snapped(at - end, ended),
            kind,
        ]
        for start, end, kind in spans
    ]


def _snapped(moment: float, known: list[float]) -> float:
    """Return the nearest known moment, where one is near enough to be the same. Called hundreds of times a look."""
    at = bisect_left(known, moment - _NEAR)
    if at == len(known) or known[at] > moment + _NEAR:
        return round(moment, 2)
    nearest = known[at]
    if at + 1 < len(known) and abs(known[at + 1] - moment) < abs(nearest - moment):
        return known[at + 1]
    return nearest
