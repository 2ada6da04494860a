"""`jupyter gpushare doctor`: a verdict first, then each check with what to do."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text
from traitlets import Bool

from gpushare_kernel.app.base import Command, console, say
from gpushare_kernel.app.checks import GPU, Check, Finding, examine
from gpushare_kernel.devices.verdict import Probe, probe_machine
from gpushare_kernel.transport.places import places


class DoctorApp(Command):
    """Says what is well."""

    name = "jupyter-gpushare-doctor"
    description = """Say how much of gpushare works here, and what to do where that is not all. Exit status 1 where something fails.

    The first line is the verdict: FULL, COOPERATIVE ONLY (nobody can be paused), WATCH ONLY (the GPU is not shared),
    or CPU ONLY (there is none)."""
    json = Bool(False, config=True, help="Print verdict and checks as JSON.")  # noqa: FBT003  traitlets
    flags = {  # noqa: RUF012  traitlets reads it from the class
        **Command.flags,
        "json": ({"DoctorApp": {"json": True}}, "Print verdict and checks as JSON."),
    }

    def start(self) -> None:
        """Look, give the verdict, then the reasons."""
        gpu = probe_machine()
        checks = list(examine(places(), gpu))
        if self.json:
            say(as_json(gpu, checks))
        else:
            show(gpu, checks, console())
        self.exit(1 if failures(checks) else 0)


def failures(checks: Sequence[Check]) -> list[Check]:
    """Return what keeps notebooks from sharing."""
    return [check for check in checks if check.finding is Finding.FAILED]


def verdict_line(gpu: Probe, checks: Sequence[Check]) -> str:
    """Return the first line: the GPU's verdict, unless something else fails."""
    failed = [check for check in failures(checks) if check.name != GPU]
    if not failed:
        return gpu.sentence
    return f"{gpu.verdict}, but not all is well: {failed[0].text}"


def show(gpu: Probe, checks: Sequence[Check], out: Console) -> None:
    """Print it: wrapped for a terminal, a line each for a file or a pipe."""
    wide = not out.is_terminal
    out.print(Text(verdict_line(gpu, checks), style="bold"), soft_wrap=wide)
    longest = max(len(check.name) for check in checks)
    table = Table.grid(padding=(0, 2))
    for check in checks:
        mark, style = check.finding.value
        if wide:
            out.print(
                f"{mark:4}  {check.name:{longest}}  {check.text}", soft_wrap=True, markup=False
            )
        table.add_row(Text(mark, style=style), Text(check.name), Text(check.text, overflow="fold"))
    if not wide:
        out.print(table)


def as_json(gpu: Probe, checks: Sequence[Check]) -> str:
    """Return it for programs; keys are added, never renamed."""
    found = {
        "verdict": gpu.verdict,
        "why": gpu.why,
        "command": gpu.command,
        "well": not failures(checks),
        "checks": [
            {"finding": check.finding.value[0].lower(), "name": check.name, "text": check.text}
            for check in checks
        ],
    }
    return msgspec.json.format(msgspec.json.encode(found)).decode()
