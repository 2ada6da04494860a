"""Real processes for tests: small Python programs that say when they are ready, and are always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Self

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey

PRELUDE = """
import os, signal, subprocess, sys, threading, time
def say(*words): print(*(str(word).strip() for word in words), flush=True)
def wait(): sys.stdin.readline()
def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass
"""


def key_of(pid: int) -> ProcessKey:
    """Return the key of a process that exists."""
    key = procfs.process_key(pid)
    assert key is not None
    return key


class Program:
    """A running Python program; `said()` reads its next line, `tell()` writes one to it.

    It starts fast, without installed packages, unless `site` asks for them.
    """

    def __init__(self, code: str, *, site: bool = False) -> None:
        flags = [] if site else ["-S", "-E"]
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-c", PRELUDE + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.key = key_of(self.pid)
        self.others: list[int] = []

    def said(self) -> list[str]:
        """Return the words of the next line the program writes (blocks until then)."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def said_pids(self) -> list[int]:
        """Return the pids of the next line, and end those processes too when the test is over."""
        pids = [int(word) for word in self.said()]
        self.others += pids
        return pids

    def tell(self, line: str = "go") -> None:
        """Write a line to the program."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        mine = procfs.tree(self.pid)
        mine += [key for pid in self.others if (key := procfs.process_key(pid)) is not None]
        for key in mine:
            with contextlib.suppress(PermissionError):
                procfs.send(key, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextlib.contextmanager
def zombie() -> Iterator[ProcessKey]:
    """Make a child of this process that has ended and is not waited for."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    try:
        eventually(lambda: procfs.state(pid) == "Z")
        yield key_of(pid)
    finally:
        os.waitpid(pid, 0)


def eventually(
    condition: Callable[[], object], seconds: float = 20.0, *, seen: Callable[[], object] = str
) -> None:
    """Wait until a condition that no event tells of holds; fail where it never does, with what is seen then."""
    pace = threading.Event()
    for _ in range(int(seconds / 0.002)):
        if condition():
            return
        pace.wait(0.002)
    msg = f"did not come true in {seconds} s. Seen: {seen()}"
    raise AssertionError(msg)
