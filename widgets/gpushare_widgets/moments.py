"""Times of a scene that do not move: a span that nothing happened to is the same in the next scene. Pure.

A scene says how long before it a span began and ended, which is another number every time. Here it becomes a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HAIR = 1e-6
"""Seconds by which a moment is later than told: halves of a hundredth, told exactly, are rounded to the same side every time."""

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
    now, window = at - since + _HAIR, device["window"]
    rows = [{**row, "spans": _spans(now, window, row["spans"])} for row in device["rows"]]
    return {**device, "since": since, "rows": rows}


def _spans(now: float, window: float, spans: Any) -> list[Span]:
    return [
        [
            None if began >= window else round(now - began, 2),
            None if ended <= 0 else round(now - ended, 2),
            kind,
        ]
        for began, ended, kind in spans
    ]
