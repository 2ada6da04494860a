"""A scene as plain text, for whatever shows nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len

from gpushare_widgets import strips, words
from gpushare_widgets.parties import clean

WIDTH = 80
_LONGEST = 36


def text(scene: Mapping[str, Any], *, when: bool = True) -> str:
    """Return `scene` as text; `when` says of what moment it is."""
    parts = ["\n".join(scene["news"])] if "news" in scene else []
    parts += [memory(device) for device in scene.get("devices", ())]
    parts += [section(one) for one in words.tables(scene, width=40)]
    parts += [scene["account"]] if "account" in scene else []
    if not parts:
        parts.append("Nothing is shared here.")
    if when:
        parts.append(words.as_of(scene))
    return "\n\n".join(parts)


def memory(device: Mapping[str, Any]) -> str:
    """Return a device with its memory; where all of it is free there is nothing to list."""
    lines = [words.device_line(device), words.limits_line(device)]
    segments = device["segments"]
    if any(one["kind"] != "free" for one in segments):
        pieces = words.memory_table(device)
        signs = ["", *strips.keys(segments)]
        rows = [(sign, *row) for sign, row in zip(signs, (pieces.columns, *pieces.rows), strict=True)]  # fmt: skip
        keyed = words.Table("", rows[0], tuple(rows[1:]))
        lines += [bar(device, WIDTH), table(keyed)]
    return "\n".join(filter(None, lines))


def section(one: words.Table) -> str:
    """Return a table with its title above and its note below."""
    return "\n".join(filter(None, (f"{one.title}:", table(one), one.note)))


def bar(device: Mapping[str, Any], width: int) -> str:
    """Return a device's memory to scale, a sign for each piece; what is parked is not on it."""
    on_it = [one for one in device["segments"] if one["kind"] != "parked"]
    signs = strips.keys(device["segments"])
    cells = strips.shares([one["size"] for one in on_it], width - 2)
    drawn = "".join(sign * count for sign, count in zip(signs, cells, strict=False))
    return f"[{drawn}]" if drawn else ""


def table(one: words.Table) -> str:
    """Return rows below each other; a last column of sentences is as long as it is."""
    last = len(one.columns) - 1
    rows = [
        [column.removeprefix(">") for column in one.columns],
        *([cell if n in (last, one.strip) else clean(cell, _LONGEST) for n, cell in enumerate(row)] for row in one.rows),
    ]  # fmt: skip
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for cell, width, column in zip(row, widths, one.columns, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if column.startswith(">") else cell + space)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
