"""What this machine gives us: cores and memory, bounded by the control groups we run in (v2 and v1)."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**62
"""Version 1 says "no limit" as the largest multiple of a page; nobody sets a real one this high."""


@dataclass(frozen=True, slots=True)
class _Version:
    """Where one version of control groups keeps a limit, its use, and the part of the use that can be dropped."""

    limit: str
    usage: str
    droppable: str


_V2 = _Version("memory.max", "memory.current", "inactive_file")
_HIGH = _Version("memory.high", "memory.current", "inactive_file")
"""Above it the kernel slows a group down until it is under it again: as good as a limit for who must move gigabytes."""
_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


class Machine:
    """The machine as a process may use it: this one, unless another is named.

    Parameters
    ----------
    root
        Where `/proc` and `/sys` are; tests lay out machines of their own.
    process
        Its name in `/proc`.
    """

    def __init__(self, root: Path = Path("/"), process: str = "self") -> None:
        self._proc = root / "proc"
        mounts = _mounts(root, _text(self._proc / "self/mountinfo"))
        own = _own_groups(_text(self._proc / process / "cgroup"))
        self._v2 = _levels(mounts.get(""), own.get(""))
        self._v1_cpu = _levels(mounts.get("cpu"), own.get("cpu"))
        self._v1_memory = _levels(mounts.get("memory"), own.get("memory"))

    def cores(self) -> float:
        """Return how many cores we may use at once: affinity, bounded by the quota of every group above us."""
        bounds = [float(len(os.sched_getaffinity(0)))]
        bounds += [_quota(*_words(group / "cpu.max")) for group in self._v2]
        bounds += [
            _quota(*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us"))
            for group in self._v1_cpu
        ]
        return min(bounds)

    def available(self) -> int:
        """Return the bytes that can be taken without swapping and without reaching any group's limit."""
        bounds = [self._meminfo("MemAvailable")]
        bounds += [_room(group, _V2) for group in self._v2]
        bounds += [_room(group, _V1) for group in self._v1_memory]
        return max(0, min(bounds))

    def room(self) -> int:
        """Return the bytes that it can take without being slowed down for it either (`memory.high`)."""
        return max(0, min([self.available(), *(_room(group, _HIGH) for group in self._v2)]))

    def total(self) -> int:
        """Return the memory that we may use in all: the machine's, bounded by the limit of every group above us."""
        bounds = [self._meminfo("MemTotal")]
        bounds += [_limit(group, _V2) for group in self._v2]
        bounds += [_limit(group, _V1) for group in self._v1_memory]
        return min(bounds)

    def installed(self) -> int:
        """Return the memory that the machine has, whoever may use it."""
        return self._meminfo("MemTotal")

    def with_swap(self) -> int:
        """Return the memory and the swap that the machine has: nothing on it can hold more."""
        return self.installed() + self._meminfo("SwapTotal")

    def cpu_name(self) -> str:
        """Return the processor's name as the kernel knows it, or its architecture."""
        for line in _text(self._proc / "cpuinfo").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model") and value.strip():
                return " ".join(value.split())
        return platform.machine()

    def _meminfo(self, name: str) -> int:
        for line in _text(self._proc / "meminfo").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        return _UNLIMITED


def _mounts(root: Path, mountinfo: str) -> dict[str, tuple[str, Path]]:
    """Return controller -> (the group at the mount's top, where it is mounted); `""` is version 2."""
    found: dict[str, tuple[str, Path]] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split()
        top, place = before.split()[3:5]
        names = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in names:
            found.setdefault(name, (top, root / place.lstrip("/")))
    return found


def _own_groups(text: str) -> dict[str, str]:
    """Return controller -> path of our group; `""` is version 2."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _levels(mount: tuple[str, Path] | None, own: str | None) -> list[Path]:
    """Return our group's folder and all above it: a limit anywhere on the way up binds us."""
    if mount is None or own is None:
        return []
    top, place = mount
    # A container may see only its own part of the hierarchy: what lies above the mount is hidden.
    below = own.removeprefix(top) if own.startswith(top) else ""
    group = place / below.strip("/")
    return [group, *(each for each in group.parents if each.is_relative_to(place))]


def _quota(quota: str = "max", period: str = "100000") -> float:
    return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)


def _limit(group: Path, version: _Version) -> int:
    limit = _words(group / version.limit)
    return min(int(limit[0]), _UNLIMITED) if limit and limit[0] != "max" else _UNLIMITED


def _room(group: Path, version: _Version) -> int:
    limit, usage = _limit(group, version), _words(group / version.usage)
    if not usage or limit >= _UNLIMITED:
        return _UNLIMITED
    droppable = 0
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == version.droppable:
            droppable = int(value)
    return limit - max(0, int(usage[0]) - droppable)


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # a controller that is not there sets no limit
        return ""
