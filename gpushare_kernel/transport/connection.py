"""One connected peer, seen from the broker: frames in, frames out, neither of them without bound."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from gpushare_kernel.core.errors import GpushareError
from gpushare_kernel.transport.allowance import SHARE, Allowance
from gpushare_kernel.transport.frames import FrameBuffer, pack
from gpushare_kernel.transport.peers import Peer
from gpushare_kernel.wire.codec import encode, failure_from
from gpushare_kernel.wire.limit_texts import requests_text
from gpushare_kernel.wire.messages import (
    FROM_BROKER_LIMIT,
    TO_BROKER_LIMIT,
    Announce,
    FromBroker,
    Kind,
)

MOST_BUFFERED = 8 * 2**20
"""A peer that leaves more than this unread is cut off, in bytes."""
FRAMES_PER_TURN = 32
"""A peer that sends more at once waits its turn, so that the others get theirs."""
SECONDS_PER_TURN = 0.0003
"""The same, where its requests are dear."""
_WORTH_COUNTING = 2**20
_FLUSH_SECONDS = 5.0
_INBOX = 4096
_logger = logging.getLogger(__name__)


class Handler(Protocol):
    """What the broker does with a connection."""

    def on_frame(self, payload: bytes, /) -> None:
        """Take one payload. A GpushareError raised here is sent to the peer, and the connection ends."""

    def on_closed(self) -> None:
        """The connection is over: called once, nothing comes after it."""


class Connection(asyncio.BufferedProtocol):
    """A peer behind its handshake.

    Parameters
    ----------
    peer
        Who it is, as the kernel said.
    factory
        Makes the handler as soon as frames can be sent to the peer.
    when_closed
        Called once, after the handler's `on_closed`.
    allowance
        What its user may cost the others; by default as root's: without bounds.
    """

    __slots__ = (
        "_allowance",
        "_buffer",
        "_deadline",
        "_factory",
        "_frames",
        "_handler",
        "_inbox",
        "_open",
        "_transport",
        "_when_closed",
        "peer",
    )

    def __init__(
        self,
        peer: Peer,
        factory: Callable[[Connection], Handler],
        when_closed: Callable[[], None],
        allowance: Allowance | None = None,
    ) -> None:
        self.peer = peer
        self._allowance = allowance or Allowance(limited=False)
        self._factory = factory
        self._when_closed = when_closed
        self._buffer = FrameBuffer(TO_BROKER_LIMIT)
        self._inbox = memoryview(bytearray(_INBOX))
        self._frames: Iterator[bytes] | None = None
        self._handler: Handler | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._open = False

    @property
    def buffered(self) -> int:
        """How many bytes the peer has yet to read from us, beyond what the kernel holds."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def send(self, payload: bytes) -> None:
        """Send one frame; at once where the socket takes it. Does nothing once the connection is over."""
        if not self._open or self._transport is None or self._transport.is_closing():
            return  # asyncio logs a line for each word to somebody who has gone
        self._transport.write(pack(payload, FROM_BROKER_LIMIT))
        unread = self._transport.get_write_buffer_size()
        if unread > MOST_BUFFERED or (
            unread > _WORTH_COUNTING and self._allowance.reads_too_little()
        ):
            if self._allowance.worth_saying("unread"):
                _logger.warning(
                    "cut off a peer that does not read",
                    extra={"pid": self.peer.pid, "uid": self.peer.uid, "unread": unread},
                )
            self._open = False
            self._transport.abort()

    def close(self) -> None:
        """End the connection; what was sent still goes out, within 5 s. `on_closed` follows."""
        if self._open and self._transport is not None:
            self._open = False
            self._transport.close()
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(_FLUSH_SECONDS, self._transport.abort)

    def refuse(self, error: GpushareError) -> None:
        """Say what was wrong, as a failure of no request (id 0), and end the connection."""
        self.send(encode(FromBroker(Kind.REPLY, 0, failure_from(error))))
        self.close()

    # --- asyncio's side -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the socket is ours."""
        self._transport = cast("asyncio.Transport", transport)
        self._open = True
        try:
            self._handler = self._factory(self)
        except GpushareError as error:
            self.refuse(error)
        except Exception:  # it costs this peer its connection, and nobody else anything
            _logger.exception("a connection could not be taken over")
            self.close()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Asyncio: where bytes may come in. One buffer for good: a fresh 256 KiB per read costs a page fault each."""
        return self._inbox

    def buffer_updated(self, nbytes: int) -> None:
        """Asyncio: bytes came in."""
        frames = self._buffer.feed(bytes(self._inbox[:nbytes]))
        if self._frames is None:
            self._frames = frames
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the socket is gone."""
        if exc is not None and self._allowance.worth_saying("broke"):
            _logger.info("a connection broke: %r", exc, extra={"pid": self.peer.pid})
        if self._deadline is not None:
            self._deadline.cancel()
        self._open = False
        self._frames = None
        handler, self._handler = self._handler, None
        try:
            if handler is not None:
                handler.on_closed()
        finally:
            self._when_closed()

    def _begin(self) -> None:
        """Hand over what came, now or when its user has time left."""
        if self._allowance.exhausted:
            self._wait()
        else:
            self._work_off()

    def _wait(self) -> None:
        if self._transport is None:
            return
        self._transport.pause_reading()
        self._allowance.wait(self._work_off)
        if self._allowance.worth_saying("requests"):
            self.send(encode(FromBroker(Kind.NOTICE, 0, Announce(requests_text(SHARE)))))
            _logger.warning(
                "a user's requests take more than their share of the broker's time, and wait",
                extra={"pid": self.peer.pid, "uid": self.peer.uid},
            )

    def _work_off(self) -> None:
        """Hand over some frames; the rest after everybody else had a turn of the loop."""
        if self._frames is None or self._transport is None or self._handler is None:
            return
        began = time.thread_time()
        try:
            for _ in range(FRAMES_PER_TURN):
                frame = next(self._frames, None)
                if frame is None or not self._open:
                    self._frames = None
                    self._resume()
                    return
                self._handler.on_frame(frame)
                if time.thread_time() - began > SECONDS_PER_TURN:
                    break
        except GpushareError as error:
            self._frames = None
            self.refuse(error)
        except Exception:  # likewise
            self._frames = None
            _logger.exception(
                "a frame's handler failed: its connection ends", extra={"pid": self.peer.pid}
            )
            self.close()
        else:
            self._go_on_later()
        finally:
            self._allowance.spend(time.thread_time() - began)

    def _go_on_later(self) -> None:
        if not self._open or self._transport is None:
            self._frames = None
            return
        self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._begin)

    def _resume(self) -> None:
        if self._open and self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()
