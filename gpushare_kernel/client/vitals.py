"""What is noted of a kernel while it lives, to tell afterwards why it ended: how often memory has cost somebody's life so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gpushare_kernel.wire.end_texts import ended_text

_COUNTERS = (("0::", "", "memory.events"), ("memory", "memory", "memory.oom_control"))
"""Of cgroup 2 and of 1: how the line of /proc/PID/cgroup is known, the folder of that hierarchy, the file that counts."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """The cgroup of a process, how many it had lost to its memory limit, and how many the machine had."""

    cgroup: str
    counter: Path | None
    killed_here: int
    killed: int

    @classmethod
    def of(
        cls, pid: int, *, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")
    ) -> Self:
        """Look at a process that lives. Never raises: what cannot be read is not known."""
        for line in reversed(_text(proc / str(pid) / "cgroup").splitlines()):
            for mark, hierarchy, name in _COUNTERS:
                number, _, rest = line.partition(":")
                controllers, _, path = rest.partition(":")
                known = line.startswith(mark) if mark == "0::" else mark in controllers.split(",")
                counter = groups / hierarchy / path.lstrip("/") / name
                if number and known and (killed := _count(counter)) is not None:
                    return cls(path, counter, killed, _count(proc / "vmstat") or 0)
        return cls("", None, 0, _count(proc / "vmstat") or 0)

    def ended(self, code: int, *, proc: Path = Path("/proc")) -> str:
        """Return why it has ended, for people."""
        here = None if self.counter is None else _count(self.counter)
        limit = self.cgroup if here is not None and here > self.killed_here else ""
        return ended_text(code, limit, machine=(_count(proc / "vmstat") or 0) > self.killed)


def _count(path: Path) -> int | None:
    """Return the number behind `oom_kill`; None where there is none."""
    for line in _text(path).splitlines():
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.strip().isdigit():
            return int(number)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
