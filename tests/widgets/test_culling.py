"""A live view that stays on the screen does not keep a kernel from being culled: a real server, a kernel of ours in it."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from tests.faults.conftest import host
from tests.faults.host import Host, session_of
from tests.procs import eventually
from tests.widgets.browser.lab import Lab

__all__ = ["host"]

PATIENCE = 40
SHOW = "from gpushare_widgets.live import LiveView\nview = LiveView()\nview"
WORK = "import time\nuntil = time.time() + 2\nwhile time.time() < until: pass"


class Served:
    """A kernel in a Jupyter server, and a client of it beside the server's own."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        started = self._ask("POST", "/api/kernels", {"name": "python3"})
        self.id = str(started["id"])
        found = Path(os.environ["JUPYTER_RUNTIME_DIR"]) / f"kernel-{self.id}.json"
        eventually(found.exists, PATIENCE)
        self.client = BlockingKernelClient(connection_file=str(found))
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(PATIENCE)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self._lab.url + path, data, method=method)
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
    lab = Lab(tmp_path / "lab")
    made = Served(lab)
    yield made
    made.client.stop_channels()
    lab.close()


def test_a_view_that_is_looked_at_is_no_activity(host: Host, served: Served) -> None:
    """While a cell runs it is told what goes on, several times; once it is over, its end, and then no more.

    A neighbour works all the time, so there would be something to tell at each look.
    """
    neighbour = host.notebook("neighbour.ipynb")
    burning = neighbour.burn()
    served.run(SHOW)
    assert served.run(WORK).count("comm_msg") > 2
    assert (
        served.client.get_iopub_msg(PATIENCE)["msg_type"] == "comm_msg"
    )  # its end, half a second later
    before = served.last_activity
    used = session_of(host.snapshot(), neighbour).device_time
    host.until(lambda seen: session_of(seen, neighbour).device_time > used + 3)
    assert served.said() == []
    assert served.last_activity == before
    neighbour.interrupt()
    list(burning)
