"""Whether a process may be parked: what can be seen of it from outside, and whether the host has room for its bytes.

What can be seen: whose it is, shared files of NCCL and of CUDA's IPC that it maps or holds open, its limits, and those of the
control groups above it. What cannot: memory imported through a descriptor (the descriptor may be closed as soon as it
is mapped), legacy IPC of memory alone, managed memory. gpushare marks the first where it made it itself (bundles: a file of a
known name is open meanwhile); the driver refuses some of the rest, at the lock or at the checkpoint. docs/parking.md says what is left.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from gpushare_kernel import procfs
from gpushare_kernel.core.values import GiB, MiB, MoveStatus, ProcessKey
from gpushare_kernel.devices.machine import Machine

_SHARED = (
    (
        "/memfd:gpushare-imported",
        "it maps memory of another process (a bundle's pages), and the driver could not put that back. bundle.unmap() lets go of it",
    ),
    ("/dev/shm/nccl-", "it talks to other processes through NCCL, which the driver does not park"),  # noqa: S108 - a name to look for
    ("/dev/shm/cuda.shm.", "it shares GPU events or memory with other processes (CUDA IPC)"),  # noqa: S108
)
_LIMIT = re.compile(r"^Max (address space|data size)\s+(\S+)", re.MULTILINE)
_USED = {"address space": "VmSize", "data size": "VmData"}
_NAMES = {"address space": "RLIMIT_AS", "data size": "RLIMIT_DATA"}


class Refusal(NamedTuple):
    """Why it is not parked."""

    status: MoveStatus
    why: str


def host_margin(size: int) -> int:
    """Return what must be left on the host beyond `size` parked bytes: a tenth, half a GiB at least."""
    return max(512 * MiB, size // 10)


def may_park(key: ProcessKey, root: Path = Path("/")) -> Refusal | None:
    """Return why `key` must not be parked, by what is to be seen of it now; None where nothing speaks against it."""
    state = procfs.state_of(key)
    if state is None or state in procfs.ENDED:
        return None  # for the driver's worker to find
    if state in procfs.STOPPED:
        why = f"process {key.pid} is stopped by its user: the driver would not answer. Continue it (fg, or SIGCONT) first."
        return Refusal(MoveStatus.NOT_NOW, why)
    uid = procfs.owner(key.pid)
    if os.geteuid() not in {0, uid}:
        why = f"process {key.pid} belongs to uid {uid}, and this broker (uid {os.geteuid()}) may park its own only. A system broker may park everybody's."
        return Refusal(MoveStatus.UNABLE, why)
    names = _files(root / "proc" / str(key.pid))
    for mark, what in _SHARED:
        found = next((name for name in names if name.startswith(mark)), None)
        if found is not None:
            why = f"process {key.pid} has {found} open: {what}. It keeps its GPU memory."
            return Refusal(MoveStatus.UNABLE, why)
    return None


def no_host_room(sizes: dict[ProcessKey, int], root: Path = Path("/")) -> Refusal | None:
    """Return why the host has no room for so many bytes of each process; None where it has.

    Each process's groups must hold all: they may be the same ones.
    """
    size = sum(sizes.values())
    needed = size + host_margin(size)
    for key, part in sizes.items():
        room = Machine(root, str(key.pid)).room()
        if room < needed:
            why = (
                f"the host's memory is short: {_gib(size)} on the GPU and {_gib(needed - size)} to spare are needed, and the "
                f"machine and its control groups (MemAvailable, memory.max, memory.high) leave {_gib(room)}. It keeps its GPU memory."
            )
            return Refusal(MoveStatus.NOT_NOW, why)
        refusal = _limited(key, part, root / "proc" / str(key.pid))
        if refusal is not None:
            return refusal
    return None


def _limited(key: ProcessKey, size: int, folder: Path) -> Refusal | None:
    status = _text(folder / "status")
    for name, limit in _LIMIT.findall(_text(folder / "limits")):
        used = re.search(rf"^{_USED[name]}:\s+(\d+) kB", status, re.MULTILINE)
        if limit == "unlimited" or used is None:
            continue
        room = int(limit) - int(used[1]) * 1024
        if room < size + host_margin(size):
            why = f"process {key.pid} has a limit of its own ({_NAMES[name]}, ulimit) that leaves {_gib(max(0, room))}, and parking it takes {_gib(size + host_margin(size))}."
            return Refusal(MoveStatus.NOT_NOW, why)
    return None


def _files(folder: Path) -> set[str]:
    """Return the names of the files that a process maps or holds open, as far as we may see them."""
    names = {
        line.split(maxsplit=5)[5]
        for line in _text(folder / "maps").splitlines()
        if "/dev/shm/" in line  # noqa: S108
    }
    try:
        descriptors = [*(folder / "fd").iterdir()]
    except OSError:
        return names
    for descriptor in descriptors:
        try:
            names.add(str(descriptor.readlink()))
        except OSError:  # closed meanwhile
            continue
    return names


def _gib(size: int) -> str:
    return f"{size / GiB:.1f} GiB"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
