"""Runs inside a kernel: its warm tier for the host's tensors, driven by the test through a socket while the kernel is idle."""

from __future__ import annotations

import gc
import json
import socket
import threading
from typing import Any

from gpushare_magics import extension
from gpushare_magics.lines import Output, UpdatingLine

from gpushare_kernel.client.warm import threads
from gpushare_kernel.client.warm.exports import Exports
from gpushare_kernel.client.warm.quiet import _locks
from gpushare_kernel.client.warm.warm import Outcome, Warm
from gpushare_kernel.core.errors import GpushareError
from tests.client.warm.host_memory import Buffer, Copies, torch


class Remote:
    """What the test says by lines of JSON, done on the main thread in no cell."""

    def __init__(self, shell: Any, path: str) -> None:
        exports = Exports(torch)
        exports.hook()
        self._kernel, self._texts = shell.kernel, 0
        self.warm = Warm(
            torch,
            exports,
            kernel=shell.kernel,
            running=lambda: extension.active().cells.running,
            line=lambda: UpdatingLine(Output(shell)).put,
            namespace=lambda: shell.user_ns,
            settle=lambda: None,
            trim=lambda: None,
            devices=("cpu",),
            verify=True,
        )
        self.warm.gate(
            lambda: "Your GPU memory is set aside (4.2 GiB, nothing lost). Waiting, 2 ahead.",
            lambda: None,
        )
        self._copies = Copies("cpu")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        # This thread is the test's, as the connection to the broker is a kernel's.
        threads._TARGETS = (*threads._TARGETS, (__name__, "Remote", "_run"))  # type: ignore[assignment]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with self._socket.makefile("r") as lines:
            for line in lines:
                self._kernel.io_loop.add_callback(self._do, json.loads(line))

    def _do(self, command: str) -> None:
        if command not in ("back", "look") and any(
            lock.locked() for lock in [*_locks(self._kernel)][:1]
        ):
            self._kernel.io_loop.call_later(0.005, self._do, command)  # the cell before is not over
            return
        try:
            answer = getattr(self, command)()
        except GpushareError as problem:
            answer = {"error": str(problem)}
        self._socket.sendall(json.dumps(answer).encode() + b"\n")

    def why(self) -> dict[str, Any]:
        """Say why nothing may be set aside."""
        return {"why": self.warm.why_not()}

    def out(self) -> dict[str, Any]:
        """Set aside."""
        return self._told(self.warm.set_aside(Buffer, self._copies))

    def out_while_somebody_comes(self) -> dict[str, Any]:
        """Set aside, and be at it until a message waits."""

        def wait(_lease: Any) -> None:
            self._socket.sendall(b'{"copying": true}\n')
            pace = threading.Event()
            while not self.warm.held:
                assert not pace.wait(0.002)

        self._copies.after_out = wait
        try:
            return self.out()
        finally:
            self._copies.after_out = lambda _lease: None

    def back(self) -> dict[str, Any]:
        """Bring back."""
        return self._told(self.warm.back())

    def look(self) -> dict[str, Any]:
        """Say what is away, and how many messages wait."""
        return {"away": self.warm.away, "held": self.warm.held, "collects": gc.isenabled()}

    def _told(self, outcome: Outcome) -> dict[str, Any]:
        return {"bytes": outcome.bytes, "count": outcome.count, "away": self.warm.away}
