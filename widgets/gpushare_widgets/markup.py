"""A scene as HTML that needs nothing: no script, no style sheet, no network. Where styles are taken out its tables remain.

Colours are of middle lightness, on white and on black; each kind has a pattern too, and words. There is no blank line
in it: in Markdown that would end the HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpushare_kernel.client.shown import format_size
from gpushare_widgets import words
from gpushare_widgets.escaping import escape, escape_attribute
from gpushare_widgets.parties import clean

_OWN = "#1f83c9"
_OTHERS = ("#d98c00", "#0a9e76", "#c86fa0", "#d55e00", "#8f7fd6", "#9a9a2e")
_GREY = "#888888"
_NARROW = 9.0
"""Percent of the width below which a piece has no room for its name."""
_LINES = {"context": "90deg", "desktop": "0deg"}
_STRIP = 48
"""Signs of a strip of time."""
_MOST_NAMED, _LONGEST, _LONGEST_NAMED = 12, 36, 24
_CELL = "padding:2px 10px 2px 0;border:0;text-align:{};vertical-align:top;background:none;color:inherit;max-width:none;white-space:{}"
_TABLE = "border-collapse:collapse;border:0;margin:0 0 4px 0;font-size:inherit;color:inherit;table-layout:auto;width:auto"
_PLAIN_ROW = ' style="background:none"'


def page(scene: Mapping[str, Any]) -> str:
    """Return `scene` as one piece of HTML."""
    colours = _Colours(scene)
    parts = [f'<p style="margin:0 0 2px 0">⚠ {escape(said)}</p>' for said in scene.get("news", ())]
    parts += [_device(device, colours) for device in scene.get("devices", ())]
    parts += [section(table, colours) for table in words.tables(scene, width=_STRIP)]
    if "account" in scene:
        parts.append(f'<p style="margin:10px 0 2px 0">{escape(scene["account"])}</p>')
    if not parts:
        parts.append("<p>Nothing is shared here.</p>")
    parts.append(f"<p><small>{escape(words.as_of(scene))}</small></p>")
    return whole(parts)


def whole(parts: Iterable[str]) -> str:
    """Return the parts in one frame."""
    return f'<div style="max-width:60em;line-height:1.45;overflow-x:auto">{"".join(parts)}</div>'


def section(table: words.Table, colours: _Colours | None = None) -> str:
    """Return a table with its title above and its note below."""
    head = "".join(_cell("th", column.removeprefix(">"), column) for column in table.columns)
    rows = [f"<tr{_PLAIN_ROW}>{head}</tr>"]
    for number, row in enumerate(table.rows):
        own = number in table.own
        cells = []
        for place, (text, column) in enumerate(zip(row, table.columns, strict=True)):
            colour = None
            if place == table.strip:
                colour = _GREY if colours is None else colours.of_label(row[0], own=own)
            cells.append(_cell("td", text, column, bold=own and place == 0, colour=colour))
        rows.append(f"<tr{_PLAIN_ROW}>{''.join(cells)}</tr>")
    title = (
        f'<p style="margin:10px 0 2px 0"><b>{escape(table.title)}</b></p>' if table.title else ""
    )
    note = f'<p style="margin:0"><small>{escape(table.note)}</small></p>' if table.note else ""
    return f'{title}<table style="{_TABLE}"><tbody>{"".join(rows)}</tbody></table>{note}'


def _cell(tag: str, text: str, column: str, *, bold: bool = False, colour: str | None = None) -> str:  # fmt: skip
    side = "right" if column.startswith(">") else "left"
    style = _CELL.format(side, "normal" if column == "why" else "nowrap")
    shown = text if column == "why" else clean(text, _LONGEST)
    inner = f"<bdi>{escape(shown)}</bdi>"
    if colour is not None:
        inner = (
            f'<code style="color:{colour};background:none;border:0;padding:0;white-space:pre;'
            f'font-family:monospace;letter-spacing:0">{escape(text)}</code>'
        )
    title = "" if colour is not None or shown == text else f' title="{escape_attribute(text)}"'
    return f'<{tag} align="{side}"{title} style="{style}">{f"<b>{inner}</b>" if bold else inner}</{tag}>'


def _device(device: Mapping[str, Any], colours: _Colours) -> str:
    name, _, told = words.device_line(device).partition(": shares ")
    line = f'<p style="margin:10px 0 2px 0"><b>{escape(name)}</b>: shares {escape(told)}</p>'
    amiss = words.limits_line(device)
    if amiss:
        line += f'<p style="margin:0 0 2px 0">⚠ {escape(amiss)}</p>'
    on_it = [one for one in device["segments"] if one["kind"] != "parked"]
    if not any(one["kind"] != "free" for one in on_it):
        return line
    beside = [one for one in device["segments"] if one["kind"] == "parked"]
    total = sum(one["size"] for one in on_it)
    also = [one for one in on_it if _percent(one, total) < _NARROW]
    line += _map(on_it, total, colours)
    for before, pieces in (("Not named above: ", also), ("Parked beside it: ", beside)):
        if pieces:
            named = ", ".join(_named(one, colours) for one in pieces[:_MOST_NAMED])
            if len(pieces) > _MOST_NAMED:
                named += f" and {len(pieces) - _MOST_NAMED} more"
            line += f'<p style="margin:0"><small>{before}{named}</small></p>'
    return line


def _map(pieces: list[dict[str, Any]], total: int, colours: _Colours) -> str:
    """Return memory to scale, one cell a piece."""
    style = "border-collapse:collapse;border:0;margin:0 0 2px 0;width:100%;table-layout:fixed;color:inherit"
    cells = "".join(_piece(one, _percent(one, total), colours) for one in pieces)
    return (
        f'<table width="100%" style="{style}"><tbody><tr{_PLAIN_ROW}>{cells}</tr></tbody></table>'
    )


def _piece(piece: dict[str, Any], percent: float, colours: _Colours) -> str:
    style = (
        f"width:{percent:.2f}%;padding:0 1px 0 0;border:0;text-align:left;vertical-align:top;background:none;"
        "overflow:hidden;max-width:none;color:inherit"
    )
    label = ""
    if percent >= _NARROW:
        name = f"<bdi>{escape(piece['label'])}</bdi>"
        name = f"<b>{name}</b>" if piece["own"] else name
        label = (
            '<small style="display:block;overflow:hidden;white-space:nowrap;text-overflow:ellipsis">'
            f"{name}<br>{escape(_amount(piece))}</small>"
        )
    look = f'<div style="height:22px;box-sizing:border-box;{_look(piece, colours)}"></div>'
    return f'<td width="{percent:.1f}%" align="left" title="{escape_attribute(piece["title"])}" style="{style}">{look}{label}</td>'


def _named(piece: dict[str, Any], colours: _Colours) -> str:
    look = f'<span style="display:inline-block;width:12px;height:12px;vertical-align:middle;box-sizing:border-box;{_look(piece, colours)}"></span>'
    return f"{look} <bdi>{escape(clean(piece['label'], _LONGEST_NAMED))}</bdi> {escape(_amount(piece))}"


def _amount(piece: dict[str, Any]) -> str:
    size = format_size(piece["size"])
    if piece["kind"] == "lane":
        return (
            f"to run: {size}"
            if piece["fill"] is None
            else f"{_beside(piece['fill'], size)} of {size}"
        )
    return f"keeps {size}" if piece["kind"] == "persistent" else size


def _beside(size: int, whole: str) -> str:
    """Return a size without its unit where it stands beside one of the same unit."""
    number, unit = format_size(size).split()
    return number if whole.endswith(unit) else f"{number} {unit}"


def _percent(piece: dict[str, Any], total: int) -> float:
    return max(0.4, 100 * piece["size"] / total) if total else 0.0


def _look(piece: dict[str, Any], colours: _Colours) -> str:
    """Return how a piece looks: a pattern for each kind, a colour for each user; one's own is solid.

    Patterns are tiles of plain gradients: JupyterLab takes repeating ones out of a notebook that it does not trust.
    """
    colour = colours.of(piece)
    pale = f"{colour}55"
    kind = piece["kind"]
    if kind == "persistent":
        return (
            f"background:{colour if piece['own'] else _hatched(colour)};border:1px solid {colour}"
        )
    if kind == "lane":
        fill = 0.0 if piece["fill"] is None else 100 * piece["fill"] / max(1, piece["size"])
        dots = f"radial-gradient({colour} 1px,transparent 1.5px) 0 0/6px 6px"
        bar = f"linear-gradient(to right,{colour} {fill:.1f}%,{pale} {fill:.1f}%)"
        return f"background:{bar if piece['fill'] is not None else dots};border:2px solid {colour}"
    if kind == "parked":
        return f"background:{pale};border:2px dotted {colour}"
    if kind == "free":
        return f"border:1px dashed {_GREY}"
    stripes = f"linear-gradient({_LINES.get(kind, '45deg')},{_GREY} 50%,{_GREY}55 50%) 0 0/5px 5px"
    return f"background:{stripes};border:1px solid {_GREY}"


def _hatched(colour: str) -> str:
    pale = f"{colour}99"
    stops = f"{colour} 25%,{pale} 25%,{pale} 50%,{colour} 50%,{colour} 75%,{pale} 75%"
    return f"linear-gradient(135deg,{stops}) 0 0/10px 10px"


class _Colours:
    """A colour for each user of one scene; one's own is always the same."""

    def __init__(self, scene: Mapping[str, Any]) -> None:
        rows = [*scene.get("sessions", ()), *(row for one in scene.get("time", ()) for row in one["rows"])]  # fmt: skip
        self._labels = {row["label"]: row["user"] for row in rows}
        users = sorted({row["user"] for row in rows if row["user"] and not row["own"]})
        self._users = {user: _OTHERS[n % len(_OTHERS)] for n, user in enumerate(users)}

    def of(self, piece: Mapping[str, Any]) -> str:
        """Return the colour of a piece or a row."""
        return _OWN if piece["own"] else self._users.get(piece["user"], _GREY)

    def of_label(self, label: str, *, own: bool) -> str:
        """Return the colour of a table's row, by its first cell."""
        return _OWN if own else self._users.get(self._labels.get(label, label), _GREY)
