"""The broker's end of a lock worker: start it, ask it with a limit, hang up on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence

from gpushare_kernel import procfs
from gpushare_kernel.core.values import ProcessKey
from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import Reply
from gpushare_kernel.devices.unlocking import LONGEST_LINE, start_worker

_START_LIMIT = 30.0
"""Python, the bindings and cuInit: half a second, but a machine may be busy and its disk cold."""


class WorkerLost(Exception):
    """The worker ended, or speaks nonsense."""


class LockLink:
    """A lock worker, started at once; the first question waits until it can be asked."""

    def __init__(self, command: Sequence[str]) -> None:
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)  # noqa: FBT003 - the signature of the standard library
        self._ready = False
        #: What was locked through it last: asking about the same process again is quicker.
        self.last: ProcessKey | None = None
        try:
            # Not in a thread: this takes under a millisecond, and a cancelled caller must not lose it.
            self._process = start_worker(command, theirs)
        except OSError:
            self._line.close()
            raise
        finally:
            theirs.close()
        self.key = procfs.process_key(self._process.pid)
        """The worker as a process; None where it has been reaped already."""

    async def ready(self) -> None:
        """Wait until the worker has initialised the driver.

        Raises
        ------
        WorkerLost
            Where it did not come up; the text has the driver's answer.
        """
        if self._ready:
            return
        async with asyncio.timeout(_START_LIMIT):
            reply = await self._receive()
        if reply.answer != answers.SUCCESS:
            raise WorkerLost(reply.answer)
        self._ready = True

    async def ask(self, request: str, key: ProcessKey, *words: int, limit: float) -> Reply:
        """Send one request about `key` and wait for its reply.

        Raises
        ------
        WorkerLost
            Where the worker is gone.
        TimeoutError
            Where the driver does not answer. Hang up then: the reply would be taken for the next one's.
        """
        loop = asyncio.get_running_loop()
        line = " ".join(map(str, (request, key.pid, key.start_time, *words)))
        async with asyncio.timeout(limit):
            try:
                await loop.sock_sendall(self._line, f"{line}\n".encode())
            except OSError as error:
                raise WorkerLost(str(error)) from error
            return await self._receive()

    def say(self, request: str, key: ProcessKey) -> None:
        """Send a request whose reply nobody waits for: the next thing is to hang up."""
        with contextlib.suppress(OSError):
            self._line.send(f"{request} {key.pid} {key.start_time}\n".encode())

    def hang_up(self) -> None:
        """End the line: the worker unlocks what it holds, now or when the driver answers, and exits."""
        self._line.close()

    @property
    def pid(self) -> int:
        """The worker's pid."""
        return self._process.pid

    def ended(self) -> bool:
        """Tell whether the worker is gone (and reap it)."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise `WorkerLost` where the worker is gone."""
        if self.ended():
            msg = f"it ended with {self._process.returncode}"
            raise WorkerLost(msg)

    @property
    def undone(self) -> bool:
        """Whether it ended by itself, with nobody left locked of those it was asked about."""
        return self._process.poll() == 0

    async def gone(self, seconds: float) -> None:
        """Wait until the worker, whose line has ended, is gone too; at most `seconds`."""
        if self.ended():
            return
        loop, ended, pidfd = asyncio.get_running_loop(), asyncio.Event(), os.pidfd_open(self.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)

    def wait(self, seconds: float) -> bool:
        """Wait until the worker is gone, at most `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.ended()

    async def _receive(self) -> Reply:
        loop = asyncio.get_running_loop()
        received = b""
        while not received.endswith(b"\n"):
            try:
                chunk = await loop.sock_recv(self._line, LONGEST_LINE)
            except OSError as error:
                raise WorkerLost(str(error)) from error
            received += chunk
            if not chunk or len(received) > LONGEST_LINE:
                raise WorkerLost(received.decode(errors="replace"))
        try:
            return Reply.parse(received.decode())
        except ValueError as error:
            raise WorkerLost(received.decode(errors="replace")) from error
