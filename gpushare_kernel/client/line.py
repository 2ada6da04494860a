"""A line to the broker for whoever looks on: commands, the demo, the live view."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from gpushare_kernel import __version__
from gpushare_kernel.client.calls import expect
from gpushare_kernel.core.values import SessionId
from gpushare_kernel.transport.channel import connect, handshake, read_frame, send_frame
from gpushare_kernel.transport.frames import FrameBuffer
from gpushare_kernel.transport.peers import check_broker, peer_of
from gpushare_kernel.transport.places import Places, places
from gpushare_kernel.wire.codec import decode_from_broker, encode, error_from
from gpushare_kernel.wire.messages import (
    FROM_BROKER_LIMIT,
    SPOKEN,
    AskedNow,
    AskHolder,
    Failure,
    GetSnapshot,
    Hello,
    Kind,
    Observe,
    ParkedNow,
    ParkNotebook,
    PausedNow,
    PauseNotebook,
    Release,
    ReleasedNow,
    Reply,
    Request,
    ResumedNow,
    ResumeNotebook,
    SnapshotReply,
    ToBroker,
    UnparkedNow,
    UnparkNotebook,
)
from gpushare_kernel.wire.snapshot import Snapshot

_TIMEOUT = 10.0
_HUB_TOKEN = "JUPYTERHUB_API_TOKEN"  # noqa: S105  a variable's name
_Reply = TypeVar("_Reply")


class Line:
    """A connection that observes. Blocking; `BrokerUnavailable` where nobody answers.

    Parameters
    ----------
    places
        Where the broker lives.
    timeout
        Seconds for each exchange.
    agent
        What it is called in the broker's messages.
    hub_token
        Who it acts for where many people share a uid; that of this process's JupyterHub server where None.

    Attributes
    ----------
    pid
        The broker's process, as the kernel tells it.
    """

    def __init__(
        self,
        places: Places,
        timeout: float = _TIMEOUT,
        *,
        agent: str = "jupyter gpushare",
        hub_token: str | None = None,
    ) -> None:
        token = os.environ.get(_HUB_TOKEN, "") if hub_token is None else hub_token
        self._sock = connect(places.socket, timeout)
        self._buffer = FrameBuffer(FROM_BROKER_LIMIT)
        self._ids = count(1)
        try:
            check_broker(self._sock, places)
            hello = Hello(
                versions=SPOKEN,
                agent=f"{agent} {__version__}",
                body=Observe(token),
            )
            for fd in handshake(self._sock, hello)[1]:
                os.close(fd)  # nobody who only looks on is to get any
        except BaseException:
            self._sock.close()
            raise
        self.pid = peer_of(self._sock).pid

    def ask(self, request: Request) -> Reply:
        """Return the broker's reply; a failure is raised as its error."""
        number = next(self._ids)
        send_frame(self._sock, encode(ToBroker(Kind.REQUEST, number, request)))
        while True:
            frame = decode_from_broker(read_frame(self._sock, self._buffer))
            if frame.kind is Kind.REPLY and frame.id == number:
                break
        if isinstance(frame.body, Failure):
            raise error_from(frame.body)
        return frame.body  # type: ignore[return-value]  # the codec lets only replies be replies

    def snapshot(self, *, brief: bool = False) -> Snapshot:
        """Return what goes on, as this user may see it; `brief`: of notebooks only this user's own, and nothing of the past."""
        return self._expect(GetSnapshot(brief), SnapshotReply).snapshot

    def release(self, session: str) -> ReleasedNow:
        """Have a session of mine give back what it declared and does not use; it trims where it keeps unused memory."""
        return self._expect(Release(session), ReleasedNow)

    def pause(self, session: str) -> PausedNow:
        """Pause what a session of mine runs on the device; it keeps its memory, and goes on by itself after a while."""
        return self._expect(PauseNotebook(session), PausedNow)

    def resume(self, session: str) -> ResumedNow:
        """Let a session of mine run again that was paused so."""
        return self._expect(ResumeNotebook(session), ResumedNow)

    def park(self, session: str) -> ParkedNow:
        """Set the device memory of a session of mine aside; its next cell has it back."""
        return self._expect(ParkNotebook(session), ParkedNow)

    def unpark(self, session: str) -> UnparkedNow:
        """Put back what is set aside of a session of mine, as soon as there is room."""
        return self._expect(UnparkNotebook(session), UnparkedNow)

    def ask_holder(self, session: str) -> AskedNow:
        """Ask an idle session of somebody else's to release what it holds, while one of mine waits."""
        return self._expect(AskHolder(SessionId(session)), AskedNow)

    def _expect(self, request: Request, expected: type[_Reply]) -> _Reply:
        return expect(self.ask(request), expected)

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def line_from_here(timeout: float = _TIMEOUT) -> Line:
    """Return a line to the broker of this kernel; of this user, where it is no kernel of ours."""
    named = os.environ.get("GPUSHARE_SOCKET")
    here = Places(Path(named).parent, system=False, named=True) if named else places()
    return Line(here, timeout, agent="gpushare view")
