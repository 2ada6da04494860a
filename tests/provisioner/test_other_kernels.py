"""Kernels without our client, from real kernelspecs: another language, and another environment's Python. They are bare sessions."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.kernel_session import KERNEL_VARIABLES
from gpushare_kernel.transport.places import Places, places
from tests.procs import eventually

PATIENCE = 60.0
ECHO = '''
"""A kernel that is no Python: it says back what it is told."""
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

class Echo(Kernel):
    implementation = implementation_version = language = banner = "echo"
    language_info = {"name": "echo", "mimetype": "text/plain", "file_extension": ".txt"}

    def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False):
        self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": code})
        return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}}

IPKernelApp.launch_instance(kernel_class=Echo)
'''


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """A real broker, and Jupyter's folders of the test, in which every kernel is ours to start."""
    for name in KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("GPUSHARE_RUNTIME_DIR", "run"), ("JUPYTER_DATA_DIR", "data"), ("JUPYTER_RUNTIME_DIR", "rt"), ("IPYTHONDIR", "ip")):  # fmt: skip
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")
    ensure_broker(places(), PATIENCE, ["--device", "host", "--capacity", "1GiB"])
    yield places()
    stop_broker(places(), PATIENCE)


def spec(tmp_path: Path, language: str, *argv: str) -> str:
    """Write a kernelspec and return its name."""
    folder = tmp_path / "data/kernels/other"
    folder.mkdir(parents=True)
    found = {"argv": [*argv, "-f", "{connection_file}"], "display_name": "O", "language": language}
    (folder / "kernel.json").write_text(json.dumps(found))
    return "other"


def echo(tmp_path: Path) -> str:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    return spec(tmp_path, "echo", sys.executable, str(script))


def elsewhere(tmp_path: Path) -> str:
    """A Python of another environment: our packages can be imported, but nothing of ours was installed there."""
    place = tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "borrowed.pth").write_text(f"{ours}\n")
    return spec(tmp_path, "python", str(place / "bin/python"), "-m", "ipykernel_launcher")


@pytest.mark.parametrize(("made", "code"), [(echo, "hello"), (elsewhere, "print('hello', end='')")])
def test_a_kernel_without_us_is_a_bare_session(broker: Places, tmp_path: Path, made: object, code: str) -> None:  # fmt: skip
    """It runs, restarts and ends as ever; it is charged to its user and takes turns, without a client of its own."""
    assert callable(made)
    manager = KernelManager(kernel_name=made(tmp_path), transport="ipc", ip=str(tmp_path / "k"))
    manager.start_kernel(stderr=subprocess.DEVNULL)
    client: BlockingKernelClient = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(PATIENCE)
        with Line(broker) as line:
            eventually(
                lambda: [one.state for one in line.snapshot().sessions] == ["bare"], PATIENCE
            )
            (session,) = line.snapshot().sessions
        assert session.pid == manager.provisioner.pid
        assert session.own
        said: list[str] = []
        reply = client.execute_interactive(
            code, timeout=PATIENCE, output_hook=lambda m: said.append(m["content"].get("text", ""))
        )
        assert (reply["content"]["status"], "".join(said)) == ("ok", "hello")
        manager.restart_kernel(now=True, stderr=subprocess.DEVNULL)
        client.wait_for_ready(PATIENCE)
        with Line(broker) as line:
            assert [one.id for one in line.snapshot().sessions] == [session.id]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    with Line(broker) as line:
        eventually(lambda: not line.snapshot().sessions)


def test_a_bare_session_is_told_that_the_hub_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    """It has no client to say so in the notebook: the server's log does, and stderr where our launcher started it; again at a restart."""
    for name in KERNEL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("GPUSHARE_RUNTIME_DIR", "run"), ("JUPYTER_DATA_DIR", "data"), ("JUPYTER_RUNTIME_DIR", "rt"), ("IPYTHONDIR", "ip")):  # fmt: skip
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "t")
    ensure_broker(places(), PATIENCE, ["--device", "host", "--capacity", "1GiB", "--hub-api", "http://127.0.0.1:1/hub/api"])  # fmt: skip
    said = "Restart its kernel once the hub answers."
    logger = logging.getLogger("gpushare-test")
    try:
        with caplog.at_level(logging.WARNING, logger="gpushare-test"):
            manager = KernelManager(kernel_name=echo(tmp_path), transport="ipc", ip=str(tmp_path / "k"), log=logger)  # fmt: skip
            manager.start_kernel(stderr=subprocess.DEVNULL)
            assert [said in record.getMessage() for record in caplog.records] == [True]
            manager.restart_kernel(now=True, stderr=subprocess.DEVNULL)
            assert [said in record.getMessage() for record in caplog.records] == [True, True]
            manager.shutdown_kernel(now=True)
        launcher = [sys.executable, "-m", "gpushare_kernel.app.launcher", "--", sys.executable, "-c", "print('runs')"]  # fmt: skip
        done = subprocess.run(launcher, capture_output=True, text=True, timeout=PATIENCE, check=True)  # fmt: skip
        assert done.stdout == "runs\n"
        assert done.stderr.count(said) == 1
    finally:
        stop_broker(places(), PATIENCE)
