"""Offers a broker's metrics to Prometheus: `python -P -m gpushare_kernel.broker.metrics`, started by `exporter.py`.

The only importer of prometheus_client, and in a process of its own: what anybody asks over HTTP, and how often, takes
nothing of the broker's time. It ends with its line to the broker.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gpushare_kernel.broker import logs
from gpushare_kernel.broker.families import COUNTER, FAMILIES, GAUGE, Family, Reading, Spread

PATIENCE = 5.0
"""Seconds that a broker may take to answer, and a peer to say what it wants."""
FRESH = 1.0
"""Seconds for which a reading is offered again: the broker is asked once in that time, whoever comes."""
WHOLE = 10.0
"""Seconds for all that is said with one peer: who sends or reads a byte now and then is hung up on, too."""
MOST_AT_ONCE = 16
"""Peers that are spoken with at a time; the next are hung up on."""
_LONGEST = 2**20
_NICE = 10
_NOBODY = 65534
_PATHS = ("/", "/metrics")
_logger = logging.getLogger("gpushare_kernel.broker.metrics")  # __name__ is __main__ here


class Source(Collector):
    """Asks the broker over its line."""

    def __init__(self, line: socket.socket) -> None:
        line.settimeout(PATIENCE)
        self._line = line
        self._lock = threading.Lock()
        self._last: Reading | None = None
        self._at = 0.0
        self._owed = False

    def reading(self) -> Reading:
        """Return what the broker said a moment ago at most.

        Raises
        ------
        OSError
            Where it does not answer.
        """
        if not self._lock.acquire(timeout=PATIENCE):
            raise TimeoutError
        try:
            if self._last is None or time.monotonic() - self._at >= FRESH:
                self._last, self._at = self._ask(), time.monotonic()
            return self._last
        finally:
            self._lock.release()

    def _ask(self) -> Reading:
        """Ask once; an answer that nobody waited for is not asked for again before it is there, and is thrown away where it is old."""
        if self._owed and select.select([self._line], [], [], 0)[0]:
            self._answer()
        if not self._owed:
            self._line.send(b"?")
            self._owed = True
        return msgspec.msgpack.decode(self._answer(), type=Reading)

    def _answer(self) -> bytes:
        payload = self._line.recv(_LONGEST)
        if not payload:
            msg = "the broker is gone"
            raise ConnectionError(msg)
        self._owed = False
        return payload

    def describe(self) -> list[Metric]:
        """Tell the registry what there is, without asking anybody."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        samples = self.reading().samples
        for name, family in FAMILIES.items():
            yield _metric(name, family, samples.get(name, []))


def _metric(name: str, family: Family, samples: Sequence[tuple[tuple[str, ...], Any]]) -> Metric:
    if family.kind == GAUGE:
        gauge = GaugeMetricFamily(name, family.help, labels=family.labels)
        for labels, value in samples:
            gauge.add_metric(labels, value)
        return gauge
    if family.kind == COUNTER:
        counter = CounterMetricFamily(name, family.help, labels=family.labels)
        for labels, value in samples:
            counter.add_metric(labels, value)
        return counter
    histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
    for labels, value in samples:
        histogram.add_metric(labels, _buckets(value), value.total)
    return histogram


def _buckets(spread: Spread) -> list[tuple[str, float]]:
    found, so_far = [], 0
    for bound, count in zip([*spread.bounds, float("inf")], spread.counts, strict=True):
        so_far += count
        found.append(("+Inf" if bound == float("inf") else str(bound), float(so_far)))
    return found


class Handler(BaseHTTPRequestHandler):
    """Answers one peer."""

    timeout = PATIENCE
    server: Server

    def do_GET(self) -> None:
        """Give it the metrics."""
        if self.path.partition("?")[0] not in _PATHS:
            self.send_error(404, "The metrics are at /metrics")
            return
        encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encoder(self.server.registry)
        except OSError:
            self.send_error(503, "The broker does not answer")
            return
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  theirs
        """Nobody reads who asked."""

    def address_string(self) -> str:
        """A peer on a Unix socket has no address."""
        return str(self.client_address)


class Server(ThreadingHTTPServer):
    """On a socket that listens already; so many peers at once and no more."""

    def __init__(self, sock: socket.socket, registry: CollectorRegistry) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.registry = registry
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Speak with a peer, where there is room."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Make room when it is done, or its time is over."""
        limit = threading.Timer(WHOLE, _hang_up, [request])
        limit.daemon = True
        limit.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  theirs
        """A peer that hangs up is nobody's error."""
        if not isinstance(sys.exception(), OSError):
            _logger.exception("a request for metrics failed")  # noqa: LOG004  called in one


def _hang_up(peer: socket.socket) -> None:
    """End a conversation: whoever waits for a word of this peer goes on."""
    with contextlib.suppress(OSError):  # it has just ended
        peer.shutdown(socket.SHUT_RDWR)


def _become_nobody() -> None:
    """Whoever speaks with everybody on this host is not root: all it needs is open already."""
    if os.geteuid() != 0:
        return
    try:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    except OSError as problem:  # a user namespace without one
        _logger.warning("metrics are offered as root: %s", problem.strerror)


def main(arguments: Sequence[str] | None = None) -> int:
    """Offer metrics until the line to the broker ends."""
    parser = argparse.ArgumentParser(prog="gpushare-metrics")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--line-fd", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args(arguments)
    logs.set_up(given.log)
    os.nice(_NICE)
    _become_nobody()
    line = socket.socket(fileno=given.line_fd)
    registry = CollectorRegistry()
    registry.register(Source(line))
    ProcessCollector(namespace="gpushare_broker", pid=lambda: given.pid, registry=registry)
    server = Server(socket.socket(fileno=given.listen_fd), registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    poll = select.poll()
    poll.register(line, 0)  # its end only; answers are for those who asked
    poll.poll()
    return 0


if __name__ == "__main__":
    sys.exit(main())
