"""`%gpushare memory`: what holds this notebook's memory, as one line of text and as a table; and how to let go of it."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from gpushare_kernel.client.aftermath import clear_frames
from gpushare_kernel.client.arrays import Arrays
from gpushare_kernel.client.holders import Found, Holder, Kind, find, roots
from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import MiB
from gpushare_kernel.wire import texts

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gpushare_kernel.client.session import Session

FREE = "%gpushare memory --free"
MOST = 12
"""Rows of variables; the rest is summed up."""
_ALSO = 3
_LITTLE = MiB
"""What belongs to nobody is told from here on: allocators round up."""
_ATTACH = 0.3
_NO_NAME = {
    True: "of no variable: what runs, libraries, garbage",
    False: "Python's own objects, libraries",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One holder: what it is, its bytes, what it is made of, who else pins it, and how to let go of it."""

    label: str
    size: int
    what: str = ""
    also: str = ""
    way: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All of it; `title` says of what, `notes` what else there is to know."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


# --- Looking (the user's thread) ---------------------------------------------------------------------------


def report(session: Session, shell: InteractiveShell) -> Report:
    """Look at this notebook's memory. Starts no framework and no CUDA."""
    if session.attached is None:
        with contextlib.suppress(
            GpushareError
        ):  # one's own memory can be looked at without a broker
            session.wait_attached(_ATTACH)
    gpu = session.gpu
    if gpu is not None and gpu.broken:
        return Report(texts.BROKEN_SESSION, ())
    found = _look(shell, device=gpu is not None)
    if gpu is None:
        return on_host(found, session.memory.now())
    held, used = gpu.memory.held(), gpu.memory.used()
    kept = {a.name: max(0, held[a] - used.get(a, 0)) for a in held if a.fixed}
    unused = sum(max(0, held[a] - used.get(a, 0)) for a in held if not a.fixed)
    return on_gpu(found, sum(held.values()), sum(used.values()), unused, kept)


def _look(shell: InteractiveShell, *, device: bool) -> Found:
    def cell(file: str) -> str | None:
        kind_and_name = shell.compile.format_code_name(file)
        name = kind_and_name[1] if kind_and_name else ""
        return name[3:-1] if name.startswith("In[") else None

    names = shell.user_ns
    begin = roots(names, hidden=shell.user_ns_hidden, error=_last_error(), cell=cell)
    return find(begin, Arrays(device=device), opaque=[names, shell, shell.user_global_ns])


def _last_error() -> BaseException | None:
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


def free(session: Session) -> str:
    """Let go of what the frames of the last error hold, and give back what is unused then."""
    error = _last_error()
    memory = session.memory if session.gpu is None else session.gpu.memory
    before = memory.now()
    if error is None:
        return "No error holds memory here."
    clear_frames(error)
    if session.gpu is None:
        memory.trim()
    else:
        session.gpu.give_back()
    freed = max(0, before - memory.now())
    came = f"{format_size(freed)} of {session.noun} came back" if freed >= _LITTLE else "No memory came back"  # fmt: skip
    return f"{came}. The frames of the last error are cleared: %debug finds no variables in them."


# --- The report --------------------------------------------------------------------------------------------


def on_gpu(found: Found, held: int, used: int, unused: int, kept: dict[str, int]) -> Report:
    """Return what is told of a GPU: `held` by the frameworks, of that `used`, `unused`, and `kept` by those that give nothing back."""
    rows = _named(found)
    rows += _left(max(0, used - found.size), device=True)
    if unused >= _LITTLE:
        way = "%gpushare release"
        rows.append(Row("unused", unused, "kept by the frameworks for later", "", way, f"[{way}]"))
    rows += [
        Row(f"unused ({name})", size, "kept until the kernel restarts", "", "restart the kernel")
        for name, size in kept.items()
        if size >= _LITTLE
    ]
    title = f"GPU memory of this notebook: {format_size(max(held, found.size))}, its context apart"
    return Report(title, tuple(rows), _notes(found, rows, "GPU memory"))


def on_host(found: Found, held: int) -> Report:
    """Return what is told where there is no GPU: what the process `held`, less what it began with."""
    rows = [*_named(found), *_left(max(0, held - found.size), device=False)]
    title = (
        f"No GPU here: memory of this notebook's process, {format_size(max(held, found.size))}. "
        "Counted are NumPy arrays, and torch tensors and JAX arrays on the CPU"
    )
    return Report(title, tuple(rows), _notes(found, rows, "memory"))


def _named(found: Found) -> list[Row]:
    rows = [_row(holder) for holder in found.holders[:MOST]]
    more = found.holders[MOST:]
    if more:
        rows.append(Row(f"{len(more)} more", sum(holder.size for holder in more)))
    return rows


