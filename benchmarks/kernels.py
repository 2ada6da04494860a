"""Real kernels, started through a given provisioner, and windows in which they work side by side."""

from __future__ import annotations

import ast
import contextlib
import json
import mmap
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from benchmarks.common import Figure
from gpushare_kernel import procfs

SHARED, LOCAL = "gpushare", "local-provisioner"
WORKLOAD = Path(__file__).with_name("workload.py").read_text(encoding="utf-8")
START_LIMIT = 60
SETTLE = 1.5
"""Seconds a window's kernels work before they are counted: plain cells become jobs, demand is measured."""
_LAP = 0.2


class CellFailed(Exception):
    """A cell of a benchmark raised."""


class Kernel:
    """A kernel and its client. `begin` sends a cell, `finish` waits for it and returns its last value."""

    def __init__(
        self, provisioner: str, *, weight: float | None = None, spec: str | None = None
    ) -> None:
        self.provisioner = provisioner
        # Sockets in the file system: ports that several kernels look for at the same time are sometimes taken.
        self.manager = KernelManager(
            kernel_name=spec or _spec(provisioner, weight),
            transport="ipc",
            ip=str(Path(os.environ["JUPYTER_RUNTIME_DIR"], uuid.uuid4().hex[:8])),
        )
        self.client: BlockingKernelClient = self.manager.client()
        self._asked = ""

    def start(self) -> Self:
        """Start it, wait until it answers, and define the workload."""
        try:
            self.launch()
            self.run(WORKLOAD)
        except BaseException:
            self.close()
            raise
        return self

    def launch(self) -> None:
        """Start it and wait until it answers."""
        with Path(os.environ["JUPYTER_DATA_DIR"], "kernels.log").open("ab") as log:
            self.manager.start_kernel(stderr=log)
        self.client.load_connection_file(self.manager.connection_file)
        self.client.start_channels()
        self.client.wait_for_ready(START_LIMIT)

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self.manager.provisioner.pid)

    def begin(self, code: str, value: str = "None") -> None:
        """Send a cell; `value` is an expression that `finish` returns (anything JSON can say)."""
        wanted = f"__import__('json').dumps({value})"
        self._asked = self.client.execute(code, store_history=False, user_expressions={"v": wanted})

    def finish(self, timeout: float | None = None) -> Any:
        """Wait for the cell's end."""
        while True:
            reply = self.client.get_shell_msg(timeout=timeout)
            if reply["parent_header"].get("msg_id") == self._asked:
                break
        content = reply["content"]
        shown = content.get("user_expressions", {}).get("v", content)
        if shown["status"] != "ok":
            raise CellFailed("\n".join(shown.get("traceback", [str(shown)])))
        text = shown["data"]["text/plain"]  # the repr of a str
        return json.loads(ast.literal_eval(text))

    def run(self, code: str, value: str = "None", timeout: float | None = 60) -> Any:
        """Run a cell."""
        self.begin(code, value)
        return self.finish(timeout)

    def close(self) -> None:
        """End it."""
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)


class Worker(Protocol):
    """Whatever runs cells: a kernel of ours, or one that another user's driver holds."""

    @property
    def pid(self) -> int:
        """Its process."""

    def begin(self, code: str, value: str = "None") -> None:
        """Send a cell."""

    def finish(self, timeout: float | None = None) -> Any:
        """Wait for its end."""


@contextlib.contextmanager
def kernels(
    provisioner: str, number: int = 1, *, weights: Sequence[float | None] = ()
) -> Iterator[list[Kernel]]:
    """Have `number` kernels (or one for each of `weights`) while the block runs."""
    with contextlib.ExitStack() as ends:
        started = []
        for weight in weights or [None] * number:
            kernel = Kernel(provisioner, weight=weight).start()
            ends.callback(kernel.close)
            started.append(kernel)
        yield started


class Counters:
    """A file of words that workloads count in."""

    def __init__(self, path: Path, slots: int = 64) -> None:
        self.path = path
        path.write_bytes(bytes(8 * slots))
        path.chmod(0o666)  # workloads of other users count in it too
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def read(self) -> list[int]:
        """Return all words."""
        with memoryview(self._map) as raw, raw.cast("Q") as words:
            return list(words)

    def close(self) -> None:
        """Give up the mapping."""
        self._map.close()


@dataclass(frozen=True, slots=True)
class Rates:
    """Units of work a second of each worker (blocks, steps)."""

    rates: list[float]

    @property
    def total(self) -> float:
        """Units a second of all."""
        return sum(self.rates)

    @property
    def shares(self) -> list[float]:
        """The part of each in the total, in percent."""
        return [100 * rate / self.total for rate in self.rates]


@dataclass(frozen=True, slots=True)
class Window(Rates):
    """What was seen in one window: blocks a second of each worker, and what became of the other cores' time.

    `idle` are cores that nobody used; `others` are cores that went to what is no part of the measurement.
    """

    idle: float
    others: float


def window(
    counters: Counters,
    workers: Sequence[Worker],
    *,
    threads: int = 1,
    seconds: float,
    settle: float = SETTLE,
    besides: Sequence[int] = (),
) -> Window:
    """Let all `workers` work at the same time, and count. `besides` are pids that belong to it too (the broker)."""
    slots = [list(range(n * threads, (n + 1) * threads)) for n in range(len(workers))]
    began = time.monotonic()
    until = began + settle + seconds + _LAP
    for worker, own in zip(workers, slots, strict=True):
        worker.begin(f"count({str(counters.path)!r}, {own}, {until})")
    time.sleep(max(0.0, began + settle - time.monotonic()))
    pids = [*(worker.pid for worker in workers), *besides]
    before, cpu, (busy, idle), start = counters.read(), _cpu(pids), _machine(), time.monotonic()
    time.sleep(seconds)
    after, end = counters.read(), time.monotonic()
    (busy_after, idle_after), ours = _machine(), _cpu(pids) - cpu
    for worker in workers:
        worker.finish(timeout=60)
    passed = end - start
    return Window(
        [sum(after[n] - before[n] for n in own) / passed for own in slots],
        (idle_after - idle) / passed,
        max(0.0, (busy_after - busy - ours) / passed),
    )


def beside(windows: Sequence[Window], arm: str) -> list[Figure]:
    """Return what is published of one arm's windows: its rate, and whether the machine was quiet."""
    return [
        Figure(f"total_{arm}", "blocks/s", [one.total for one in windows]),
        Figure(f"idle_{arm}", "cores", [one.idle for one in windows]),
        Figure(f"others_{arm}", "cores", [one.others for one in windows]),
    ]


def _cpu(pids: Sequence[int]) -> float:
    return sum(procfs.cpu_seconds(pid) or 0.0 for pid in pids)


def _machine() -> tuple[float, float]:
    """Return the CPU seconds that the machine was busy and idle, since its start."""
    tick = 1 / os.sysconf("SC_CLK_TCK")
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, idle, iowait, *rest = (int(word) * tick for word in first.split()[1:9])
    return user + nice + system + sum(rest), idle + iowait


def _spec(provisioner: str, weight: float | None) -> str:
    """Make sure a kernelspec of this interpreter for `provisioner` exists, and return its name."""
    name = provisioner if weight is None else f"{provisioner}-{weight:g}"
    folder = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
    folder.mkdir(parents=True, exist_ok=True)
    config = {} if weight is None else {"weight": weight}
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": name,
        "language": "python",
        "metadata": {"kernel_provisioner": {"provisioner_name": provisioner, "config": config}},
    }
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return name
