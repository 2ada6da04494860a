"""What the system itself says of this machine's GPUs: its bus, its files, the libraries on disk. No driver is called."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

_LIMIT = 5.0
_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
_FIRST_PIDS = "pid:[4026531836]"
"""The kernel's first pid namespace: its number is fixed (PROC_PID_INIT_INO of proc_ns.h)."""
_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")


def has_gpu(root: Path = Path("/")) -> bool:
    """Tell whether there is a GPU, driver or not; in a container the bus may be all there is to see.

    Parameters
    ----------
    root
        Where `/proc` and `/sys` are.
    """
    if driver_runs(root):
        return True
    for device in (root / "sys/bus/pci/devices").glob("*"):
        kind = _text(device / "class")
        if _text(device / "vendor") == _NVIDIA and kind.startswith(_DISPLAY_CLASS):
            return True
    return False


def driver_runs(root: Path = Path("/")) -> bool:
    """Tell whether the driver's kernel module is loaded."""
    return (root / "proc/driver/nvidia/version").exists()


def sees_all_processes(root: Path = Path("/")) -> bool:
    """Tell whether process numbers here are the machine's own, as the driver names them; in most containers they are not."""
    with contextlib.suppress(OSError):
        return str((root / "proc/self/ns/pid").readlink()) == _FIRST_PIDS
    return True


def system_facts(root: Path = Path("/")) -> dict[str, str]:
    """Return what there is to know (name -> text)."""
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
