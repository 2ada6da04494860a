"""`jupyter gpushare status`: the snapshot, as tables for people or as documented JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text
from traitlets import Bool

from gpushare_kernel.app.base import NO_BROKER, Command, console, say
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.shown import account_text, label, names_of_jobs, words_of
from gpushare_kernel.core.errors import NoBroker
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.transport.places import places
from gpushare_kernel.wire.snapshot import DeviceView, SessionView, Snapshot
from gpushare_kernel.wire.texts import format_duration

_NAMES = ("notebook", "used by", "members", "waiting")
"""Columns that give way where the terminal is narrow: names may be long."""


class StatusApp(Command):
    """Shows what goes on."""

    name = "jupyter-gpushare-status"
    description = "Who shares the device, who waits, and why. Starts no broker; exit status 3 where none runs."
    json = Bool(False, config=True, help="Print the documented snapshot as JSON.")  # noqa: FBT003  traitlets
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "json": ({"StatusApp": {"json": True}}, "Print the documented snapshot as JSON."),
    }

    def start(self) -> None:
        """Ask once, and print."""
        try:
            with Line(places()) as line:
                snapshot = line.snapshot()
        except NoBroker:
            if not self.json:
                raise
            say('{"broker": null}')
            self.exit(NO_BROKER)
        if self.json:
            say(msgspec.json.format(msgspec.json.encode(snapshot)).decode())
        else:
            show(snapshot, console())


def show(snapshot: Snapshot, out: Console) -> None:
    """Print a snapshot as tables: each device with those who are on it, then who waits."""
    if snapshot.broker is not None:
        kind = "system broker" if snapshot.broker.system else "broker"
        out.print(
            f"gpushare {snapshot.broker.version}, {kind} {snapshot.broker.pid}, "
            f"up {format_duration(snapshot.broker.uptime)}"
        )
        if snapshot.broker.trouble:
            out.print(Text(snapshot.broker.trouble, style="yellow"))
    for line in words_of(snapshot):
        out.print(Text(line, style="yellow"))
    numbered = len(snapshot.devices) > 1
    for number, device in enumerate(snapshot.devices):
        out.print()
        here = [one for one in snapshot.sessions if one.device in ("", device.id)]
        out.print(_device(device, f"{number}  " if numbered else "", used=bool(here)))
        for line in _limits(device):
            out.print(Text(line, style="yellow"))
        if here or device.desktop or device.foreign:
            out.print(_sessions(device, here))
        else:
            out.print("No kernels.")
        if device.lanes:
            out.print(_lanes(device, snapshot))
    if snapshot.queue:
        out.print()
        out.print(_queue(snapshot))
    accounts = [said for user in snapshot.users if (said := account_text(user))]
    if accounts:
        out.print()
    for said in accounts:
        out.print(Text(said))


def _device(device: DeviceView, number: str, *, used: bool) -> Text:
    """Return what a device is; what is held of it only where somebody may hold some."""
    whole = f" of {format_size(device.total)}" if device.total else ""
    first = f"{number}{device.name}: shares {format_size(device.capacity)}{whole}, {format_size(device.free)} free"
    if not used:
        return Text(first)
    # The size of a lane of others may not be for us to see.
    granted = device.capacity - device.persistent - device.reserve - device.free
    lanes = max(granted, sum(lane.size for lane in device.lanes))
    return Text(
        f"{first}\n"
        f"kept {format_size(device.persistent)}, contexts {format_size(device.reserve)}, "
        f"lanes {format_size(lanes)}, policy {device.policy}"
    )


def _limits(device: DeviceView) -> list[str]:
    if device.lost:
        return [f"It does not answer: {device.lost}"]
    return [device.limits] if device.limits else []


def _lanes(device: DeviceView, snapshot: Snapshot) -> Table:
    table = _table("lane", ">size", "used by", "members")
    names = names_of_jobs(snapshot)
    for lane in device.lanes:
        occupant = "" if lane.occupant is None else names.get(lane.occupant, lane.occupant)
        members = ", ".join(names.get(job, job) for job in lane.members)
        size = format_size(lane.size) if lane.size else ""
        table.add_row(str(lane.id), size, Text(occupant), Text(members))
    return table


def _sessions(device: DeviceView, sessions: Sequence[SessionView]) -> Table:
    time = "GPU time" if device.kind == "cuda" else "device time"
    table = _table("notebook", "user", "state", "mode", ">keeps", f">{time}", ">turns", ">pid")
    for session in sessions:
        table.add_row(
            Text(label(session)),
            Text(session.user),
            session.state,
            session.mode or "-",
            "" if session.p is None else format_size(session.p),
            f"{session.device_time:.1f} s",
            str(session.turns),
            "" if session.pid is None else str(session.pid),
        )
    for name, size, state in (
        ("desktop", device.desktop, "untouched"),
        ("(not shared)", device.foreign, "no turns"),
    ):
        if size:
            table.add_row(name, "", state, "-", format_size(size))
    return table


def _queue(snapshot: Snapshot) -> Table:
    table = _table("waiting", "for", ">needs", ">ahead", ">since", ">to go")
    names = {session.id: label(session) for session in snapshot.sessions}
    for waiter in snapshot.queue:
        table.add_row(
            Text(names.get(waiter.session, waiter.session)),
            waiter.reason,
            format_size(waiter.needs),
            str(waiter.ahead),
            format_duration(waiter.waited),
            "?" if waiter.eta is None else format_duration(waiter.eta),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix(">"),
            justify="right" if column[0] == ">" else "left",
            no_wrap=column not in _NAMES,
            overflow="fold",
        )
    return table
