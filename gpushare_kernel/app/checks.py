"""What `doctor` looks at, apart from the GPU: the broker, and what makes kernels share."""

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

from gpushare_kernel.app import hub_advice
from gpushare_kernel.app.kernelspecs import NATIVE
from gpushare_kernel.client.line import Line
from gpushare_kernel.client.shown import account_text
from gpushare_kernel.core.errors import GpushareError, NoBroker
from gpushare_kernel.core.sizes import format_size
from gpushare_kernel.devices.verdict import Probe, Verdict
from gpushare_kernel.hub import culling, servers
from gpushare_kernel.interpreters import STARTUP_FILE
from gpushare_kernel.provisioner import DEFAULT_PROVISIONER
from gpushare_kernel.transport.places import (
    Places,
    how_to_restart,
    how_to_start,
    may_start,
    rehearse,
)
from gpushare_kernel.wire.snapshot import DeviceView, Snapshot

_OURS = "gpushare"
_CANNOT = {
    "host": "This is the CPU, no GPU: notebooks take turns by being stopped, and an idle one keeps its memory.",
    "model": "This device is pretended, for tests: it runs nothing.",
}
_FIRST = ("driver", "lock", "checkpoint", "NVML", "MIG")
_AS_IT_SHOULD = {"lock": "works", "checkpoint": "yes", "NVML": "answers", "MIG": "off"}
_AMISS = ("pending upgrade", "processes")
"""Said only where it is not as it should be."""
GPU = "GPU"
"""The check that is the verdict's own."""


