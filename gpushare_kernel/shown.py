"""Tables as text and as HTML: what is printed, and what stays in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpushare_kernel.core.errors import UserError

_CELL = "padding:2px 10px 2px 0;border:0;text-align:{};background:none"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with a heading. A column that begins with `>` is of numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return it as text."""
        heads = [column.removeprefix(">") for column in self.columns]
        lines = [heads, *map(list, self.rows)]
        widths = [max(len(line[n]) for line in lines) for n in range(len(heads))]
        shown = [
            "  ".join(
                cell.rjust(width) if column.startswith(">") else cell.ljust(width)
                for cell, width, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *shown, *self.notes])

    def html(self) -> str:
        """Return it as HTML that needs no style sheet and no script."""
        head = self._row("th", [column.removeprefix(">") for column in self.columns])
        body = "".join(self._row("td", row) for row in self.rows)
        notes = "".join(f"<div><small>{html.escape(note)}</small></div>" for note in self.notes)
        title = f"<b>{html.escape(self.title)}</b>"
        return f'<div>{title}<table style="border-collapse:collapse"><tbody>{head}{body}</tbody></table>{notes}</div>'

    def _row(self, tag: str, cells: Sequence[str]) -> str:
        made = []
        for cell, column in zip(cells, self.columns, strict=True):
            style = _CELL.format("right" if column.startswith(">") else "left")
            made.append(f'<{tag} style="{style}">{html.escape(cell)}</{tag}>')
        return f"<tr>{''.join(made)}</tr>"


def milliseconds(seconds: float | None) -> str:
    """Return seconds as milliseconds to read: three digits that count."""
    if seconds is None:
        return ""
    value = seconds * 1000
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"  # noqa: PLR2004


def figure(*, extra: str = "realtime", **options: Any) -> Any:
    """Return an empty matplotlib figure that no window is opened for. `extra` is ours that brings matplotlib.

    Raises
    ------
    UserError
        Where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  an extra: only who draws needs it
    except ImportError:
        msg = f"plot() needs matplotlib, which is not installed here. In a clone of gpushare: pip install '.[{extra}]'"
        raise UserError(msg) from None
    return Figure(layout="constrained", **options)
