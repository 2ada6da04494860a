"""The line of a declared cell as HTML: one row, no script, no ids, no address; and its text."""

from __future__ import annotations

from gpushare_widgets.escaping import escape

_OWN, _GREY = "#1f83c9", "#888888"
_ROW = "line-height:1.45;max-width:60em"
_BAR = f"display:inline-block;width:8em;height:0.7em;margin-right:0.6em;border:1px solid {_GREY};box-sizing:border-box;vertical-align:baseline"


def bundle(text: str, *, part: float | None = None, code: str = "") -> dict[str, str]:
    """Return a line in both forms.

    Parameters
    ----------
    text
        The line.
    part
        How much of something is done, from 0 to 1, drawn as a bar.
    code
        The end of the line that is there to be copied.
    """
    shown = escape(text)
    if code and text.endswith(code):
        shown = f"{escape(text.removesuffix(code))}<code>{escape(code)}</code>"
    bar = ""
    if part is not None:
        fill = f"display:block;height:100%;width:{100 * part:.0f}%;background:{_OWN}"
        bar = f'<span style="{_BAR}"><span style="{fill}"></span></span>'
    return {"text/plain": text, "text/html": f'<div style="{_ROW}">{bar}{shown}</div>'}
