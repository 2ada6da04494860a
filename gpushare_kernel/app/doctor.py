"""`jupyter gpushare doctor`: a verdict first, then each check with what to do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from IPython.paths import get_ipython_dir
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from rich.text import Text

from gpushare_kernel.app.base import Command, console
from gpushare_kernel.app.kernelspecs import NATIVE
from gpushare_kernel.app.line import Line
from gpushare_kernel.core.errors import GpushareError, NoBroker
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.interpreters import STARTUP_FILE
from gpushare_kernel.provisioner import DEFAULT_PROVISIONER
from gpushare_kernel.transport.places import Places, may_start, places
from gpushare_kernel.wire.snapshot import DeviceView

_OURS = "gpushare"
_CANNOT = {
    "host": "This is the CPU, no GPU: notebooks take turns by being stopped, and an idle one keeps its memory.",
    "model": "This device is pretended, for tests: it runs nothing.",
}


class Finding(Enum):
    """What came of a check: its mark and the mark's style."""

    WELL = ("ok  ", "green")
    NOTE = ("note", "yellow")
    FAILED = ("FAIL", "red")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at, in one sentence."""

    finding: Finding
    text: str


class DoctorApp(Command):
    """Says what is well."""

    name = "jupyter-gpushare-doctor"
    description = "Say whether notebooks share here, and what to do where they do not. Exit status 1 where something fails."

    def start(self) -> None:
        """Look, give the verdict, then the reasons."""
        checks = list(examine(places()))
        failed = [check for check in checks if check.finding is Finding.FAILED]
        out = console()
        verdict = "Notebooks started here share the device." if not failed else "Not all is well:"
        first = f" {failed[0].text}" if failed else ""
        out.print(Text(verdict + first, style="bold"), soft_wrap=True)
        for check in checks:
            out.print(Text.assemble(check.finding.value, "  ", check.text), soft_wrap=True)
        self.exit(1 if failed else 0)


def examine(where: Places) -> Iterator[Check]:
    """Yield each check."""
    yield from _broker(where)
    yield _registered()
    yield _chosen()
    yield _startup_file()
    yield Check(Finding.NOTE, f"The broker's log is {where.log}.")


def _broker(where: Places) -> Iterator[Check]:
    try:
        with Line(where) as line:
            snapshot = line.snapshot()
            pid = line.pid
    except NoBroker:
        if may_start(where):
            yield Check(
                Finding.NOTE, f"No broker runs at {where.socket}; the first kernel starts one."
            )
        else:
            yield Check(
                Finding.FAILED,
                f"No broker runs at {where.socket}, and only root may start one here. Ask your administrator.",
            )
        return
    except GpushareError as problem:
        yield Check(Finding.FAILED, " ".join(str(problem).split()))
        return
    yield Check(Finding.WELL, f"A broker (pid {pid}) answers at {where.socket}.")
    for device in snapshot.devices:
        yield _device(device)


def _device(device: DeviceView) -> Check:
    cannot = f" {_CANNOT[device.kind]}" if device.kind in _CANNOT else ""
    return Check(Finding.NOTE, f"It shares {device.name}, {format_size(device.capacity)}.{cannot}")


def _registered() -> Check:
    if _OURS in KernelProvisionerFactory.instance().get_provisioner_entries():
        return Check(
            Finding.WELL,
            f"The provisioner is registered in {sys.prefix}; servers that ran before that need a restart.",
        )
    return Check(
        Finding.FAILED,
        f"The provisioner is not registered in {sys.prefix}. Install gpushare-kernel beside Jupyter there.",
    )


def _chosen() -> Check:
    if os.environ.get(DEFAULT_PROVISIONER) == _OURS:
        return Check(
            Finding.WELL,
            f"{DEFAULT_PROVISIONER}={_OURS} is set: every kernel started from this shell shares.",
        )
    spec = _native_spec()
    if spec is not None and _provisioner(spec) == _OURS:
        return Check(Finding.WELL, f"Python 3 kernels share, by {spec}.")
    return Check(
        Finding.FAILED,
        f"Nothing makes kernels share here. Run: jupyter gpushare install --sys-prefix, or set {DEFAULT_PROVISIONER}={_OURS}.",
    )


def _native_spec() -> Path | None:
    folder = KernelSpecManager().find_kernel_specs().get(NATIVE)
    return None if folder is None else Path(folder) / "kernel.json"


def _provisioner(spec: Path) -> str | None:
    try:
        metadata = json.loads(spec.read_text(encoding="utf-8")).get("metadata", {})
    except (OSError, ValueError):
        return None
    name = metadata.get("kernel_provisioner", {}).get("provisioner_name")
    return name if isinstance(name, str) else None


def _startup_file() -> Check:
    for prefix in (Path(sys.prefix), Path("/usr/local"), Path("/")):
        if (prefix / STARTUP_FILE).exists():
            return Check(Finding.WELL, f"Kernels load our client from {prefix / STARTUP_FILE}.")
    return Check(
        Finding.FAILED,
        f"Kernels do not load our client: {Path(sys.prefix) / STARTUP_FILE} is missing (pip install --user puts it where "
        f"IPython does not look). Install into the environment, or copy the file to {get_ipython_dir()}/profile_default/startup.",
    )
