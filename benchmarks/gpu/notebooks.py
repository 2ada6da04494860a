"""Notebooks for the GPU rows: kernels of an arm, started side by side, that remember the lines their cells showed."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import queue
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import checkout
from benchmarks.gpu.pauses import Line
from benchmarks.kernels import LOCAL, SHARED, START_LIMIT, CellFailed, Kernel

WORKLOADS = Path(__file__).with_name("workloads.py").read_text(encoding="utf-8")
PREPARE_LIMIT = 180.0
"""Seconds for importing a framework and building the work; many kernels do it at once."""
_OUTPUT_LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Arm:
    """A sort of kernel: who starts it, and what its environment has besides."""

    name: str
    provisioner: str
    variables: Mapping[str, str] = field(default_factory=dict)


FREE = Arm("free", LOCAL)
"""Kernels without gpushare: they share the GPU as its driver does."""
SEEN = Arm("seen", SHARED)
"""Ours, as users have it: adapters see boundaries."""
ENFORCED = Arm("enforced", SHARED, {"GPUSHARE_ADAPTERS": "off"})
"""Ours, where nothing is seen from inside: turns only."""


class Notebook(Kernel):
    """A kernel of an arm. Cells are sent with `begin` and waited for with `finish`, as for any kernel.

    Attributes
    ----------
    shared
        Whether it is a session of the broker.
    lines
        What its cells showed, with the time (monotonic clock) at which the kernel sent it.
    """

    def __init__(self, arm: Arm, *, weight: float | None = None) -> None:
        self.shared = arm.provisioner == SHARED
        self.lines: list[Line] = []
        super().__init__(arm.provisioner, spec=_spec(arm, weight))

    def send(self) -> None:
        """Start its process and wait for nothing."""
        with Path(os.environ["JUPYTER_DATA_DIR"], "kernels.log").open("ab") as log:
            self.manager.start_kernel(stdout=log, stderr=log)  # our stdout is for the result
        self.client.load_connection_file(self.manager.connection_file)
        self.client.start_channels()

    def meet(self) -> None:
        """Wait until it answers."""
        self.client.wait_for_ready(START_LIMIT * 2)

    def finish(self, timeout: float | None = None) -> Any:
        """Wait for the cell's end and all its output; return its value."""
        try:
            value = super().finish(timeout)
        except CellFailed:  # only a cell that ended has an end to wait for
            self._drain(self._asked)
            raise
        self._drain(self._asked)
        return value

    def attempt(
        self, code: str, value: str = "None", timeout: float = 120.0
    ) -> tuple[Any, str | None]:
        """Run a cell that may fail; return its value and what it failed with (None where it did not)."""
        self.begin(code, value)
        try:
            return self.finish(timeout), None
        except CellFailed as failure:
            return None, str(failure)

    def _drain(self, cell: str) -> None:
        """Take in what was published, up to the end of `cell`."""
        skew = time.monotonic() - time.time()
        deadline = time.monotonic() + _OUTPUT_LIMIT
        with contextlib.suppress(queue.Empty):
            while True:
                message = self.client.get_iopub_msg(timeout=max(0.0, deadline - time.monotonic()))
                kind, content = message["msg_type"], message["content"]
                shown = content.get("text") if kind == "stream" else None
                if kind in ("display_data", "update_display_data"):
                    shown = content.get("data", {}).get("text/plain")
                if shown:
                    self.lines.append(Line(_when(message["header"]["date"]) + skew, shown.strip()))
                ours = message["parent_header"].get("msg_id") == cell
                if ours and kind == "status" and content["execution_state"] == "idle":
                    return


@contextlib.contextmanager
def notebooks(
    wanted: Sequence[tuple[Arm, float | None]], place: str, kinds: Sequence[str]
) -> Iterator[list[Notebook]]:
    """Have a notebook for each (arm, weight), with the work of `kinds` prepared in `place`. All start at the same time."""
    with contextlib.ExitStack() as ends:
        started = []
        for arm, weight in wanted:
            notebook = Notebook(arm, weight=weight)
            ends.callback(notebook.close)
            notebook.send()
            started.append(notebook)
        for notebook in started:
            notebook.meet()
        together(started, WORKLOADS)
        for kind in kinds:
            together(started, f"prepare({kind!r}, {place!r})")
        yield started


def several(arm: Arm, number: int) -> list[tuple[Arm, float | None]]:
    """Return what `notebooks` takes for `number` notebooks of an arm."""
    return [(arm, None)] * number


def together(started: Sequence[Notebook], code: str, value: str = "None") -> list[Any]:
    """Run the same cell in all at the same time; return the values."""
    for notebook in started:
        notebook.begin(code, value)
    return [notebook.finish(PREPARE_LIMIT) for notebook in started]


def _spec(arm: Arm, weight: float | None) -> str:
    """Make sure the kernelspec of an arm exists; its name is unlike any kernelspec of the plain benchmarks."""
    name = f"gpu-{arm.name}" + ("" if weight is None else f"-{weight:g}")
    folder = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": name,
        "language": "python",
        "env": dict(arm.variables),
        "metadata": {
            "kernel_provisioner": {
                "provisioner_name": arm.provisioner,
                "config": {} if weight is None else {"weight": weight},
            }
        },
    }
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    checkout.place_startup(Path(os.environ["IPYTHONDIR"]))
    return name


def _when(date: datetime.datetime | str) -> float:
    stamp = datetime.datetime.fromisoformat(date) if isinstance(date, str) else date
    return stamp.timestamp()
