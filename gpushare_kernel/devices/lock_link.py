"""The broker's end of a lock worker: start it, ask it with a limit, hang up on it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from gpushare_kernel.devices import answers
from gpushare_kernel.devices.answers import ProcessState

_START_LIMIT = 30.0
"""Python, the bindings and cuInit: half a second, but a machine may be busy and its disk cold."""

_LONGEST_LINE = 200


class Reply(NamedTuple):
    """What the driver answered, and how the target stands."""

    answer: str
    state: ProcessState


class WorkerLost(Exception):
    """The worker ended, or speaks nonsense."""


class LockLink:
    """A lock worker for the process `pid`, started at once; `ready` waits until it can be asked."""

    def __init__(self, command: Sequence[str], pid: int) -> None:
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)  # noqa: FBT003 - the signature of the standard library
        try:
            # In its own session: Ctrl-C at a broker in the foreground must not kill who holds locks.
            # Not in a thread: this takes under a millisecond, and a cancelled caller must not lose it.
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*command, str(pid)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            self._line.close()
            raise
        finally:
            theirs.close()

    async def ready(self) -> None:
        """Wait until the worker has initialised the driver.

        Raises
        ------
        WorkerLost
            Where it did not come up; the text has the driver's answer.
        """
        async with asyncio.timeout(_START_LIMIT):
            reply = await self._receive()
        if reply.answer != answers.SUCCESS:
            raise WorkerLost(reply.answer)

    async def ask(self, request: str, *, limit: float) -> Reply:
        """Send one request and wait for its reply.

        Raises
        ------
        WorkerLost
            Where the worker is gone.
        TimeoutError
            Where the driver does not answer. Hang up then: the reply would be taken for the next one's.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(limit):
            try:
                await loop.sock_sendall(self._line, f"{request}\n".encode())
            except OSError as error:
                raise WorkerLost(str(error)) from error
            return await self._receive()

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

    def wait(self, seconds: float) -> bool:
        """Wait until the worker is gone, at most `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    async def _receive(self) -> Reply:
        loop = asyncio.get_running_loop()
        received = b""
        while not received.endswith(b"\n"):
            try:
                chunk = await loop.sock_recv(self._line, _LONGEST_LINE)
            except OSError as error:
                raise WorkerLost(str(error)) from error
            received += chunk
            if not chunk or len(received) > _LONGEST_LINE:
                raise WorkerLost(received.decode(errors="replace"))
        try:
            answer, state = received.decode().split()
            return Reply(answer, ProcessState(state))
        except ValueError as error:
            raise WorkerLost(received.decode(errors="replace")) from error
