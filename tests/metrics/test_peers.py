"""Peers that take their time: what they hold, they hold for a while only."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from gpushare_kernel.broker import metrics
from gpushare_kernel.broker.metrics import MOST_AT_ONCE, Server, Source
from tests.procs import eventually

LIMIT = 20.0
_Address = tuple[str, int]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Address]:
    """One who offers a number, and speaks with nobody for longer than half a second."""
    monkeypatch.setattr(metrics, "WHOLE", 0.5)
    registry = CollectorRegistry()
    Gauge("answer", "A number.", registry=registry).set(42)
    server = Server(socket.create_server(("127.0.0.1", 0)), registry)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.socket.getsockname()
    server.shutdown()
    thread.join(LIMIT)
    server.server_close()


def drip(peer: socket.socket) -> bool:
    """Say a little more; return whether we are still listened to."""
    try:
        peer.sendall(b"x")
        return peer.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def answered(address: _Address) -> bool:
    """Whether there was room for one more."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}", timeout=LIMIT) as told:
            return b"answer 42.0" in told.read()
    except OSError:
        return False


def test_who_says_a_byte_now_and_then_takes_no_place_for_long(address: _Address) -> None:
    """Each byte comes well within the patience for one; the whole is over all the same, and the next is answered."""
    slow = [socket.create_connection(address, 0.02) for _ in range(MOST_AT_ONCE)]
    try:
        for peer in slow:
            peer.sendall(b"GET /metrics HTTP/1.0\r\nX-Slow: ")
        here = slow
        for _ in range(int(LIMIT / 0.02 / MOST_AT_ONCE)):
            here = [peer for peer in here if drip(peer)]
            if not here:
                break
        assert here == []
        eventually(lambda: answered(address), LIMIT)
    finally:
        for peer in slow:
            peer.close()


def test_who_waits_behind_one_whom_the_broker_does_not_answer_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not one after the other, each as long as the broker may take."""
    monkeypatch.setattr(metrics, "PATIENCE", 0.05)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        source = Source(ours)
        with source._lock, pytest.raises(TimeoutError):
            source.reading()
        with pytest.raises(TimeoutError):
            source.reading()
