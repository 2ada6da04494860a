"""The fixture that finds what a test leaves behind: it can fail, of each kind, and says what it is."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable

import pytest

from tests import leaks
from tests.leaks import none_left


def descriptor() -> Callable[[], None]:
    """Leave a pipe's end."""
    read, write = os.pipe()
    os.close(write)
    return lambda: os.close(read)


def pidfd() -> Callable[[], None]:
    """Leave a pidfd."""
    fd = os.pidfd_open(os.getpid())
    return lambda: os.close(fd)


def thread() -> Callable[[], None]:
    """Leave a thread."""
    end = threading.Event()
    left = threading.Thread(target=end.wait, name="left")
    left.start()

    def undo() -> None:
        end.set()
        left.join()

    return undo


def child() -> Callable[[], None]:
    """Leave a process."""
    left = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    return lambda: (left.communicate(), None)[1]


def zombie() -> Callable[[], None]:
    """Leave one that has ended, and that nobody waits for."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    return lambda: (os.waitpid(pid, 0), None)[1]


def mapping() -> Callable[[], None]:
    """Leave a page of ours, whose descriptor is closed."""
    fd = os.memfd_create("left")
    os.ftruncate(fd, 4096)
    left = mmap.mmap(fd, 4096)
    os.close(fd)
    return left.close


def folder() -> Callable[[], None]:
    """Leave a broker's folder."""
    left = tempfile.mkdtemp(prefix="gps")
    return lambda: shutil.rmtree(left)


@pytest.mark.parametrize("leave", [descriptor, pidfd, thread, child, zombie, mapping, folder])
def test_each_kind_is_found(
    leave: Callable[[], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the test undoes itself is none."""
    monkeypatch.setattr(leaks, "PATIENCE", 0.01)
    undo: list[Callable[[], None]] = []
    with (
        pytest.raises(
            AssertionError,
            match=f"left behind: .*{leave.__name__.replace('zombie', 'child').replace('pidfd', 'descriptor')}",
        ),
        none_left(),
    ):
        undo.append(leave())
    undo[0]()
    with none_left():
        leave()()
