"""A notebook as people have it: a real kernel started by our provisioner, its cells, its buttons."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from queue import Empty
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from gpushare_kernel.core.values import ProcessKey
from tests.procs import key_of

PATIENCE = 40
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

BURN = "print('burning', flush=True)\nwhile True: pass"
"""A plain cell that wants a core until it is interrupted."""


class Notebook:
    """A kernel and a client of it. What its cells put out is read as it comes."""

    def __init__(self, name: str, kernel_name: str = "python3", **env: str) -> None:
        self.manager = KernelManager(kernel_name=kernel_name)
        clean = {k: v for k, v in os.environ.items() if k not in ("GPUSHARE_ROOT",)}
        self.manager.start_kernel(
            env={**clean, "JPY_SESSION_NAME": f"/home/ann/{name}", "NO_COLOR": "1", **env}
        )
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.closed = False

    def ready(self) -> None:
        """Wait until the kernel answers."""
        self.client.wait_for_ready(PATIENCE)

    @property
    def pid(self) -> int:
        """The kernel's process."""
        pid = self.manager.provisioner.pid
        assert isinstance(pid, int)
        return pid

    @property
    def key(self) -> ProcessKey:
        """The kernel's process, for ever."""
        return key_of(self.pid)

    @property
    def session(self) -> str:
        """The session's id, as the provisioner knows it."""
        return str(self.manager.provisioner._session.session)

    @property
    def token(self) -> str:
        """The session's token."""
        return str(self.manager.provisioner._session.token)

    def start(self, code: str) -> str:
        """Send a cell; returns the id of its message. An error before it does not keep it from running."""
        return str(self.client.execute(code, allow_stdin=False, stop_on_error=False))

    def outputs(self, message: str) -> Iterator[str]:
        """Yield what a cell puts out, line by line as it comes, until it is over."""
        while True:
            try:
                out = self.client.get_iopub_msg(PATIENCE)
            except Empty:
                pytest.fail("the cell did not end")
            if out["parent_header"].get("msg_id") != message:
                continue
            if out["msg_type"] == "status" and out["content"]["execution_state"] == "idle":
                return
            yield from text_of(out)

    def read_until(self, outputs: Iterator[str], text: str) -> str:
        """Return the next line that contains `text`."""
        seen = []
        for line in outputs:
            seen.append(line)
            if text in line:
                return line
        raise AssertionError((text, seen))

    def run(self, code: str) -> list[str]:
        """Run a cell and return its outputs as lines."""
        return list(self.outputs(self.start(code)))

    def burn(self, declared: str = "") -> Iterator[str]:
        """Start a cell that wants a core for ever; return its outputs, once it is in."""
        outputs = self.outputs(self.start(declared + BURN))
        self.read_until(outputs, "burning")
        return outputs

    def interrupt(self) -> None:
        """Press the button."""
        self.manager.interrupt_kernel()

    def restart(self, **how: Any) -> None:
        """Press the other button, and wait for the new kernel."""
        self.manager.restart_kernel(**how)
        self.ready()

    def close(self) -> None:
        """End the kernel."""
        if not self.closed:
            self.closed = True
            self.client.stop_channels()
            self.manager.shutdown_kernel(now=True)
            self.manager.cleanup_resources()


def text_of(out: dict[str, Any]) -> list[str]:
    """Return an output's text, line by line."""
    content = out["content"]
    if out["msg_type"] == "stream":
        return str(content["text"]).splitlines()
    if out["msg_type"] == "error":
        blocks = [_COLOUR.sub("", block) for block in content["traceback"]]
        return [line for block in blocks for line in block.splitlines()]
    if out["msg_type"] in ("display_data", "update_display_data", "execute_result"):
        return str(content["data"].get("text/plain", "")).splitlines()
    return []  # of a comm, say: no output
