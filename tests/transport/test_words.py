"""Shared words: the writer's last value is read by another process, which can break nothing."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpushare_kernel.core.errors import BadFrame
from gpushare_kernel.transport.words import LANE, PAUSED, TURN, WordPage, WordView


@pytest.fixture
def page() -> Iterator[WordPage]:
    """Make a page, and close it."""
    page = WordPage.create()
    yield page
    page.close()


READER = """
import sys
from gpushare_kernel.transport.words import WordView
view = WordView(int(sys.argv[1]))
for line in sys.stdin:
    print(view.read(int(line)), flush=True)
"""

ATTACKER = """
import fcntl, mmap, os, sys
fd = int(sys.argv[1])
def attempt(name, act):
    try:
        act()
    except OSError:
        print(name, "refused", flush=True)
    else:
        print(name, "DONE", flush=True)
attempt("shrink", lambda: os.ftruncate(fd, 0))
attempt("grow", lambda: os.ftruncate(fd, 1 << 20))
attempt("write", lambda: os.pwrite(fd, b"x", 0))
attempt("map", lambda: mmap.mmap(fd, 256))
attempt("punch", lambda: os.posix_fallocate(fd, 0, 1 << 20))
attempt("seal", lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE))
again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
attempt("reopened write", lambda: os.pwrite(again, b"x", 0))
attempt("reopened map", lambda: mmap.mmap(again, 256))
attempt("reopened shrink", lambda: os.ftruncate(again, 0))
readable = mmap.mmap(fd, 256, prot=mmap.PROT_READ)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
address = libc.mmap(None, ctypes.c_size_t(256), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
print("mprotect", "refused" if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(256), 3) else "DONE", flush=True)
"""


def run(code: str, fd: int, asked: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, str(fd)],
        pass_fds=[fd],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_another_process_reads_what_was_written(page: WordPage) -> None:
    """Each word arrives in its slot, all 32 bits of it."""
    page.set(0, PAUSED)
    page.set(3, TURN | LANE)
    page.set(63, 2**32 - 1)
    assert run(READER, page.fd, "0\n1\n3\n63\n") == ["1", "0", "3", str(2**32 - 1)]
    assert [page.get(slot) for slot in (0, 1, 3, 63)] == [1, 0, 3, 2**32 - 1]


def test_a_living_view_sees_changes(page: WordPage) -> None:
    """No call is needed between the writer's set and the reader's read."""
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(page.fd)],
        pass_fds=[page.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for value in (7, 0, 9):
            page.set(5, value)
            reader.stdin.write("5\n")
            reader.stdin.flush()
            assert int(reader.stdout.readline()) == value


def test_nobody_else_can_write_shrink_or_grow(page: WordPage) -> None:
    """Another process that holds the descriptor is refused each way to change the page; the words stay, and stay writable for us."""
    view = WordView(os.dup(page.fd))
    page.set(1, 41)
    said = run(ATTACKER, page.fd)
    assert len(said) == 10
    assert [line for line in said if not line.endswith("refused")] == []
    page.set(1, 42)
    assert (view.read(1), len(view)) == (42, 64)  # no SIGBUS: the page is as long as ever
    view.close()


def test_the_view_takes_only_sealed_pages() -> None:
    """A descriptor that could be shrunk under the reader, or is no memfd, is refused and closed."""
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, 256)
    odd = os.memfd_create("odd", os.MFD_ALLOW_SEALING)
    os.ftruncate(odd, 7)
    fcntl.fcntl(odd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    for fd, text in (
        (loose, "sealed against shrinking"),
        (odd, "7 bytes"),
        (os.open(os.devnull, os.O_RDONLY), "sealed memfd"),
    ):
        with pytest.raises(BadFrame, match=text):
            WordView(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_the_view_outlives_the_page() -> None:
    """A broker that is gone leaves the last words readable."""
    page = WordPage.create(slots=8)
    view = WordView(os.dup(page.fd))
    page.set(0, PAUSED)
    page.close()
    page.close()
    assert view.read(0) == PAUSED
    with pytest.raises(IndexError):
        view.read(8)
    view.close()
