"""A live view that stays on the screen does not keep a kernel from being culled: a real server, a kernel of ours in it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from gpushare_kernel.wire.snapshot import Snapshot
from tests.faults.conftest import host
from tests.faults.host import Host, session_of
from tests.procs import eventually

__all__ = ["host"]

PATIENCE = 60
SHOW = "from gpushare_widgets.live import LiveView\nview = LiveView()\nview"
WORK = "import time\nuntil = time.time() + 2\nwhile time.time() < until: pass"


class Served:
    """A kernel in a Jupyter server, and a client of it beside the server's own."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
                *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"),
                *("--ServerApp.port_retries=0", "--IdentityProvider.token="),
                *("--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={root}"),
            ],
            env={**os.environ, "JUPYTER_CONFIG_DIR": f"{root}/.config"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers, PATIENCE)
        started = self._ask("POST", "/api/kernels", {"name": "python3"})
        self.id = str(started["id"])
        found = Path(os.environ["JUPYTER_RUNTIME_DIR"]) / f"kernel-{self.id}.json"
        eventually(found.exists, PATIENCE)
        self.client = BlockingKernelClient(connection_file=str(found))
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(PATIENCE)

    def _answers(self) -> bool:
        try:
            return bool(self._ask("GET", "/api")["version"])
        except OSError:
            assert self._server.poll() is None
            return False

    def close(self) -> None:
        """End the server; it ends its kernel."""
        self.client.stop_channels()
        self._server.terminate()
        self._server.wait(PATIENCE)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self._url + path, data, method=method)
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return json.load(answer)

    @property
    def last_activity(self) -> str:
        """What the server's culler goes by."""
        return str(self._ask("GET", f"/api/kernels/{self.id}")["last_activity"])

    def run(self, code: str) -> list[str]:
        """Run a cell; return the types of the messages until its end."""
        sent, types = self.client.execute(code), []
        while True:
            message = self.client.get_iopub_msg(PATIENCE)
            types.append(message["msg_type"])
            assert message["msg_type"] != "error", message["content"]
            own = message["parent_header"].get("msg_id") == sent
            if own and message["content"].get("execution_state") == "idle":
                return types

    def said(self) -> list[str]:
        """Return the types of what the kernel said since; waits for nothing."""
        types = []
        while self.client.iopub_channel.msg_ready():
            types.append(self.client.get_iopub_msg(PATIENCE)["msg_type"])
        return types


@pytest.fixture
def served(host: Host, tmp_path: Path) -> Iterator[Served]:
    """A kernel of ours in a server of its own."""
    host.start("--compute", "1", "--turn", "0.1", "--capacity", "1GiB")
    made = Served(tmp_path)
    yield made
    made.close()


def test_a_view_that_is_looked_at_is_no_activity(host: Host, served: Served) -> None:
    """While a cell runs it is told what goes on, several times; once it is over, its end, and then no more.

    Two neighbours work in turns all the time, so there would be something to tell at each look.
    """
    neighbours = [host.notebook(name) for name in ("one.ipynb", "two.ipynb")]
    burning = [one.burn() for one in neighbours]

    def passes(seconds: float) -> None:
        def used(seen: Snapshot) -> float:
            return sum(session_of(seen, one).device_time for one in neighbours)

        until = used(host.snapshot()) + seconds
        host.until(lambda seen: used(seen) > until)

    served.run(SHOW)
    assert served.run(WORK).count("comm_msg") > 2
    assert served.client.get_iopub_msg(PATIENCE)["msg_type"] == "comm_msg"
    passes(1)
    assert set(served.said()) <= {"comm_msg"}  # a look may have been on its way when the cell ended
    before = served.last_activity
    passes(2)
    assert served.said() == []
    assert served.last_activity == before
    for one, outputs in zip(neighbours, burning, strict=True):
        one.interrupt()
        list(outputs)
