"""Commands run as people run them: another process, a real broker, folders of the test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import NoBroker
from gpushare_kernel.kernel_session import KERNEL_VARIABLES
from gpushare_kernel.transport.places import Places, places

PATIENCE = 60

Gpushare = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """Where a broker of the test lives, and Jupyter's folders; whatever broker is there at the end is stopped."""
    for name in (*KERNEL_VARIABLES, "JUPYTER_DEFAULT_PROVISIONER_NAME", "JUPYTER_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in {
        "GPUSHARE_RUNTIME_DIR": "run",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "jupyter",
        "JUPYTER_CONFIG_DIR": "config",
        "IPYTHONDIR": "ipython",
    }.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    yield places()
    with contextlib.suppress(NoBroker):
        stop_broker(places(), PATIENCE)


@pytest.fixture
def broker(where: Places) -> Places:
    """A broker that runs."""
    ensure_broker(where, PATIENCE, ["--capacity", "1GiB"])
    return where


@pytest.fixture
def gpushare(where: Places) -> Gpushare:
    """Run `jupyter gpushare` with some words; its output comes as text."""

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpushare_kernel.app.main", *words],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run
