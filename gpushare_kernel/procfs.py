"""The only reader of `/proc/<pid>`: who lives, below whom, since when, at what cost; and signals that hit nobody else.

A pid alone is reused; a `ProcessKey` (pid and start time) never is, so whatever is kept for later is
a key. Everything read here may be stale when it is returned: processes end at any moment, and then
the answer is None, empty or False, never an exception.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections import deque
from collections.abc import Collection, Iterable
from pathlib import Path

from gpushare_kernel.core.values import ProcessKey

_GONE = (FileNotFoundError, ProcessLookupError)
"""What the kernel says of a process that ended: before open, and between open and read."""

_PAGE = os.sysconf("SC_PAGESIZE")
_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
_NANOSECOND = 1e-9
_PROCESS_CPU_CLOCK = 2
_HAS_CHILDREN = Path("/proc/thread-self/children").exists()
_tgkill = getattr(ctypes.CDLL(None, use_errno=True), "tgkill", None)  # glibc 2.30

# Positions in /proc/<pid>/stat, counted behind the parenthesis that ends the command's name.
_STATE, _PARENT, _REAPED_USER, _REAPED_SYSTEM, _START = 0, 1, 13, 14, 19


STOPPED, ENDED = frozenset("Tt"), frozenset("ZX")
"""Letters of a process's state: by a signal or a debugger; and ended, a zombie until it is waited for."""


def process_key(pid: int) -> ProcessKey | None:
    """Return the key of the process that has `pid` now, zombies included; None where there is none."""
    fields = _stat(pid)
    return None if fields is None else ProcessKey(pid, int(fields[_START]))


def exists(pid: int) -> bool:
    """Tell whether a process has this number here, also one that a restricted /proc does not show."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def alive(key: ProcessKey) -> bool:
    """Tell whether this very process still runs (or sleeps, or is stopped); a zombie does not."""
    fields = _stat(key.pid)
    return (
        fields is not None
        and int(fields[_START]) == key.start_time
        and fields[_STATE].decode() not in ENDED
    )


def state(pid: int) -> str | None:
    """Return the letter of the thread-group leader's state: `R`, `S`, `D`, `T`, `Z`...; None where it is gone."""
    fields = _stat(pid)
    return None if fields is None else fields[_STATE].decode()


def state_of(key: ProcessKey) -> str | None:
    """Return the state of this very process; None where it is gone, even if its pid has been reused."""
    fields = _stat(key.pid)
    return (
        fields[_STATE].decode()
        if fields is not None and int(fields[_START]) == key.start_time
        else None
    )


def owner(pid: int) -> int | None:
    """Return the real uid of a process."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    return None


def uids(pid: int) -> set[int]:
    """Return all uids of a process (real, effective, saved, of its files); empty where it is gone."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"Uid:"):
            return {int(word) for word in line.split()[1:]}
    return set()


def name(pid: int) -> str:
    """Return what a process is called (15 characters of it); "" where it is gone."""
    return _read(f"/proc/{pid}/comm").decode(errors="replace").strip()


def named(prefix: str) -> list[int]:
    """Return the pids of all processes whose name begins so. Reads every process of the machine."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208
    return [pid for pid in pids if name(pid).startswith(prefix)]


def parent(pid: int) -> int | None:
    """Return the pid of a process's parent (0 for the first one of a pid namespace)."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_PARENT])


def children(pid: int) -> list[int]:
    """Return the pids of all children, zombies included, whichever thread forked them."""
    if not _HAS_CHILDREN:
        return _children_by_scan(pid)
    found: list[int] = []
    for task in _tasks(pid):
        found += map(int, _read(f"{task}/children").split())
    return found


def tree(root: int, without: Collection[int] = ()) -> list[ProcessKey]:
    """Return `root` and all below it, `root` first, zombies included (their time is not yet their parent's).

    Parameters
    ----------
    root
        The pid to start from; where it is gone, the answer is empty.
    without
        Pids whose whole sub-trees are left out, because they are sessions of their own.

    The kernel's list of children may miss some while others of them end, and processes fork while we
    walk: the walk is repeated until a pass finds nobody new.
    """
    known: dict[ProcessKey, None] = {}
    while True:
        walked = _walk(root, without)
        fresh = walked.keys() - known.keys()
        known.update(walked)
        if not fresh:
            return [key for key in known if key in walked or process_key(key.pid) == key]


def line(pid: int) -> frozenset[int]:
    """Return `pid` and the pids of all that it is below, as far as they live; empty where it is gone.

    A process's line only gets shorter: whoever loses its parent belongs to one further up.
    """
    found: set[int] = set()
    while pid and pid not in found and (above := parent(pid)) is not None:
        found.add(pid)
        pid = above
    return frozenset(found)


def is_descendant(pid: int, ancestor: int) -> bool:
    """Tell whether `pid` is `ancestor` or below it. One that lost its parent belongs to init, not to `ancestor`."""
    current: int | None = pid
    while current:
        if current == ancestor:
            return process_key(current) is not None
        current = parent(current)
    return False


