"""The extension as it is installed: its wheel, built and unpacked; a host, a server and a browser."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.host import Host
from tests.widgets.browser.conftest import BROKER, app, browser, host
from tests.widgets.browser.lab import Lab

__all__ = ["BROKER", "app", "browser", "host"]

SOURCE = Path(__file__).parents[2] / "labextension"
BUILDING = 600
NAME = "gpushare-lab"
HAVE_BACKEND = all(
    importlib.util.find_spec(name)
    for name in ("hatchling", "hatch_jupyter_builder", "jupyter_builder")
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel. What was built before is not taken for it."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js: apt install nodejs")
    folder = tmp_path_factory.mktemp("dist")
    shutil.rmtree(SOURCE / "gpushare_lab/labextension", ignore_errors=True)
    isolation = ["--no-isolation"] if HAVE_BACKEND else []
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", folder, SOURCE],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=BUILDING,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def extensions(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of extensions that an installation of the wheel has."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (data,) = folder.glob("*.data/data/share/jupyter/labextensions")
    return data


@pytest.fixture(scope="module")
def lab(host: Host, extensions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A Jupyter server on that host, with the extension."""
    made = Lab(
        tmp_path_factory.mktemp("lab"),
        f"--LabServerApp.extra_labextensions_path={extensions}",
        f"--LabApp.extra_labextensions_path={extensions}",
        f"--JupyterNotebookApp.extra_labextensions_path={extensions}",
    )
    yield made
    made.close()
