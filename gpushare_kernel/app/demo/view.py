"""What the demo shows: one panel while it runs, lines where there is no terminal, and the tables at its end."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpushare_kernel.app.demo.act import Act, State
from gpushare_kernel.app.demo.history import IDLE, History
from gpushare_kernel.client.shown import names_of_jobs
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.core.values import MiB
from gpushare_kernel.wire.messages import Report
from gpushare_kernel.wire.snapshot import Snapshot

_UNDER = " " * len("  0.0 s  ")
STYLES = {
    State.LATER: "dim",
    State.STARTING: "cyan",
    State.WAITING: "yellow",
    State.RUNNING: "green",
    State.DONE: "bold green",
    State.FAILED: "bold red",
}


def panel(acts: Sequence[Act], history: History, elapsed: float) -> Panel:
    """Return the live view."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, width=len(State.LATER))
    table.add_column(ratio=1)
    for act in acts:
        shown = act.look()
        table.add_row(Text(act.name, style="bold"), Text(act.state, style=STYLES[act.state]), shown)
    parts = [table] if history.latest is None else [table, Text(), _lanes(history.latest)]
    return Panel(Group(*parts), title=f"gpushare demo, {elapsed:.0f} s", title_align="left")


class Lines:
    """Says what changes, line by line, where nobody watches a terminal."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._seen: dict[str, tuple[State, str | None]] = {}

    def update(self, acts: Sequence[Act], elapsed: float) -> None:
        """Print a line for each notebook whose state changed."""
        for act in acts:
            act.look()
            now = (act.state, act.reason if act.state is State.WAITING else None)
            if self._seen.get(act.name) != now:
                self._seen[act.name] = now
                reason = f": {now[1]}" if now[1] else ""
                line = f"{elapsed:5.1f} s  {act.name} {act.state}{reason}"
                wrapped = textwrap.fill(
                    line, self._out.width, subsequent_indent=_UNDER, break_on_hyphens=False
                )
                self._out.print(Text(wrapped), soft_wrap=True)


def figures(acts: Sequence[Act]) -> Table:
    """Return what became of each notebook's jobs, narrow enough for 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("notebook")
    memory = "MiB\nsaid/used"
    for heading in ("waited", "ran", "device\ntime", "share", f"P, {memory}", f"E, {memory}"):
        table.add_column(heading, justify="right")
    table.add_column("bound-\naries", justify="right")
    table.add_column("turns", justify="right")
    for act in acts:
        for report in act.reports:
            table.add_row(act.title, *_cells(report))
    return table


def lane_history(history: History, acts: Sequence[Act]) -> Group:
    """Return who used which lane when."""
    letters = {act.name: chr(ord("A") + number) for number, act in enumerate(acts)}
    lines = [Text("Who used each lane, from the first second to the last:")]
    for number, lane in sorted(history.lanes.items()):
        label = f"lane {number} {format_size(lane.size):>8}  "
        lines.append(Text(label + history.strip(number, letters)))
    legend = ", ".join(f"{letters[act.name]} {act.title}" for act in acts)
    lines.append(Text(f"{legend}, {IDLE} nobody. Small lanes are those of plain cells.", "dim"))
    return Group(*lines)


def _lanes(snapshot: Snapshot) -> Group:
    names = names_of_jobs(snapshot)
    lines = []
    for device in snapshot.devices:
        lines.append(
            Text(
                f"{format_size(device.capacity)} shared: {format_size(device.persistent)} kept by "
                f"notebooks, {format_size(device.free)} free",
                "dim",
            )
        )
        for lane in device.lanes:
            used = names.get(lane.occupant or "", "nobody")
            members = ", ".join(names.get(job, job) for job in lane.members)
            lines.append(
                Text(
                    f"lane {lane.id}, {format_size(lane.size)}: used by {used}; members {members}",
                    "dim",
                )
            )
    return Group(*lines)


def _cells(report: Report) -> list[str]:
    return [
        f"{report.waited:.1f} s",
        f"{report.ran:.1f} s",
        f"{report.device_time:.1f} s",
        f"{report.share:.0%}",
        _beside(report.persistent_declared, report.persistent_measured),
        _beside(report.ephemeral_declared, report.ephemeral_measured),
        str(report.boundaries),
        str(report.turns),
    ]


def _beside(declared: int, measured: int) -> str:
    return f"{declared / MiB:.0f}/{measured / MiB:.0f}"
