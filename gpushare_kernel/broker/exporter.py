"""Metrics, the broker's side: where they are offered, and the process that offers them.

Whoever asks for metrics speaks HTTP with a process of its own (`metrics.py`): no request, however many there are, is
read or answered on the broker's loop or beside it. That process has one line to us; over it comes a byte, and one
reading goes back, which is gathered once a second at most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from gpushare_kernel.broker.metrics_address import Address, offered_at, parse_address
from gpushare_kernel.broker.reading import Readings
from gpushare_kernel.core.errors import BrokerUnavailable
from gpushare_kernel.transport.launch import environment

if TYPE_CHECKING:
    from gpushare_kernel.broker.broker import Broker
    from gpushare_kernel.transport.server import Listener

MODULE = "gpushare_kernel.broker.metrics"
LAG_EVERY = 0.5
NAMED, MOST_NAMED = 20, 200
"""How many people have a series of their own."""
_SLOWEST, _GROWN_UP = 10.0, 60.0
"""Seconds: between two starts at most, and after which one did not die of its start."""
_ENDS_WITHIN, _ASKED_AGAIN = 5.0, 0.1
TRIED_AGAIN = 5.0
"""Seconds after which a broker that had to go on without metrics tries to offer them again."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """What is offered, and where: `sock` listens already. `users` have a series of their own, by name or by initials."""

    sock: socket.socket
    users: int
    names: bool
    again: bool

    @classmethod
    async def made(cls, given: argparse.Namespace) -> Self:
        """Return what a broker's options want.

        Raises
        ------
        BrokerUnavailable
            Where the address cannot be had, or prometheus_client is not installed.
        """
        address, again = parse_address(given.metrics), bool(given.again)
        _check_installed()
        sock = await _offered_again(address) if again else offered_at(address)
        named = given.metrics_names
        names = address.path is not None if named is None else named == "names"
        users = NAMED if given.metrics_users is None else given.metrics_users
        return cls(sock, users, names, again)

    @classmethod
    async def in_the_end(cls, given: argparse.Namespace, broker: Broker) -> Self:
        """As `made`, of a broker that goes on without as long as that cannot be; its log and its status say so."""
        while True:
            try:
                made = await cls.made(given)
            except BrokerUnavailable as problem:
                text = (
                    f"No metrics are offered: {problem} It is tried again every {TRIED_AGAIN:g} s."
                )
                if text != broker.no_metrics:
                    _logger.error("no metrics are offered: %s", problem)  # noqa: TRY400  no traceback: it says all
                broker.no_metrics = text
            else:
                broker.no_metrics = ""
                return made
            await asyncio.sleep(TRIED_AGAIN)


def _check_installed() -> None:
    if importlib.util.find_spec("prometheus_client") is None:
        msg = f"--metrics needs prometheus_client, and {sys.executable} does not have it. In a clone of gpushare: pip install '.[metrics]'"
        raise BrokerUnavailable(msg)


async def _offered_again(address: Address) -> socket.socket:
    """As `offered_at`, where the process of the broker before may be about to end: nobody is told when a port is free."""
    until = time.monotonic() + _ENDS_WITHIN
    while True:
        try:
            return offered_at(address)
        except BrokerUnavailable:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(_ASKED_AGAIN)


class Exporter:
    """Keeps the process that offers metrics, and answers it. `turned_away` counts connections."""

    def __init__(
        self, offer: Offer, broker: Broker, log: Path, turned_away: Callable[[], int]
    ) -> None:
        self._sock, self._log, self._turned_away = offer.sock, log, turned_away
        self._readings = Readings(broker, people=offer.users, names=offer.names, again=offer.again)
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._line: socket.socket | None = None
        self._again: asyncio.TimerHandle | None = None
        self._started, self._deaths = 0.0, 0
        self._due = self._loop.time() + LAG_EVERY
        self._tick = self._loop.call_at(self._due, self._look_at_lag)

    @classmethod
    def started(cls, offer: Offer, broker: Broker, log: Path, listener: Listener) -> Self:
        """Return one that offers them from now on."""
        made = cls(offer, broker, log, lambda: listener.turned_away)
        made.start()
        _logger.info("metrics are offered", extra={"at": made.where})
        return made

    @property
    def where(self) -> str:
        """What to ask for them: a URL, or a socket's path."""
        name = self._sock.getsockname()
        if isinstance(name, str):
            return name
        return f"http://{f'[{name[0]}]' if ':' in name[0] else name[0]}:{name[1]}/metrics"

    def start(self) -> None:
        """Start the process; whenever it dies, start another."""
        self._again = None
        # Whole messages, both ways: a reading is far below what a socket holds.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = self._spawn(theirs)
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            ours.close()
            _logger.exception("metrics cannot be offered: it is tried again")
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.wait()
            self._again = self._loop.call_later(_SLOWEST, self.start)
            return
        finally:
            theirs.close()
        ours.setblocking(False)  # noqa: FBT003  the socket module's
        self._line, self._started = ours, time.monotonic()
        self._loop.add_reader(ours, self._asked)
        self._loop.add_reader(self._pidfd, self._died)

    def _spawn(self, line: socket.socket) -> subprocess.Popen[bytes]:
        words = ("--listen-fd", self._sock.fileno(), "--line-fd", line.fileno(), "--pid", os.getpid(), "--log", self._log)  # fmt: skip
        return subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-P", "-m", MODULE, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._sock.fileno(), line.fileno()],
            cwd="/",
            env=environment(os.environ),
            start_new_session=True,
        )

    async def stop(self) -> None:
        """End it, and take the address back."""
        self._tick.cancel()
        if self._again is not None:
            self._again.cancel()
        process = self._let_go()
        path = self._sock.getsockname()
        self._sock.close()
        if isinstance(path, str):
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108  on the loop: it is in memory
        if process is not None:
            process.kill()  # it has nothing to finish
            await asyncio.to_thread(process.wait, _ENDS_WITHIN)

    def _asked(self) -> None:
        line = self._line
        if line is None:
            return
        try:
            asked = line.recv(4096)
            if asked:
                self._readings.turned_away = self._turned_away()
                line.send(msgspec.msgpack.encode(self._readings.reading()))
        except BlockingIOError:
            return
        except Exception as problem:
            if not isinstance(problem, OSError):
                _logger.exception("metrics could not be gathered")
            asked = b""
            with contextlib.suppress(OSError):  # it would wait for this answer for ever: its end
                line.shutdown(socket.SHUT_RDWR)
        if not asked:
            self._loop.remove_reader(line)  # it is about to die

    def _look_at_lag(self) -> None:
        now = self._loop.time()
        self._readings.lag.add(max(0.0, now - self._due))
        self._due = now + LAG_EVERY
        self._tick = self._loop.call_at(self._due, self._look_at_lag)

    def _died(self) -> None:
        process = self._let_go()
        code = None if process is None else process.wait()
        self._deaths = 1 if time.monotonic() - self._started > _GROWN_UP else self._deaths + 1
        _logger.warning("the process that offers metrics died", extra={"code": code})
        delay = min(_SLOWEST, 0.1 * 2 ** (self._deaths - 1))
        self._again = self._loop.call_later(delay, self.start)

    def _let_go(self) -> subprocess.Popen[bytes] | None:
        if self._line is not None:
            self._loop.remove_reader(self._line)
            self._line.close()
            self._line = None
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        process, self._process = self._process, None
        return process
