"""How `jupyter gpushare top` looks: the scene of the live view, in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpushare_widgets import strips, words
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

OWN = "bold bright_blue"
_OTHERS = ("yellow", "green", "magenta", "red", "cyan", "white")
_KINDS = {"context": "bright_black", "free": "dim", "desktop": "bright_black", "foreign": "bright_black"}  # fmt: skip
_NARROWEST, _BESIDE = 10, 48
"""Columns of a strip of time at least, and what is beside one."""


class Window:
    """The part of something long that fits, from line `top` on, with a line at the bottom."""

    def __init__(self, inner: RenderableType, top: int, bottom: Text) -> None:
        self._inner = inner
        self.top = top
        self._bottom = bottom

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich."""
        room = max(1, console.height - 1)
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        self.top = max(0, min(self.top, len(lines) - room))
        shown = lines[self.top : self.top + room]
        for line in shown:
            yield from line
            yield Segment.line()
        for _ in range(room - len(shown)):
            yield Segment.line()
        below = len(lines) - self.top - len(shown)
        more = Text(f"  {below} more lines below.", style="dim") if below else Text()
        last = options.update(height=1, no_wrap=True, overflow="ellipsis")
        yield from console.render_lines(self._bottom + more, last, pad=False)[0]


def view(scene: Mapping[str, Any], width: int) -> Group:
    """Return `scene` for a terminal of `width` columns."""
    styles = _Styles(scene)
    parts: list[RenderableType] = [Text(said, style="yellow") for said in scene.get("news", ())]
    for device in scene.get("devices", ()):
        parts += [*_device(device, width, styles), Text()]
    for one in words.tables(scene, width=max(_NARROWEST, min(60, width - _BESIDE))):
        parts += [Text(one.title, style="bold"), _table(one, styles)]
        parts += [Text(one.note, style="dim"), Text()] if one.note else [Text()]
    parts += [Text(scene["account"])] if "account" in scene else []
    return Group(*(parts or [Text("Nothing is shared here.")]))


def _device(device: Mapping[str, Any], width: int, styles: _Styles) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(words.device_line(device), style="bold")]
    amiss = words.limits_line(device)
    if amiss:
        parts.append(Text(amiss, style="yellow"))
    pieces = device["segments"]
    if any(one["kind"] != "free" for one in pieces):
        parts += [_bar(pieces, width, styles), _memory(device, styles)]
    return parts


def _bar(pieces: Sequence[dict[str, Any]], width: int, styles: _Styles) -> Text:
    """Return memory to scale: a sign and a colour for each piece."""
    on_it = [one for one in pieces if one["kind"] != "parked"]
    bar = Text(no_wrap=True)
    cells = strips.shares([one["size"] for one in on_it], width - 2)
    bar.append("[")
    for one, sign, count in zip(on_it, strips.keys(pieces), cells, strict=False):
        style = styles.of(one)
        bar.append(sign * count, style if one["kind"] == "free" else f"{style} reverse")
    bar.append("]")
    return bar


def _memory(device: Mapping[str, Any], styles: _Styles) -> Table:
    """Return the pieces with the signs they have in the bar."""
    pieces = words.memory_table(device)
    signs = strips.keys(device["segments"])
    keyed = [(sign, *row) for sign, row in zip(signs, pieces.rows, strict=True)]
    table = _empty(("", *pieces.columns), keyed)
    for one, (sign, name, *rest) in zip(device["segments"], keyed, strict=True):
        named = Text(name, style=OWN if one["own"] else "")
        table.add_row(Text(sign, style=styles.of(one)), named, *map(Text, rest))
    return table


def _table(one: words.Table, styles: _Styles) -> Table:
    table = _empty(one.columns, one.rows)
    for number, row in enumerate(one.rows):
        own = number in one.own
        cells = []
        for place, cell in enumerate(row):
            style = OWN if own and place == 0 else ""
            if place == one.strip:
                style = styles.of_label(row[0], own=own)
            cells.append(Text(cell, style=style))
        table.add_row(*cells)
    return table


def _empty(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table to be filled with `rows`: names give way where it is narrow, signs and numbers do not."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for place, column in enumerate(columns):
        number = column.startswith(">")
        firm = number or column in _SIGNS
        table.add_column(
            column.removeprefix(">"),
            justify="right" if number else "left",
            no_wrap=column != "why",
            overflow="fold" if column == "why" else "ellipsis",
            min_width=max((cell_len(row[place]) for row in rows), default=0) if firm else None,
            max_width=_LONGEST if column in _NAMES else None,
        )
    return table


_SIGNS, _LONGEST = ("", "who ran when"), 36
_NAMES = ("memory", "notebook", "user", "waiting", "real time", "bundle")


class _Styles:
    """A colour for each user of one scene; one's own is always the same."""

    def __init__(self, scene: Mapping[str, Any]) -> None:
        rows = [*scene.get("sessions", ()), *(row for one in scene.get("time", ()) for row in one["rows"])]  # fmt: skip
        self._users_of = {row["label"]: row["user"] for row in rows}
        users = sorted({row["user"] for row in rows if row["user"] and not row["own"]})
        self._styles = {user: _OTHERS[n % len(_OTHERS)] for n, user in enumerate(users)}

    def of(self, piece: Mapping[str, Any]) -> str:
        """Return the style of a piece of memory."""
        if piece["own"]:
            return OWN
        return _KINDS.get(piece["kind"]) or self._styles.get(piece["user"], "bright_black")

    def of_label(self, label: str, *, own: bool) -> str:
        """Return the style of a table's row, by its first cell."""
        return OWN if own else self._styles.get(self._users_of.get(label, label), "bright_black")
