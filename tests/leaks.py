"""What a test must not leave behind in this process: descriptors, threads, children, shared mappings, and folders of brokers."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gpushare_kernel import procfs
from gpushare_kernel.devices import unlocking

PATIENCE = 5.0
"""Seconds for what ends by itself after a test: a reader thread that sees its socket's end."""
_OF_LIBRARIES = re.compile(
    r"anon_inode:\[event(poll|fd)\]|/dev/(null|urandom|pts/.*|tty)|.*/history\.sqlite.*"
)
"""Descriptors that a library opens once and keeps: those of zmq's context, of IPython's history."""
_OURS_MAPPED = re.compile(r"/memfd:|/intents(\.new)?\b|/dev/shm/(?!sem\.)")
_FOLDERS = ("gps", "gpushare-")
_KEPT_THREADS = ("IPythonHistorySavingThread", "asyncio_", "tqdm_monitor")
"""Of IPython, of the loop that jupyter_client keeps for calls that block, of the progress bars of torch's compiler."""


def held() -> Counter[str]:
    """Return what this process holds now, each thing by what it is called."""
    return _descriptors() + _threads() + _children() + _mappings() + _folders()


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """Fail where the block leaves something; what ends by itself a moment later is none."""
    before = held()
    yield
    if not held() - before:
        return
    gc.collect()
    # No event tells that a thread which saw its socket's end has gone; looking costs milliseconds, so not often.
    pace, until = threading.Event(), time.monotonic() + PATIENCE
    while (left := held() - before) and time.monotonic() < until:
        subprocess._cleanup()  # type: ignore[attr-defined]  # as the next Popen does: it reaps whom nobody waited for
        for worker in unlocking._left:  # as the next one that is hung up on does
            worker.poll()
        pace.wait(0.05)
    assert not left, f"left behind: {dict(left)}"


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            target = str(link.readlink())
            if not _OF_LIBRARIES.fullmatch(target) and not target.startswith("/proc/"):
                found[f"descriptor {re.sub(r':.[0-9]+.', '', target)}"] += 1
    return found


def _threads() -> Counter[str]:
    return Counter(
        f"thread {one.name}"
        for one in threading.enumerate()
        if not one.name.startswith(_KEPT_THREADS)
    )


def _children() -> Counter[str]:
    return Counter(f"child {pid} {_name(pid)}" for pid in procfs.children(os.getpid()))


def _mappings() -> Counter[str]:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    paths = (line.split(maxsplit=5)[5] for line in lines if line.count("/"))
    return Counter(f"mapping {path}" for path in paths if _OURS_MAPPED.search(path))


def _folders() -> Counter[str]:
    return Counter(f"folder {one}" for one in _made if Path(one).exists())


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    return ""


#: Folders that this process made for a broker; others run tests beside it.
_made: set[str] = set()
_mkdtemp = tempfile.mkdtemp


def _noting(suffix: str | None = None, prefix: str | None = None, dir: str | None = None) -> str:  # noqa: A002 - as it is
    made = _mkdtemp(suffix, prefix, dir)
    if (prefix or "").startswith(_FOLDERS):
        _made.add(made)
    return made


tempfile.mkdtemp = _noting  # type: ignore[assignment]
