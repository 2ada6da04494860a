"""What `doctor` says of this machine's GPUs: how much of gpushare they allow, and why not more."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FULL, COOPERATIVE, WATCH, CPU = "FULL", "COOPERATIVE ONLY", "WATCH ONLY", "CPU ONLY"
_LIMIT = 5.0
_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")
_CPU_ONLY = "This machine has no NVIDIA GPU: notebooks share its cores and its memory."
_NO_DRIVER = "An NVIDIA GPU is here, and its driver is not loaded."


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The verdict; why, and one command that changes it; whatever else is known (name -> text)."""

    verdict: str
    why: str = ""
    command: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The verdict as people read it."""
        loses = _LOSES.get(self.verdict, "")
        step = f"Run: {self.command}" if self.command else ""
        return f"{self.verdict}: {' '.join(part for part in (self.why, loses, step) if part)}"


_LOSES = {
    FULL: "Notebooks take turns on the GPU, whatever code they run.",
    COOPERATIVE: "Notebooks take turns where they meet steps; code that meets none is never paused, and may take more than its share.",
    WATCH: "Notebooks run as they are: nobody takes turns on the GPU.",
}
"""What users have, or lose."""


def gpu_facts(root: Path = Path("/")) -> GpuFacts:
    """Look at this machine. Never raises for what is found.

    Parameters
    ----------
    root
        Where `/proc` and `/sys` are.
    """
    if not _has_gpu(root):
        return GpuFacts(CPU, _CPU_ONLY)
    facts = machine_facts(root)
    if not (root / "proc/driver/nvidia/version").exists():
        return GpuFacts(WATCH, _NO_DRIVER, "nvidia-smi", facts)
    found = _probed()
    driver = {name: found.facts[name] for name in ("driver",) if name in found.facts}
    facts = {**found.facts, **facts, **driver, "NVML": "answers" if driver else "does not answer"}
    return GpuFacts(found.verdict, found.why, found.command, facts)


def _probed() -> GpuFacts:
    """Try the driver: half a second, and no GPU memory."""
    from gpushare_kernel.devices.verdict import probe_capabilities  # noqa: PLC0415 - only where a driver is

    probe = probe_capabilities()
    return GpuFacts(str(probe.verdict), probe.why, probe.command, dict(probe.facts))


def machine_facts(root: Path = Path("/")) -> dict[str, str]:
    """Return what the system itself says, without the driver's libraries."""
    facts: dict[str, str] = {}
    loaded, installed = _loaded(root), library_version()
    if loaded:
        facts["driver"] = f"{loaded} is loaded"
    if loaded and installed and loaded != installed:
        facts["pending upgrade"] = (
            f"the driver that runs is {loaded}, the libraries on disk are {installed}: new kernels fail until the machine is restarted"
        )
    scope = _text(root / "proc/sys/kernel/yama/ptrace_scope")
    facts["ptrace scope"] = _SCOPES.get(scope, scope)
    dmem = dmem_limits(root)
    facts["dmem limits"] = dmem or "none (no cgroup controller for device memory here)"
    return facts


_SCOPES = {
    "": "not restricted",
    "0": "0 (not restricted)",
    "1": "1 (a kernel names who may pause it; ours do)",
    "2": "2 (only root may pause: notebooks need a system broker)",
    "3": "3 (nobody may pause anybody)",
}


def dmem_limits(root: Path = Path("/")) -> str:
    """Return what cgroups allow this process's group of device memory: `drm/0000:03:00.0/vram0: 3 of max`."""
    groups = root / "sys/fs/cgroup"
    if "dmem" not in _text(groups / "cgroup.controllers").split():
        return ""
    own = next(
        (line[3:] for line in _text(root / "proc/self/cgroup").splitlines() if line[:3] == "0::"),
        "/",
    )
    group = groups / own.lstrip("/")
    most, now = (_regions(_text(group / f"dmem.{name}")) for name in ("max", "current"))
    if not most:
        return "not switched on for this group"
    return ", ".join(f"{name}: {now.get(name, '0')} of {limit}" for name, limit in most.items())


def library_version() -> str:
    """Return the version of the driver's libraries on disk, "" where there are none.

    They carry it in their file's name: `libcuda.so.1` is a link to `libcuda.so.580.159.03`.
    """
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:/usr/bin:/bin")
    if ldconfig is None:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(  # noqa: S603  found above
            [ldconfig, "-p"], capture_output=True, text=True, check=False, timeout=_LIMIT
        ).stdout
        return library_version_of(listed)
    return ""


def library_version_of(listed: str) -> str:
    """Return the version that `ldconfig -p` leads to."""
    for line in listed.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.partition(" ")[0] in _LIBRARIES:
            found = _VERSION.search(Path(path).resolve().name)
            if found:
                return found[1]
    return ""


def _has_gpu(root: Path) -> bool:
    """Tell whether there is a GPU, driver or not; in a container the bus may be all there is to see."""
    if (root / "proc/driver/nvidia/version").exists():
        return True
    for device in (root / "sys/bus/pci/devices").glob("*"):
        kind = _text(device / "class")
        if _text(device / "vendor") == _NVIDIA and kind.startswith(_DISPLAY_CLASS):
            return True
    return False


def _loaded(root: Path) -> str:
    """Return the version of the kernel module that runs."""
    found = _VERSION.search(_text(root / "proc/driver/nvidia/version"))
    return "" if found is None else found[1]


def _regions(text: str) -> dict[str, str]:
    words = (line.split() for line in text.splitlines())
    return {each[0]: each[1] for each in words if len(each) > 1}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