def _row(holder: Holder) -> Row:
    count = "1 array" if holder.arrays == 1 else f"{holder.arrays} arrays"
    what = ", ".join(filter(None, (holder.type, "" if holder.arrays == 1 and holder.type else count)))  # fmt: skip
    names = [name for name, _ in holder.also[:_ALSO]]
    more = len(holder.also) - len(names)
    also = ", ".join([*names, *([f"{more} more"] if more > 0 else [])])
    way = {
        Kind.NAME: f"del {holder.label}",
        Kind.MODULE: f"{holder.label} = None",
        Kind.RESULT: "%reset -f out",
        Kind.ERROR: FREE,
    }[holder.kind]
    return Row(holder.label, holder.size, what, also, way, "[free]" if way == FREE else "")


def _left(size: int, *, device: bool) -> list[Row]:
    label = "no name" if device else "everything else"
    return [Row(label, size, _NO_NAME[device])] if size >= _LITTLE else []


def _notes(found: Found, rows: list[Row], noun: str) -> tuple[str, ...]:
    notes = [] if found.holders else [f"No array or tensor holds {noun}."]
    if any(row.way == FREE for row in rows):
        notes.append(f"[free]: {FREE} lets go of it.")
    if found.cut:
        notes.append("There is too much to look at all of it at once: what was not found is under no name.")  # fmt: skip
    return tuple(notes)


# --- What is shown -------------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """Return the report for a front end that shows text: `model 2.1 GiB · Out[12] 1.0 · unused 3.0 [%gpushare release]`."""
    unit = format_size(report.rows[0].size).split()[1] if report.rows else ""
    parts: list[str] = []
    for row in report.rows:
        size = _short(row.size, unit if parts else "")
        also = f" (also {row.also})" if row.also else ""
        parts.append(" ".join(filter(None, (f"{row.label} {size}{also}", row.mark))))
    return "\n".join(filter(None, (report.title, " · ".join(parts), *report.notes)))


def _short(size: int, unit: str) -> str:
    number, own = format_size(size).split()
    return number if own == unit else f"{number} {own}"


_CELL = "padding:3px 16px 3px 0;text-align:left;vertical-align:baseline;font-weight:normal;"
_SIZE = "padding:3px 16px 3px 0;text-align:right;vertical-align:baseline;white-space:nowrap;font-weight:normal;font-variant-numeric:tabular-nums;"  # fmt: skip
_QUIET = "color:var(--jp-ui-font-color2,#616161);"
_SMALL = f"{_QUIET}font-size:0.9em;"
_BAR = "display:block;margin-left:auto;height:4px;min-width:2px;background:var(--jp-brand-color1,#1976d2);"
_COLUMNS = (("held by", _CELL), ("size", _SIZE), ("to let go", _CELL), ("also held by", _CELL))  # fmt: skip


def html(report: Report) -> str:
    """Return the report as a table that needs no script, no style sheet and no network."""
    notes = "".join(f'<div style="{_QUIET}">{escape(note)}</div>' for note in report.notes if not note.startswith("[free]"))  # fmt: skip
    if not report.rows:
        return f"<div>{escape(report.title)}</div>{notes}"
    most = max(row.size for row in report.rows)
    head = "".join(
        f'<th scope="col" style="{style}{_QUIET}">{name}</th>' for name, style in _COLUMNS
    )
    body = "".join(_html_row(row, row.size / most) for row in report.rows)
    caption = f'<caption style="caption-side:top;text-align:left;padding:0 0 4px;color:inherit;font-weight:600;">{escape(report.title)}</caption>'  # fmt: skip
    table = f'<table style="margin:0;border-collapse:collapse;">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'  # fmt: skip
    return f'<div style="overflow-x:auto;">{table}{notes}</div>'


def _html_row(row: Row, part: float) -> str:
    bar = f'<span aria-hidden="true" style="{_BAR}width:{64 * part:.0f}px;"></span>'
    what = f'<br/><span style="{_SMALL}">{_safe(row.what)}</span>' if row.what else ""
    way = f'<code style="white-space:nowrap;">{_safe(row.way)}</code>' if row.way else ""
    return (
        f'<tr><th scope="row" style="{_CELL}">{_safe(row.label)}{what}</th>'
        f'<td style="{_SIZE}">{format_size(row.size)}{bar}</td>'
        f'<td style="{_CELL}">{way}</td><td style="{_CELL}">{_safe(row.also)}</td></tr>'
    )


def _safe(text: str) -> str:
    """Return a name as text that changes neither the markup nor the direction of what is around it."""
    return f"<bdi>{escape(text)}</bdi>" if text else ""
