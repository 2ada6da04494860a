"""The demo's stage: a broker of its own and Jupyter folders of its own, all in one folder that goes away."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpushare_kernel.app.ending import stop_broker
from gpushare_kernel.client.start import ensure_broker
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.kernel_session import KERNEL_VARIABLES
from gpushare_kernel.provisioner import DEFAULT_PROVISIONER
from gpushare_kernel.transport.places import Places, places

_PATIENCE = 20.0
_ORPHANED = 30.0
"""Seconds after which the demo's broker leaves by itself, should the demo be killed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo plays."""

    folder: Path
    places: Places

    @property
    def kernel_log(self) -> Path:
        """What the kernels' processes write to their own stderr."""
        return self.folder / "kernels.log"


@contextlib.contextmanager
def staged(broker_arguments: Sequence[str]) -> Iterator[Stage]:
    """Set the stage, and leave nothing of it: no process, no socket, no file, no variable."""
    folder = Path(tempfile.mkdtemp(prefix="gpushare-demo-"))
    try:
        with _environment(_variables(folder)):
            where = places()
            arguments = ["--idle-exit", str(_ORPHANED), *broker_arguments]
            try:
                # In a thread: an interrupt waits until there is a broker that can be stopped.
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(ensure_broker, where, _PATIENCE, arguments).result()
                yield Stage(folder, where)
            finally:
                with contextlib.suppress(BrokerUnavailable):  # it is gone already
                    stop_broker(where, _PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _variables(folder: Path) -> dict[str, str]:
    return {
        DEFAULT_PROVISIONER: "gpushare",
        "GPUSHARE_RUNTIME_DIR": str(folder / "run"),
        # A user's own kernelspecs, profiles and history stay out of it, and get nothing from it.
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "IPYTHONDIR": str(folder / "ipython"),
    }


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in (*KERNEL_VARIABLES, "JUPYTER_PATH"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
