"""A host, and a Jupyter server on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import made_host
from tests.faults.host import Host
from tests.procs import eventually
from tests.server.visitor import Visitor


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host without a broker yet; at the end nothing of it is left."""
    with made_host(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def visitor(host: Host, tmp_path: Path) -> Iterator[Visitor]:
    """Somebody who may come in, at a server that loads what is installed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = tmp_path / "root"
    root.mkdir()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
            *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"),
            *("--ServerApp.port_retries=0", "--IdentityProvider.token=sesame"),
            f"--ServerApp.root_dir={root}",
        ],
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    made = Visitor(port, "sesame")
    try:
        eventually(made.is_let_in, 60)
        yield made
    finally:
        made.close()
        process.terminate()
        process.wait(30)
