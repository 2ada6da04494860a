"""Text that stays text in HTML. Alone here: the line of a running cell needs nothing else of this package."""

from __future__ import annotations

import html

_MATH = {"$": "<span>$</span>", "\\": "<span>\\</span>"}


def escape(text: object) -> str:
    """Return text that stays text, for those too who look for formulas in it."""
    out = html.escape(str(text), quote=True)
    for sign, apart in _MATH.items():
        out = out.replace(sign, apart)
    return out


def escape_attribute(text: str) -> str:
    """Return text for an attribute, where no formula is looked for."""
    return html.escape(text, quote=True)