class Finding(Enum):
    """What came of a check: its mark and the mark's style."""

    WELL = ("ok", "green")
    NOTE = ("note", "yellow")
    FAILED = ("FAIL", "red")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at, in one sentence."""

    finding: Finding
    name: str
    text: str


def examine(where: Places, gpu: Probe) -> Iterator[Check]:
    """Yield each check."""
    yield from _gpu(gpu)
    yield from _broker(where, gpu)
    yield from _kept_aside(where)
    yield _registered()
    yield _chosen()
    yield _startup_file()
    yield from _hub(where)
    yield Check(Finding.NOTE, "log", f"The broker's log is {where.log}.")


def _gpu(gpu: Probe) -> Iterator[Check]:
    if gpu.verdict is not Verdict.FULL:
        step = f" Run: {gpu.command}" if gpu.command else ""
        finding = Finding.FAILED if gpu.verdict is Verdict.WATCH else Finding.NOTE
        yield Check(finding, GPU, f"{gpu.why}{step}")
    names = [name for name in _FIRST if name in gpu.facts]
    for name in [*names, *(name for name in gpu.facts if name not in names)]:
        said = gpu.facts[name]
        well = said == _AS_IT_SHOULD.get(name, said) and name not in _AMISS
        yield Check(Finding.WELL if well else Finding.NOTE, name, said)


def _broker(where: Places, gpu: Probe) -> Iterator[Check]:
    try:
        with Line(where) as line:
            snapshot = line.snapshot()
            pid = line.pid
    except NoBroker:
        yield _startable(where)
        return
    except GpushareError as problem:
        yield Check(Finding.FAILED, "broker", " ".join(str(problem).split()))
        return
    yield Check(Finding.WELL, "broker", f"A broker (pid {pid}) answers at {where.socket}.")
    if snapshot.broker is not None and snapshot.broker.trouble:
        yield Check(Finding.NOTE, "broker", snapshot.broker.trouble)
    if snapshot.broker is not None and snapshot.broker.hub:
        yield Check(Finding.NOTE, "hub", snapshot.broker.hub)
    if snapshot.you and os.environ.get("JUPYTERHUB_USER"):
        yield Check(Finding.WELL, "you", f"To the broker you are {snapshot.you}.")
    for user in snapshot.users:
        if user.own and (limits := account_text(user)):
            yield Check(Finding.WELL, "limits", limits)
    for device in snapshot.devices:
        yield _device(device)
        yield from fitting(device, where)
    if gpu.verdict is not Verdict.CPU and _shares_no_gpu(snapshot):
        yield Check(
            Finding.NOTE,
            "device",
            f"It does not share the GPU. Once what is said above is mended: {how_to_restart(where)}.",
        )


def _kept_aside(where: Places) -> Iterator[Check]:
    """Damaged ledgers of before: what was in them is not known to the broker."""
    kept = where.ledger.parent.glob(f"{where.ledger.name}.corrupt-*")
    names = sorted(one.name for one in kept if one.suffix[-1:].isdigit())
    if names:
        text = (
            f"A ledger could not be used, and a new one was begun: accounts and learned needs of before are in "
            f"{', '.join(names)} in {where.ledger.parent}. The broker's log says what was wrong. Remove it once it is of no use."
        )
        yield Check(Finding.NOTE, "ledger", text)


def _startable(where: Places) -> Check:
    """None runs: would one start?"""
    said = f"No broker runs at {where.socket}"
    if not may_start(where):
        text = f"{said}, and only root may start one here. Ask your administrator for: {how_to_start(where)}."
        return Check(Finding.FAILED, "broker", text)
    try:
        rehearse(where)
    except GpushareError as problem:
        return Check(Finding.FAILED, "broker", f"{said}, and none can be started: {problem}")
    return Check(Finding.NOTE, "broker", f"{said}; the first kernel starts one.")


def _device(device: DeviceView) -> Check:
    cannot = f" {_CANNOT[device.kind]}" if device.kind in _CANNOT else ""
    shares = f"It shares {device.name}, {format_size(device.capacity)}.{cannot}"
    return Check(Finding.NOTE if cannot else Finding.WELL, "device", shares)


def fitting(device: DeviceView, where: Places) -> Iterator[Check]:
    """How many notebooks there is room for at once, where idle ones keep their memory."""
    if not device.context or device.can is None or "park" in device.can:
        return
    one, whole = format_size(device.context), format_size(device.capacity)
    most = device.capacity // device.context
    text = (
        f"Idle notebooks keep their memory of {device.name}: each takes {one} of {whole} before it holds anything, so at "
        f"most {most} fit, and the next one waits until one of them ends or restarts."
    )
    if "pause" in device.can:
        text += f" To have idle ones set aside for who waits: {how_to_restart(where, '--parking cold')}."
    yield Check(Finding.NOTE, "room", text)


def _shares_no_gpu(snapshot: Snapshot) -> bool:
    return all(device.kind == "host" for device in snapshot.devices)


def _registered() -> Check:
    if _OURS in KernelProvisionerFactory.instance().get_provisioner_entries():
        return Check(
            Finding.WELL,
            "provisioner",
            f"It is registered in {sys.prefix}; servers that ran before that need a restart.",
        )
    return Check(
        Finding.FAILED,
        "provisioner",
        f"It is not registered in {sys.prefix}. In a clone of gpushare: {sys.executable} -m pip install .",
    )


def _chosen() -> Check:
    name = "kernels"
    if os.environ.get(DEFAULT_PROVISIONER) == _OURS:
        said = f"{DEFAULT_PROVISIONER}={_OURS} is set: every kernel started from this shell shares."
        return Check(Finding.WELL, name, said)
    spec = _native_spec()
    if spec is not None and _provisioner(spec) == _OURS:
        return Check(Finding.WELL, name, f"Python 3 kernels share, by {spec}.")
    return Check(
        Finding.FAILED,
        name,
        f"Nothing makes kernels share here. Run: jupyter gpushare install --sys-prefix, or set {DEFAULT_PROVISIONER}={_OURS}.",
    )


def _hub(where: Places) -> Iterator[Check]:
    """What ends parked notebooks, and who runs without us, where this is a hub or has one."""
    found = hub_advice.look(hub_advice.hubs_here())
    for text in culling.sentences(found):
        yield Check(Finding.NOTE, "culling", text)
    if not where.system or where.named:
        return
    for text in hub_advice.replaced(found):
        yield Check(Finding.FAILED, "servers", text)
    text = "" if found.replaced else servers.without_text(servers.servers())
    if text:
        yield Check(Finding.NOTE, "servers", text)


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
    name = "client"
    for prefix in (Path(sys.prefix), Path("/usr/local"), Path("/")):
        if (prefix / STARTUP_FILE).exists():
            return Check(Finding.WELL, name, f"Kernels load it from {prefix / STARTUP_FILE}.")
    return Check(
        Finding.FAILED,
        name,
        f"Kernels do not load it: {Path(sys.prefix) / STARTUP_FILE} is missing (pip install --user puts it where "
        f"IPython does not look). Install into the environment, or copy the file to {get_ipython_dir()}/profile_default/startup.",
    )