def is_below(pid: int, ancestors: Iterable[int]) -> bool:
    """Tell whether `pid` is one of `ancestors` or below one."""
    return any(is_descendant(pid, ancestor) for ancestor in ancestors)


def topmost(keys: Iterable[ProcessKey], without: Collection[int] = ()) -> list[ProcessKey]:
    """Return those of `keys` that live, are not below `without`, and whose parent is none of them."""
    left = [key for key in keys if alive(key) and not is_below(key.pid, without)]
    pids = {key.pid for key in left}
    return [key for key in left if parent(key.pid) not in pids]


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU seconds of all threads of a process, dead ones included, in ns resolution; no file is read."""
    try:
        return time.clock_gettime((~pid << 3) | _PROCESS_CPU_CLOCK)
    except OSError:
        return None


def reaped_seconds(pid: int) -> float:
    """Return the CPU seconds of the children that a process has waited for, and of theirs (10 ms resolution)."""
    fields = _stat(pid)
    return (
        0.0 if fields is None else (int(fields[_REAPED_USER]) + int(fields[_REAPED_SYSTEM])) * _TICK
    )


def run_delay(pid: int) -> float:
    """Return the seconds that the living threads of a process were ready to run, but did not."""
    total = 0
    for task in _tasks(pid):
        fields = _read(f"{task}/schedstat").split()
        if fields:
            total += int(fields[1])
    return total * _NANOSECOND


def private_memory(pid: int) -> int | None:
    """Return the resident bytes of a process that no file backs (about RssAnon)."""
    fields = _read(f"/proc/{pid}/statm").split()
    return None if not fields else max(0, int(fields[1]) - int(fields[2])) * _PAGE


def boot_id() -> str:
    """Return what names this boot of the machine: start times compare only within one."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def send(key: ProcessKey, signum: int) -> bool:
    """Send a signal to this very process.

    Returns
    -------
    bool
        False where it is gone; a process that reuses its pid is not touched.

    Raises
    ------
    PermissionError
        Where it belongs to somebody whom we may not signal.
    """
    try:
        pidfd = os.pidfd_open(key.pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor holds the process we opened: if the start time read *after* that is the
        # key's, the descriptor is the key's process.
        if process_key(key.pid) != key:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signum)
            return True
        return False
    finally:
        os.close(pidfd)


def interrupt(pid: int, group: int) -> bool:
    """Send SIGINT to the main thread of `pid`, and to the others of its process group.

    A signal to a process goes to any of its threads, and to another than the main one where that has just been continued
    and has not run yet (Linux: `complete_signal`). CPython then notes it and the main thread sleeps on: the interrupt
    comes when its call returns, which may be never. A signal to the thread wakes it.

    Returns
    -------
    bool
        False where the C library cannot say which thread; nobody has been signalled then.

    Raises
    ------
    ProcessLookupError
        Where it is gone.
    """
    if _tgkill is None:
        return False
    for key in tree(pid)[1:]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(key.pid) == group:
                send(key, signal.SIGINT)
    if _tgkill(pid, pid, signal.SIGINT):
        raise ProcessLookupError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True


def environ(pid: int, name: str) -> str | None:
    """Return a variable of the environment that `pid` was started with; None where it has none or may not be read."""
    mark = f"{name}=".encode()
    try:
        entries = _read(f"/proc/{pid}/environ").split(b"\0")
    except PermissionError:
        return None
    value = next((entry.removeprefix(mark) for entry in entries if entry.startswith(mark)), None)
    return None if value is None else value.decode(errors="replace")


def _walk(root: int, without: Collection[int]) -> dict[ProcessKey, None]:
    """Walk once, breadth first: a parent stands before its children."""
    walked: dict[ProcessKey, None] = {}
    queue = deque([root])
    while queue:
        pid = queue.popleft()
        key = process_key(pid)
        if key is not None and key not in walked and (pid == root or pid not in without):
            walked[key] = None
            queue.extend(children(pid))
    return walked


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except _GONE:
        return b""
    try:
        content = b""
        while chunk := os.read(fd, 4096):  # lists may come in several pieces, none of them full
            content += chunk
    except _GONE:
        return b""
    else:
        return content
    finally:
        os.close(fd)


def _stat(pid: int) -> list[bytes] | None:
    content = _read(f"/proc/{pid}/stat")
    # The command's name may hold spaces and parentheses: only the last one ends it.
    return content[content.rindex(b")") + 2 :].split() if content else None


def _tasks(pid: int) -> list[str]:
    folder = f"/proc/{pid}/task"
    try:
        return [f"{folder}/{tid}" for tid in os.listdir(folder)]  # noqa: PTH208 - ten times a second a session
    except _GONE:
        return []


def _children_by_scan(pid: int) -> list[int]:
    """Find children where the kernel keeps no list of them (no CONFIG_PROC_CHILDREN)."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    return [each for each in pids if parent(each) == pid]
