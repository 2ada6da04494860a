"""`%gpushare status`, `lanes` and `doctor` as short plain text."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpushare_kernel import __version__
from gpushare_kernel.client.shown import (
    DeviceView,
    NeedView,
    SessionView,
    Snapshot,
    account_text,
    label,
    names_of_jobs,
    words_of,
)
from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.wire import need_texts, texts

if TYPE_CHECKING:
    from gpushare_kernel.client.session import Session

_MOST_NEEDS = 20
"""Rows of learned needs that are shown: the latest used."""
_LONGEST = 40
"""Characters of a name that are shown."""
_STARTUP = Path("etc/ipython/startup/00-gpushare.py")


def status(snapshot: Snapshot) -> str:
    """Return devices, notebooks and the queue, in the words people read."""
    parts = ["\n".join(said)] if (said := words_of(snapshot)) else []
    for device in snapshot.devices:
        here = [one for one in snapshot.sessions if one.device in ("", device.id)]
        parts.append("\n".join([_device(device), *_others(device)]))
        parts.append(_notebooks(here) if here else "No notebook is connected.")
    if snapshot.queue:
        names = {s.id: label(s) for s in snapshot.sessions}
        waiting = [("waiting", "for", "needs", "ahead", "since", "about")]
        waiting += [
            (
                _name(names.get(q.session, "somebody")),
                q.reason,
                _size(q.needs or None),
                str(q.ahead),
                _time(q.waited),
                "-" if q.eta is None else f"{texts.format_duration(q.eta)} to go",
            )
            for q in snapshot.queue
        ]
        parts.append(_table(waiting))
    mine = [account_text(user) for user in snapshot.users if user.own]
    return "\n\n".join([*parts, *filter(None, mine)])


def _notebooks(sessions: Sequence[SessionView]) -> str:
    rows = [("notebook", "state", "keeps", "device time")]
    ordered = sorted(sessions, key=lambda s: (not s.own, s.name or s.user))
    rows += [(_name(label(s)), _state(s), _size(s.p), _time(s.device_time)) for s in ordered]
    return _table(rows)


def _others(device: DeviceView) -> list[str]:
    """Who uses the device and takes no part; what the device cannot do."""
    noun = texts.memory_noun(device.kind)
    said = [f"It does not answer: {device.lost}"] if device.lost else []
    if device.limits and not device.lost:
        said.append(device.limits)
    if device.desktop:
        said.append(texts.desktop_text(device.desktop, noun))
    if device.foreign:
        said.append(texts.foreign_text(device.foreign, noun))
    return said


def lanes(snapshot: Snapshot) -> str:
    """Return the memory of each device: what is kept, and the lanes."""
    parts = []
    names = names_of_jobs(snapshot)
    for device in snapshot.devices:
        rows = [("lane", "size", "in use by", "members")]
        rows += [
            (
                str(lane.id),
                format_size(lane.size) if lane.size else "",
                _name(names.get(lane.occupant, "somebody")) if lane.occupant else "-",
                ", ".join(_name(names.get(job, "somebody")) for job in lane.members),
            )
            for lane in device.lanes
        ]
        kept = f"kept {format_size(device.persistent)}, reserved {format_size(device.reserve)}"
        table = _table(rows) if device.lanes else "No lanes."
        parts.append(f"{_device(device)}\n{kept}\n{table}")
    return "\n\n".join(parts) or "No device."


def needs(known: Sequence[NeedView], first_lines: Mapping[str, str]) -> str:
    """Return what is known of the user's code; cells that ran here are called by their first line."""
    if not known:
        return need_texts.NO_NEEDS
    rows = [("code", "of", "runs", "declared", "learned", "last run", "advice")]
    rows += [
        (
            first_lines.get(need.code) or need.code,
            need.name,
            str(need.runs),
            _declared(need),
            _need(need, need.persistent, need.ephemeral, need.time),
            _need(need, need.measured_persistent, need.measured_ephemeral, need.measured_time),
            need_texts.need_advice(need),
        )
        for need in known[:_MOST_NEEDS]
    ]
    more = len(known) - _MOST_NEEDS
    parts = [need_texts.NEEDS_LEGEND, _table(rows), *([f"and {more} more"] if more > 0 else [])]
    return "\n".join(parts)


def _declared(need: NeedView) -> str:
    time = None if need.declared_time is None else _time(need.declared_time)
    if need.declared_size is not None:
        sizes: str | None = format_size(need.declared_size)
    elif need.declared_persistent is None and need.declared_ephemeral is None:
        sizes = None
    else:
        sizes = _parts(need.declared_persistent or 0, need.declared_ephemeral or 0)
    return ", ".join(filter(None, (sizes, time))) or "-"


def _need(need: NeedView, persistent: int, ephemeral: int, time: float | None) -> str:
    sizes = None if need.code.startswith("run:") else _parts(persistent, ephemeral)
    return ", ".join(filter(None, (sizes, _time(time) if time else None))) or "-"


def _parts(persistent: int, ephemeral: int) -> str:
    beside = f" + {format_size(ephemeral)}" if ephemeral else ""
    return f"{format_size(persistent)}{beside}"


def doctor(session: Session | None) -> str:
    """Return what this kernel finds, one line a check."""
    startup = Path(sys.prefix) / _STARTUP
    rows = [
        ("gpushare", f"{__version__} in {sys.prefix}"),
        ("startup file", str(startup) if startup.exists() else f"not found: {startup}. In a clone of gpushare: pip install . (not --user)"),
        ("session", os.environ.get("GPUSHARE_SESSION") or "none: this kernel was not started by gpushare. jupyter gpushare doctor says why"),
        ("socket", os.environ.get("GPUSHARE_SOCKET") or "none"),
    ]  # fmt: skip
    if session is not None:
        rows += _connection(session)
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


def _connection(session: Session) -> list[tuple[str, str]]:
    try:
        found = session.wait_attached(2.0)
        snapshot = session.snapshot()
    except GpushareError as problem:
        return [("broker", str(problem))]
    noun, broker = texts.memory_noun(found.kind), snapshot.broker
    rows = [
        ("device", f"{found.device} ({found.device_name}), {format_size(found.capacity)} of {noun}")
    ]
    if broker is not None:
        kind = "of this host" if broker.system else "your own"
        rows.insert(
            0, ("broker", f"{broker.version}, {kind}, up {texts.format_duration(broker.uptime)}")
        )
    rows.append(("memory here", format_size(session.memory.now())))
    rows += [("your limits", said) for user in snapshot.users if user.own and (said := account_text(user))]  # fmt: skip
    return rows


def _device(device: DeviceView) -> str:
    noun = texts.memory_noun(device.kind)
    return f"{device.name} ({device.id}): {format_size(device.capacity)} of {noun}, {format_size(device.free)} free"


def _state(session: SessionView) -> str:
    shared = {"co-run": ", shared", "exclusive": ", in turns"}
    return session.state + shared.get(session.mode or "", "")


def _name(text: str) -> str:
    """Return a name that breaks no row: as short as the live view has it."""
    from gpushare_widgets.parties import clean  # noqa: PLC0415 - only where somebody looks

    return clean(text, _LONGEST)


def _size(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _time(seconds: float) -> str:
    return texts.format_duration(seconds)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
