"""A new broker and a client of the version before: with frames that the code of that version wrote (`frames/version_1.json`).

`required` in that file has, for every message version 1 knew, the fields that it cannot read one without; `reasons` why
anybody could wait then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpushare_kernel.core.values import GiB, JobId, Wait, WaitReason
from gpushare_kernel.transport.frames import FrameBuffer, pack
from gpushare_kernel.wire import messages as msg
from gpushare_kernel.wire.codec import decode_hello, decode_to_broker, encode
from tests.broker.house import LIMIT, House

OLD: dict[str, Any] = json.loads(
    Path(__file__).with_name("frames").joinpath("version_1.json").read_text(encoding="utf-8")
)


class Old:
    """A client of version 1: it sends what that version wrote, and reads what that version could."""

    def __init__(self, house: House, hello: str, **body: Any) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(str(house.path))
        self.buffer = FrameBuffer(msg.FROM_BROKER_LIMIT)
        self.frames: list[Any] = []
        first = msgspec.msgpack.decode(bytes.fromhex(OLD["hello"][hello]))
        first["body"] |= body
        self.send(msgspec.msgpack.encode(first))
        data, fds, *_ = socket.recv_fds(self.sock, 65536, 4)
        self.fds = list(fds)
        self.frames += map(msgspec.msgpack.decode, self.buffer.feed(data))
        self.welcome = self.frames.pop(0)

    def send(self, payload: bytes) -> None:
        self.sock.sendall(pack(payload, msg.TO_BROKER_LIMIT))

    def ask(self, kind: str, number: int, **body: Any) -> dict[str, Any]:
        """Send a request of then; return what answers it, with the notices before it checked."""
        frame = msgspec.msgpack.decode(bytes.fromhex(OLD["to_broker"][kind]))
        self.send(msgspec.msgpack.encode([frame[0], number, frame[2] | body]))
        return self.reply(number)

    def reply(self, number: int) -> dict[str, Any]:
        while True:
            while not self.frames:
                data = self.sock.recv(65536)
                assert data, "the broker hung up"
                self.frames += map(msgspec.msgpack.decode, self.buffer.feed(data))
            _, answers, body = self.frames.pop(0)
            readable(body)
            if answers == number:
                return dict(body)

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)


def readable(body: dict[str, Any]) -> None:
    """Fail where version 1 could not read a message."""
    assert body["type"] in OLD["required"], body
    assert set(OLD["required"][body["type"]]) <= set(body), body
    if body["type"] == "Waiting":
        assert body["wait"]["reason"] in OLD["reasons"], body


@contextlib.contextmanager
def attached(house: House) -> Iterator[Old]:
    """A notebook whose client and provisioner are of version 1."""
    starter = Old(house, "Open")
    opened = starter.welcome["body"]
    starter.close()
    readable(opened)
    house.bind(msg.Opened(opened["session"], opened["token"]))
    client = Old(house, "Attach", token=opened["token"], held=[])
    try:
        yield client
    finally:
        client.close()


def test_everything_that_was_said_then_is_understood() -> None:
    """Frame by frame, as the message of that name."""
    for name, frame in OLD["hello"].items():
        hello = decode_hello(bytes.fromhex(frame))
        assert (hello.versions, type(hello.body).__name__) == ((1,), name)
    for name, frame in OLD["to_broker"].items():
        assert type(decode_to_broker(bytes.fromhex(frame)).body).__name__ == name


def test_a_notebook_of_then_runs_with_a_broker_of_now(house: House) -> None:
    """It opens, attaches with one descriptor, waits, is granted, meets a boundary and ends; all that it is sent it can read."""
    holder = house.notebook("holder.ipynb")
    holder.ask(msg.Submit(JobId("h"), "cell", persistent=0, ephemeral=7 * GiB + GiB // 2))
    with attached(house) as old:
        assert (old.welcome["version"], len(old.fds)) == (1, 1)
        readable(old.welcome["body"])
        frame = msgspec.msgpack.decode(bytes.fromhex(OLD["to_broker"]["Submit"]))
        old.send(msgspec.msgpack.encode([frame[0], 1, frame[2]]))
        assert old.ask("GetSnapshot", 2)["type"] == "SnapshotReply"
        holder.ask(msg.End(JobId("h"), 0, 0, 0))
        assert old.reply(1)["type"] == "Granted"
        assert old.ask("Yield", 3)["type"] == "Granted"
        assert old.ask("End", 4)["type"] == "Report"
        assert old.ask("Release", 5)["type"] == "ReleasedNow"


@pytest.mark.parametrize("reason", WaitReason)
def test_why_it_waits_is_told_in_words_it_knows(house: House, reason: WaitReason) -> None:
    """A reason that came later would be a broken frame to it, and the end of its line."""
    with attached(house) as old:
        notice = msg.Waiting(JobId("j1"), Wait(reason, GiB, 0, 0))
        house.do(lambda: [desk.notify(notice) for kernel in house.broker.registry for desk in kernel.lines])  # fmt: skip
        assert old.ask("GetSnapshot", 1)["type"] == "SnapshotReply"


def test_versions_that_share_nothing_are_refused_with_both(house: House) -> None:
    """What the broker speaks and what came; nothing is left behind."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT)
        sock.connect(str(house.path))
        sock.sendall(pack(encode(msg.Hello((0,), "ancient", msg.Observe())), msg.TO_BROKER_LIMIT))
        (payload,) = FrameBuffer(msg.FROM_BROKER_LIMIT).feed(sock.recv(65536))
        body = msgspec.msgpack.decode(payload)["body"]
    assert (body["type"], body["code"]) == ("Failure", "VersionMismatch")
    assert "2, 1" in body["message"]


def test_it_is_not_asked_for_what_it_does_not_know(house: House) -> None:
    """It would never answer: its memory is the driver's to move, all of it and at once. Who has no line cannot be asked now."""
    with attached(house):
        (kernel,) = house.broker.registry
        warm = house.broker.engine.moves.warm

        def asked() -> int | None:
            asking = house.do(lambda: asyncio.ensure_future(warm.set_aside(kernel, GiB)))
            house.saw(asking.done)
            return asking.result()

        assert asked() == 0
        house.do(kernel.lines.clear)
        assert asked() is None
