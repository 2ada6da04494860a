"""A host of each test's own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client.provisioning import KernelProvisionerFactory

from benchmarks.gpu.checkout import place_startup
from gpushare_kernel.kernel_session import KERNEL_VARIABLES
from gpushare_kernel.transport.places import places
from tests.faults.host import Host

Measured = Callable[[str, float], None]
_times = pytest.StashKey[list[str]]()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Note how long something promised took; shown when all tests are done."""

    def note(what: str, seconds: float) -> None:
        noted = request.config.stash.setdefault(_times, [])
        noted.append(f"{seconds:6.3f} s  {what}  ({request.node.name})")

    return note


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the times."""
    for line in config.stash.get(_times, []):
        terminalreporter.write_line(line)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host without a broker yet; at the end nothing of it is left."""
    with made_host(tmp_path, monkeypatch) as made:
        yield made


@contextlib.contextmanager
def made_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Make one, for as long as somebody wants it."""
    folder = Path(tempfile.mkdtemp(prefix="gps", dir="/tmp"))  # a socket's path must be short
    folder.chmod(0o755)  # other users look in, too
    runtime = folder / "run"
    for name in (*KERNEL_VARIABLES, "GPUSHARE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUSHARE_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    place_startup(tmp_path / "ipython")  # where nothing is installed
    KernelProvisionerFactory.clear_instance()
    made = Host(places())
    try:
        yield made
        made.close()
    finally:
        KernelProvisionerFactory.clear_instance()
        shutil.rmtree(folder, ignore_errors=True)
