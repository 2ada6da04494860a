"""A real Jupyter server with real kernels at a real broker, killed; and a broker that is killed while a kernel starts."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from gpushare_kernel import procfs, provisioner
from tests.faults.conftest import host
from tests.faults.host import Host, kill, session_of, stopped
from tests.procs import eventually

__all__ = ["host"]


class Server:
    """A Jupyter server of the test's own."""

    def __init__(self, root: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
                *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.url.rpartition(':')[2]}"),
                *("--ServerApp.port_retries=0", "--IdentityProvider.token="),
                *("--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={root}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers, 60)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("/api")["version"])
        except OSError:
            assert self.process.poll() is None
            return False

    def ask(self, path: str, body: Any = None) -> Any:
        """Get, or post `body`."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, data), timeout=60
        ) as answer:
            return json.load(answer)

    def notebook(self, name: str) -> str:
        """Open a notebook as Lab does; return its kernel's id."""
        kernel = {"name": "python3"}
        return str(
            self.ask(
                "/api/sessions", {"path": name, "name": name, "type": "notebook", "kernel": kernel}
            )["kernel"]["id"]
        )


@pytest.fixture
def server(host: Host, tmp_path: Any) -> Iterator[Server]:
    """A server whose kernels share one core."""
    host.start("--compute", "1", "--turn", "1", "--capacity", "1GiB")
    made = Server(str(tmp_path))
    yield made
    made.process.kill()
    made.process.wait()


def test_server_killed(host: Host, server: Server) -> None:
    """Its kernels end, the paused one too; the broker frees what they held and knows them no more."""
    clients = []
    for name in ("one.ipynb", "two.ipynb"):
        client = BlockingKernelClient()
        client.load_connection_file(
            f"{os.environ['JUPYTER_RUNTIME_DIR']}/kernel-{server.notebook(name)}.json"
        )
        client.start_channels()
        clients.append(client)
    seen = host.until(
        lambda seen: seen if [s.state for s in seen.sessions] == ["idle"] * 2 else None
    )
    assert {s.name for s in seen.sessions} == {"one.ipynb", "two.ipynb"}
    pids = [s.pid for s in seen.sessions if s.pid is not None]
    for client in clients:
        client.wait_for_ready(60)
        client.execute("while True: pass")
    eventually(lambda: sum(map(stopped, pids)) == 1)
    server.process.kill()
    server.process.wait()
    for client in clients:
        client.stop_channels()
    eventually(lambda: all(procfs.process_key(pid) is None for pid in pids), 30)
    empty = host.until(lambda seen: seen if not seen.sessions else None)
    assert (empty.devices[0].lanes, empty.devices[0].persistent, empty.devices[0].reserve) == (
        (),
        0,
        0,
    )


def test_broker_killed_while_a_kernel_starts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a kernel's open and its bind its broker is replaced by one that does not know it: the kernel starts all the same."""
    host.start("--capacity", "1GiB")
    launch = LocalProvisioner.launch_kernel

    async def meanwhile(self: LocalProvisioner, *args: Any, **kwargs: Any) -> Any:
        info = await launch(self, *args, **kwargs)
        former = await asyncio.to_thread(lambda: host.broker)
        await asyncio.to_thread(kill, former)
        await asyncio.to_thread(eventually, lambda: host.broker != former)
        return info

    with monkeypatch.context() as patch:
        patch.setattr(LocalProvisioner, "launch_kernel", meanwhile)
        notebook = host.started("hw1.ipynb")
    notebook.ready()
    assert notebook.run("6 * 7") == ["42"]
    assert notebook.run("%%gpulane 10MiB\n6 * 7")[-1] == "42"
    notebook.restart(now=True)  # and shares again
    host.until(lambda seen: session_of(seen, notebook).state == "idle")


def test_broker_that_dies_when_asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that was found and is killed before it has answered: the kernel asks the next one."""
    former = host.start("--capacity", "1GiB")
    find = provisioner.find_broker
    found: list[bool] = []

    def find_and_kill(*args: Any, **kwargs: Any) -> None:
        find(*args, **kwargs)
        found.append(True)
        if len(found) == 1:
            kill(former)

    monkeypatch.setattr(provisioner, "find_broker", find_and_kill)
    notebook = host.notebook()
    assert len(found) == 2
    assert "42" in notebook.run("%%gpulane 10MiB\n6 * 7")
