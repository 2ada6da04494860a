"""Durations are of CLOCK_MONOTONIC: it stands still with a machine that sleeps, and nobody sets it.

A wall clock is for what people read and for what must be told apart over weeks. Each place that reads one is here, with why.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WALL = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow", "datetime.fromtimestamp", "datetime.datetime.now", "CLOCK_REALTIME", "CLOCK_BOOTTIME"}  # fmt: skip
READ_BY = {
    "gpushare_kernel/app/admin.py": "the hours that administrators read",
    "gpushare_kernel/app/top.py": "the hour that `top` shows",
    "gpushare_kernel/broker/audit.py": "when somebody did what is in the audit log",
    "gpushare_kernel/broker/controls.py": "`idle since 14:05`, counted back from now by the monotonic clock",
    "gpushare_kernel/broker/groups.py": "a timetable is of hours and weekdays",
    "gpushare_kernel/broker/jobs.py": "which day the longest wait was on",
    "gpushare_kernel/broker/kernels.py": "when a session was opened, for people",
    "gpushare_kernel/broker/logs.py": "the log's lines",
    "gpushare_kernel/broker/needs.py": "what was learned longest ago is forgotten first",
    "gpushare_kernel/broker/reading.py": "when counters began, as OpenMetrics wants it",
    "gpushare_kernel/broker/spending.py": "budgets are of calendar weeks",
    "gpushare_kernel/broker/upkeep.py": "since when a maintenance is, for people",
    "gpushare_kernel/client/shown.py": "the same, in a notebook",
    "gpushare_kernel/devices/sampler.py": "NVML's stamps are of it",
    "gpushare_kernel/hub/activity.py": "a hub is told when somebody was active",
    "gpushare_kernel/nwv/checkpoint.py": "checkpoints that nobody took up for days",
    "gpushare_kernel/realtime/measurement.py": "when a profile was taken, for people",
    "widgets/gpushare_widgets/feed.py": "the hour that the live view shows",
    "widgets/gpushare_widgets/static.py": "the hour that a picture shows",
    "widgets/gpushare_widgets/words.py": "the same, in words",
}


def wall_clocks(tree: ast.AST) -> Iterator[str]:
    """Yield the names of the wall clocks that a module reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name in WALL or node.attr in WALL:
                yield name
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{one.name}" for one in node.names if f"time.{one.name}" in WALL)


def test_no_duration_is_of_a_clock_that_jumps() -> None:
    """Nobody but those named reads one."""
    found = {}
    for folder in ("gpushare_kernel", "magics/gpushare_magics", "widgets/gpushare_widgets"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if clocks := [*wall_clocks(ast.parse(path.read_text(encoding="utf-8")))]:
                found[str(path.relative_to(ROOT))] = clocks
    assert found.keys() == READ_BY.keys(), found


def test_they_are_recognised() -> None:
    """Whatever they are imported as."""
    code = "import time, datetime\nfrom time import time\ntime.time()\ndatetime.datetime.now()\ntime.clock_gettime(time.CLOCK_BOOTTIME)\ntime.monotonic()"
    assert [*wall_clocks(ast.parse(code))] == ["time.time", "time.time", "datetime.datetime.now", "time.CLOCK_BOOTTIME"]  # fmt: skip
