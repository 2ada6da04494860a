"""One notebook of the demo: it runs in a real kernel, and what it shows is read as it shows it."""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import os
from pathlib import Path
from typing import Any, cast

import msgspec
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from gpushare_kernel.app.demo.stage import Stage
from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.wire.messages import Report

_REPORTS = (
    "import msgspec\n"
    "from gpushare_kernel.client import api\n"
    "print(msgspec.json.encode(api.reports()).decode())"
)
"""The cell we add: what this kernel's client keeps of each job that ended."""
_CELL_LIMIT = 180
_logger = logging.getLogger(__name__)
# nbclient's log, and the provisioner's. They call a kernel that we end ourselves dead; whatever fails comes as an error.
_logger.addHandler(logging.NullHandler())
_WAITING = "Waiting"


class State(enum.StrEnum):
    """How far a notebook is."""

    LATER = "comes later"
    STARTING = "starting"
    WAITING = "waits"
    RUNNING = "runs"
    DONE = "done"
    FAILED = "failed"


class DemoFailed(GpushareError):
    """A notebook of the demo did not run to its end."""


class Act:
    """A notebook, how far it is, and what it says at the moment."""

    def __init__(self, path: Path, stage: Stage, seconds: float | None) -> None:
        self.name = path.name
        self.title = path.stem
        self.state = State.LATER
        self.reason: str | None = None
        self.reports: list[Report] = []
        self.notebook = _read(path, seconds)
        self._stage = stage
        self._cell: Any = None

    async def play(self) -> None:
        """Run the notebook in a kernel of its own.

        Raises
        ------
        DemoFailed
            Where a cell fails, or its kernel does.
        """
        self.state = State.STARTING
        reports = nbformat.v4.new_code_cell(_REPORTS)  # type: ignore[no-untyped-call]
        self.notebook.cells.append(reports)
        manager = AsyncKernelManager(kernel_name="python3", log=_logger)
        client = NotebookClient(
            self.notebook,
            km=manager,
            timeout=_CELL_LIMIT,
            record_timing=False,
            log=_logger,
            on_cell_start=self._on_cell_start,
        )
        try:
            with self._stage.kernel_log.open("ab") as log:
                env = {**os.environ, "JPY_SESSION_NAME": self.name}
                await client.async_execute(env=env, cwd=str(self._stage.folder), stderr=log)
            self.reports = msgspec.json.decode(reports.outputs[0].text, type=list[Report])
        except Exception as problem:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # nbclient calls that a dead kernel
                raise asyncio.CancelledError from None
            self.state = State.FAILED
            msg = f"{self.name} failed: {problem}"
            raise DemoFailed(msg) from problem
        finally:
            self.notebook.cells.pop()
            # nbclient does not end a kernel whose start is cancelled.
            if client.kc is not None:
                client.kc.stop_channels()
            if manager.has_kernel:
                await manager.shutdown_kernel(now=True)
        self.state = State.DONE

    def look(self) -> str:
        """Bring `state` and `reason` up to date; return what the notebook shows in its last line."""
        shown = _last_line(self._cell)
        if self.state in (State.STARTING, State.RUNNING, State.WAITING) and self._cell is not None:
            waits = shown.startswith(_WAITING)
            self.state = State.WAITING if waits else State.RUNNING
            if waits and self.reason is None:
                self.reason = shown
        return shown

    def write(self, folder: Path) -> None:
        """Write the notebook, executed."""
        nbformat.write(self.notebook, folder / self.name)  # type: ignore[no-untyped-call]

    def _on_cell_start(self, cell: Any, cell_index: int) -> None:  # noqa: ARG002  nbclient's signature
        if cell.cell_type == "code" and cell.source != _REPORTS:
            self._cell = cell


def _last_line(cell: Any) -> str:
    """Return the last line of text among a cell's outputs so far."""
    outputs = [] if cell is None else cell.get("outputs", [])
    for output in reversed(outputs):
        text = output.get("text") or output.get("data", {}).get("text/plain") or ""
        lines = cast("str", text).strip().splitlines()
        if lines:
            return lines[-1]
    return ""


def _read(path: Path, seconds: float | None) -> Any:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    if seconds is not None:
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += f"\nseconds = {json.dumps(seconds)}  # as the demo was asked"
    return notebook
