"""Nodes are real processes on the cores that there are; after each test none is left, nor a descriptor or a thread of ours."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel import procfs
from tests.procs import eventually


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """P9: processes, threads, descriptors, shared memory. And a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before, memory = _descriptors(), _shared()
    yield
    eventually(lambda: not _nodes())
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("gpushare-") and t.name != "gpushare-grid"])  # fmt: skip
    eventually(lambda: _descriptors() <= before)
    assert _shared() <= memory


def _shared() -> set[Path]:
    """Return the shared memory that there is; not a browser's, which runs in tests beside these."""
    return {one for one in Path("/dev/shm").iterdir() if "chromium" not in one.name}


def _nodes() -> list[int]:
    found = []
    for pid in procfs.children(os.getpid()):
        # It may end between the list and the look.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"gpushare_kernel.realtime." in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _descriptors() -> int:
    """Count those that nodes could leave: sockets, shared memory, processes, events."""
    kinds = ("socket:", "/memfd:gpushare", "anon_inode:[pidfd]", "anon_inode:[eventfd]", "pidfd")
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            name = str(fd.readlink())
        except FileNotFoundError:
            continue
        count += name.startswith(kinds)
    return count
