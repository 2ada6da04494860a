"""What stays in a notebook of whatever a user prints: HTML and text that need no kernel, no network and no script."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gpushare_kernel.client.shown import Report, Snapshot, format_size, texts
from gpushare_widgets import markup, plain
from gpushare_widgets.scene import Scene, scene
from gpushare_widgets.words import Table

if TYPE_CHECKING:
    from gpushare_kernel.client.lanes import Lane
    from gpushare_kernel.client.session import Session


class Record:
    """Something as it was, to be shown by whatever can show HTML or text.

    Attributes
    ----------
    html, text
        The same in both.
    """

    def __init__(self, html: str, text: str) -> None:
        self.html = html
        self.text = text

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """Called by IPython: no widget, so that nothing is missing later."""
        del include, exclude
        return {"text/html": self.html, "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text


def of_scene(shown: Scene) -> Record:
    """Return the record of a scene."""
    return Record(markup.page(shown), plain.text(shown))


def of_snapshot(snapshot: Snapshot, now: float | None = None) -> Record:
    """Return the record of a snapshot; it has no time of its own, `now` is when it was told."""
    return of_scene(scene(snapshot, now=time.time() if now is None else now))


def of_report(report: Report) -> Record:
    """Return the record of what became of a job."""
    return of_reports([report])


def of_reports(reports: Sequence[Report]) -> Record:
    """Return the record of what became of several."""
    columns = (">waited", ">ran", ">device time", ">of the device", ">declared", ">took", ">steps", ">turns")  # fmt: skip
    rows = tuple(
        (
            *map(texts.format_duration, (one.waited, one.ran, one.device_time)),
            f"{one.share:.0%}",
            _parts(one.persistent_declared, one.ephemeral_declared),
            _parts(one.persistent_measured, one.ephemeral_measured),
            str(one.boundaries),
            str(one.turns),
        )
        for one in reports
    )
    note = "Memory it keeps + memory it had beyond that while it ran." if rows else ""
    return _of_tables(Table("What became of it" if rows else "Nothing has run yet", columns, rows, note=note))  # fmt: skip


def of_lane(lane: Lane) -> Record:
    """Return the record of a lane; once it is left, with what became of it."""
    declared = _parts(lane.persistent or 0, lane.ephemeral or 0)
    row = (lane.state, declared, texts.format_duration(lane.waited), str(lane.boundaries))
    first = Table(f"Lane {lane.name}", ("state", ">declared", ">waited", ">steps"), (row,))
    if lane.report is None:
        return _of_tables(first)
    after = of_report(lane.report)
    before = _of_tables(first)
    return Record(before.html + after.html, f"{before.text}\n\n{after.text}")


def of_session(session: Session) -> Record:
    """Return the record of this notebook's session, without asking the broker."""
    known = session.attached
    state = "connected" if session.up else "away from the broker"
    if known is None:
        return _of_tables(Table("This notebook", ("state",), ((state,),)))
    limit = "as much as is free" if known.limit is None else format_size(known.limit)
    row = (state, f"{known.device_name} ({known.device})", format_size(known.capacity), limit)
    columns = ("state", "device", f">{session.noun}", ">it may use")
    return _of_tables(Table("This notebook", columns, (row,)))


_RECORDS: dict[str, Callable[[Any], Record]] = {
    "Snapshot": of_snapshot,
    "Report": of_report,
    "Reports": of_reports,
    "Lane": of_lane,
    "Session": of_session,
}


def bundle(shown: object) -> dict[str, str]:
    """Return what a notebook keeps of one of the things that users print."""
    return _RECORDS[type(shown).__name__](shown)._repr_mimebundle_()


def _of_tables(*tables: Table) -> Record:
    html = markup.whole(markup.section(table) for table in tables)
    return Record(html, "\n\n".join(map(plain.section, tables)))


def _parts(persistent: int, ephemeral: int) -> str:
    beside = f" + {format_size(ephemeral)}" if ephemeral else ""
    return f"{format_size(persistent)}{beside}"
