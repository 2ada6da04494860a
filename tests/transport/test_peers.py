"""Peers and pidfds: the kernel says who is there, and nobody names somebody else's process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpushare_kernel.core.errors import BadFrame, BrokerUnavailable, NotYours
from gpushare_kernel.transport.peers import Peer, check_broker, peer_of
from gpushare_kernel.transport.pidfds import check_owner, open_pidfd, pid_of
from gpushare_kernel.transport.places import Places

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
PLACES = Places(Path("/nowhere"), system=False)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process of ours that waits to be killed."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def foreign_listener(path: Path, uid: int) -> int:
    """Listen at `path` from a child process that is `uid`; return its pid once it does."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setuid(uid)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        os.write(told, b"x")
        signal.pause()
    os.close(told)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    return pid


def test_peer_of_a_pair() -> None:
    """The peer of a socket pair is this very process."""
    left, right = socket.socketpair()
    with left, right:
        assert peer_of(left) == Peer(os.getpid(), os.geteuid(), os.getegid())
        check_broker(right, PLACES)


@as_root
def test_a_listener_that_is_neither_root_nor_we_is_refused(tmp_path: Path) -> None:
    """A socket planted by another user is found out before anything is sent to it."""
    tmp_path.chmod(0o777)
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o111)
    pid = foreign_listener(tmp_path / "s", 4242)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "s"))
            assert (peer_of(sock).pid, peer_of(sock).uid) == (pid, 4242)
            with pytest.raises(BrokerUnavailable, match="runs as uid 4242"):
                check_broker(sock, PLACES)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_pid_of(sleeper: subprocess.Popen[bytes]) -> None:
    """A pidfd gives its pid while the process lives, and a clear refusal afterwards."""
    fd = open_pidfd(sleeper.pid)
    try:
        assert not os.get_inheritable(fd)
        assert pid_of(fd) == sleeper.pid
        sleeper.kill()
        sleeper.wait()
        with pytest.raises(BadFrame, match="has ended"):
            pid_of(fd)
    finally:
        os.close(fd)


def test_other_descriptors_are_no_processes() -> None:
    """Any other descriptor is refused, an unknown number too."""
    with (
        Path(os.devnull).open() as file,
        pytest.raises(BadFrame, match="another kind of descriptor"),
    ):
        pid_of(file.fileno())
    with pytest.raises(BadFrame, match="cannot be read"):
        pid_of(987_654)


def test_the_owner_counts(sleeper: subprocess.Popen[bytes]) -> None:
    """The process's own user and root may name it; nobody else may."""
    own = os.geteuid()
    fd = open_pidfd(sleeper.pid)
    try:
        check_owner(fd, Peer(1, own, own))
        check_owner(fd, Peer(1, 0, 0))
        with pytest.raises(NotYours, match=f"uid 4242.*runs as uid {own}"):
            check_owner(fd, Peer(1, 4242, 4242))
    finally:
        os.close(fd)
