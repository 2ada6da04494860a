"""The scene in words: headings and tables that plain text, the static record and the terminal show alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gpushare_kernel.client.shown import format_size, texts
from gpushare_widgets import strips

Scene = Mapping[str, Any]
LEGEND = "▁…█ has the device  ░ finishes its work  = paused  ≡ parked"
"""What the signs of a strip of time mean."""
_BAR = 20


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with a heading. A column that begins with `>` is of numbers; `own` are the rows that are one's own; `strip` is the column of signs."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    own: frozenset[int] = field(default_factory=frozenset)
    note: str = ""
    strip: int | None = None


def device_line(device: Scene) -> str:
    """Return what a device is, as `%gpushare status` says it."""
    whole = f" of its {format_size(device['total'])}" if device["total"] else ""
    return (
        f"{device['name']} ({device['id']}): shares {format_size(device['capacity'])}{whole} of "
        f"{device['noun']}, {format_size(device['free'])} free, policy {device['policy']}"
    )


def limits_line(device: Scene) -> str:
    """Return what is amiss with a device; empty where nothing is."""
    return str(device.get("lost") or device.get("limits") or "")


def as_of(scene: Scene) -> str:
    """Return when the scene was."""
    when = datetime.fromtimestamp(scene["at"]).astimezone()
    return f"As of {when:%Y-%m-%d %H:%M:%S %Z}."


def tables(scene: Scene, *, width: int) -> list[Table]:
    """Return what is beside the memory, a table a section; strips of time are `width` signs wide."""
    several = len(scene.get("devices", ())) > 1
    made = [
        *(time_table(one, width=width, named=several) for one in scene.get("time", ())),
        _shares(scene.get("shares", ())),
        _queue(scene.get("queue", ())),
        _sessions(scene.get("sessions", ())),
        _rt(scene.get("rt", ())),
        _bundles(scene.get("bundles", ())),
    ]
    return [table for table in made if table.rows]


def memory_table(device: Scene) -> Table:
    """Return the memory of a device, piece by piece."""
    pieces = device["segments"]
    rows = tuple((one["label"], _what(one), format_size(one["size"]), _fill(one)) for one in pieces)
    columns = ("memory", "is", ">size", ">in use")
    return _shortened(Table("Memory", columns, rows, _own(pieces)))


def time_table(time: Scene, *, width: int, named: bool) -> Table:
    """Return who ran when on one device."""
    rows = tuple(
        (
            row["label"],
            strips.strip(row["spans"], time["window"], width),
            _spent(row["spans"], "turn"),
            _spent(row["spans"], "pause", "park"),
        )
        for row in time["rows"]
    )
    columns = ("notebook", "who ran when", ">ran", ">stood still")
    where = f" on {time['device']}" if named else ""
    title = f"The last {time['window']:.0f} s{where}"
    return _shortened(Table(title, columns, rows, _own(time["rows"]), LEGEND, strip=1))


def _shares(shares: Sequence[Scene]) -> Table:
    over = shares[0]["over"] if shares else None
    since = "since the broker started" if over is None else f"in the last {over:.0f} s"
    rows = tuple(
        (
            one["user"],
            strips.share(one["share"], one["fair"], _BAR),
            f"{one['share']:.0%}",
            f"{one['fair']:.0%}",
            texts.format_duration(one["used"]),
        )
        for one in shares
    )
    columns = ("user", "", ">share", ">fair share", ">ran")
    note = "│ is the fair share. What somebody does not use goes to the others."
    return Table(f"Shares {since}", columns, rows, _own(shares), note, strip=1)


def _queue(queue: Sequence[Scene]) -> Table:
    rows = tuple(
        (
            one["label"],
            "next" if one["place"] == 0 else str(one["place"]),
            texts.format_duration(one["waited"]),
            one["text"],
        )
        for one in queue
    )
    return Table("Waiting", ("waiting", ">ahead", ">since", "why"), rows, _own(queue))


def _sessions(sessions: Sequence[Scene]) -> Table:
    rows = tuple(
        (
            one["label"],
            "you" if one["own"] else one["user"] or "",
            one["state"] + (f", {one['mode']}" if one["mode"] else ""),
            "-" if one["held"] is None else format_size(one["held"]),
            one["doing"],
        )
        for one in sessions
    )
    columns = ("notebook", "of", "state", ">keeps", "doing")
    return _shortened(Table("Notebooks", columns, rows, _own(sessions)))


def _rt(jobs: Sequence[Scene]) -> Table:
    rows = tuple(
        (one["label"], *(_milliseconds(one[key]) for key in ("period", "deadline", "margin")), str(one["misses"]))
        for one in jobs
    )  # fmt: skip
    columns = ("real time", ">every", ">deadline", ">margin", ">missed")
    return Table("Deadlines", columns, rows, _own(jobs))


def _bundles(bundles: Sequence[Scene]) -> Table:
    rows = tuple(
        (one["name"], str(one["pages"]), str(one["shared"]), format_size(one["size"]))
        for one in bundles
    )
    return Table("Models that share pages", ("bundle", ">pages", ">shared", ">size"), rows, _own(bundles))  # fmt: skip


_KINDS = {
    "context": "what using the device costs",
    "persistent": "kept",
    "lane": "for what runs",
    "free": "free",
    "desktop": "never paused",
    "foreign": "takes no turns",
    "parked": "parked beside it",
}


def _what(segment: Scene) -> str:
    return _KINDS.get(segment["kind"], str(segment["kind"]))


def _fill(segment: Scene) -> str:
    return "" if segment["fill"] is None else format_size(segment["fill"])


def _shortened(table: Table) -> Table:
    """Return a table without its last column where that says nothing."""
    if any(row[-1] for row in table.rows):
        return table
    rows = tuple(row[:-1] for row in table.rows)
    return replace(table, columns=table.columns[:-1], rows=rows)


def _own(rows: Sequence[Scene]) -> frozenset[int]:
    return frozenset(number for number, row in enumerate(rows) if row["own"])


def _spent(spans: Sequence[Sequence[Any]], *kinds: str) -> str:
    seconds = sum(began - ended for began, ended, kind in spans if kind in kinds)
    return f"{seconds:.1f} s" if seconds else ""


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 1 else texts.format_duration(seconds)
