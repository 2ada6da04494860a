"""Examples run as people run them: real kernels through the provisioner, and a real broker that shares this host's CPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import NoBroker
from gpushare_kernel.kernel_session import KERNEL_VARIABLES
from gpushare_kernel.transport.places import Places, places

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 80
CAPACITY = "1GiB"

Execute = Callable[..., Any]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """One broker for all examples, as on a host; a user's own Jupyter stays out of it."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*KERNEL_VARIABLES, "JUPYTER_PATH"):
            patch.delenv(name, raising=False)
        patch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "gpushare")
        for name, inside in {
            "GPUSHARE_RUNTIME_DIR": "run",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "jupyter",
            "JUPYTER_CONFIG_DIR": "config",
            "IPYTHONDIR": "ipython",
            "XDG_CACHE_HOME": "cache",
        }.items():
            patch.setenv(name, str(folder / inside))
        ensure_broker(places(), PATIENCE, ["--device", "host", "--capacity", CAPACITY])
        yield places()
        with contextlib.suppress(NoBroker):
            stop_broker(places(), PATIENCE)


@pytest.fixture
def execute(where: Places, tmp_path: Path) -> Execute:
    """Execute an example, with other values of its parameters, or a notebook; return it with what it shows. An error that it does not announce fails."""

    def run(example: str | Any, **parameters: object) -> Any:
        named = isinstance(example, str)
        name = example if named else "page"
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4) if named else example
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                for parameter, value in parameters.items():
                    assert f"{parameter} =" in cell.source
                    cell.source += f"\n{parameter} = {value!r}"
        manager = KernelManager(kernel_name="python3")
        client = NotebookClient(notebook, km=manager, timeout=PATIENCE, record_timing=False)
        try:
            with (tmp_path / "kernel.log").open("ab") as log:
                env = {**os.environ, "JPY_SESSION_NAME": f"{name}.ipynb"}
                client.execute(env=env, cwd=str(tmp_path), stderr=log)
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            if manager.has_kernel:
                manager.shutdown_kernel(now=True)
            manager.cleanup_resources()
        return notebook

    return run


def shown(cell: Any) -> str:
    """Return all that a cell shows, as text."""
    found = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            found.append(output.text)
        elif output.output_type == "error":
            found.append("\n".join(output.traceback))
        else:
            found.append(output.data.get("text/plain", ""))
    return "\n".join(found)
