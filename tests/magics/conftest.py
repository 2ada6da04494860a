"""Shells in this process and real kernels beside it, with a broker played by the test."""

from __future__ import annotations

import atexit
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from IPython.core.async_helpers import get_asyncio_loop
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from gpushare_kernel.client import api
from tests.client.scripted_broker import ScriptedBroker

ROOT = Path(__file__).parents[2]
STARTUP = ROOT / "etc/ipython/startup/00-gpushare.py"
LIMIT = 60
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Kernel:
    """A real kernel, and what came out of its cells."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        startup = folder / "ipython/profile_default/startup"
        startup.mkdir(parents=True)
        shutil.copy(STARTUP, startup)
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("GPUSHARE_")},
                "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "magics"))),
                "IPYTHONDIR": str(folder / "ipython"),
                "NO_COLOR": "1",
                **environment,
            },
            cwd=str(folder),
        )
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(LIMIT)

    def start(self, code: str, **options: Any) -> str:
        """Send a cell; returns the id of its message."""
        return self.client.execute(code, allow_stdin=False, **options)  # type: ignore[no-any-return]

    def outputs(self, message: str) -> Iterator[dict[str, Any]]:
        """Yield the outputs of a cell as they come, until it is over."""
        while True:
            try:
                out = self.client.get_iopub_msg(LIMIT)
            except Empty:
                pytest.fail("the cell did not end")
            if out["parent_header"].get("msg_id") != message:
                continue
            if out["msg_type"] == "status" and out["content"]["execution_state"] == "idle":
                return
            yield out

    def run(self, code: str, **options: Any) -> list[str]:
        """Run a cell and return its outputs as lines: streams, displays, results, tracebacks."""
        return [line for out in self.outputs(self.start(code, **options)) for line in text_of(out)]

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


def text_of(out: dict[str, Any]) -> list[str]:
    """Return an output's text, line by line."""
    content = out["content"]
    if out["msg_type"] == "stream":
        return str(content["text"]).splitlines()
    if out["msg_type"] == "error":
        blocks = [_COLOUR.sub("", block) for block in content["traceback"]]
        return [line for block in blocks for line in block.splitlines()]
    if "data" in content:
        return str(content["data"]["text/plain"]).splitlines()
    return []


@pytest.fixture(scope="session", autouse=True)
def _ipython_s_loop() -> None:
    """What IPython makes once per process, and keeps, is not made within a test."""
    get_asyncio_loop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ScriptedBroker]:
    """A broker played by the test."""
    with ScriptedBroker(tmp_path) as played:
        yield played


@pytest.fixture
def kernel_environment(broker: ScriptedBroker) -> dict[str, str]:
    """What the provisioner gives a kernel."""
    return {
        "GPUSHARE_TOKEN": "the-token",
        "GPUSHARE_SESSION": "s1",
        "GPUSHARE_SOCKET": str(broker.path),
        "JPY_SESSION_NAME": "/home/ann/hw1.ipynb",
    }


@pytest.fixture
def new_kernel(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], Kernel]]:
    """Start kernels that end with the test."""
    kernels: list[Kernel] = []

    def start(environment: dict[str, str]) -> Kernel:
        folder = tmp_path / f"kernel{len(kernels)}"
        folder.mkdir()
        kernels.append(Kernel(folder, environment))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.close()


@pytest.fixture
def kernel(
    broker: ScriptedBroker,
    kernel_environment: dict[str, str],
    new_kernel: Callable[[dict[str, str]], Kernel],
) -> Kernel:
    """A kernel of ours; the test plays the broker."""
    return new_kernel(kernel_environment)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[InteractiveShell]:
    """A shell in this process with the extension loaded, in no session unless the test sets one."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("GPUSHARE_ROOT", raising=False)
    monkeypatch.setattr(api, "_session", None)
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(colors="nocolor")
    yield made
    if made.extension_manager is not None:
        made.extension_manager.unload_extension("gpushare_magics")
    if api._session is not None:
        api._session.close()
    atexit.unregister(made.atexit_operations)
    made.atexit_operations()
    InteractiveShell.clear_instance()
