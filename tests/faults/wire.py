"""A peer of the broker in a few lines of the standard library: what strangers, and other users, can send.

It runs as a script too, without our package: `/usr/bin/python3 wire.py SOCKET` reads one request a line
from stdin (JSON) and prints the answer, so that a test can be any user.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from typing import Any


def pack(value: Any) -> bytes:
    """Encode as msgpack, as much of it as our messages need."""
    match value:
        case None | bool():
            raw = {None: b"\xc0", True: b"\xc3", False: b"\xc2"}[value]
        case int():
            raw = (
                struct.pack(">BQ", 0xCF, value)
                if value >= 2**63
                else struct.pack(">Bq", 0xD3, value)
            )
        case float():
            raw = struct.pack(">Bd", 0xCB, value)
        case str():
            raw = struct.pack(">BI", 0xDB, len(value.encode())) + value.encode()
        case dict():
            parts = [pack(each) for pair in value.items() for each in pair]
            raw = struct.pack(">BI", 0xDF, len(value)) + b"".join(parts)
        case _:
            raw = struct.pack(">BI", 0xDD, len(value)) + b"".join(map(pack, value))
    return raw


def unpack(data: bytes) -> Any:
    """Decode one value."""
    return _value(data, 0)[0]


_SIZED = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}
_PLAIN |= {n: n for n in range(0x80)} | {256 + n: n for n in range(-32, 0)}


def _value(data: bytes, at: int) -> tuple[Any, int]:
    kind, at = data[at], at + 1
    if kind in _PLAIN:
        return _PLAIN[kind], at
    if 0x80 <= kind < 0xC0:  # short maps, lists and texts have their size in the kind
        read = _pairs if kind < 0x90 else _items if kind < 0xA0 else _text
        return read(data, at, kind & (0x1F if kind >= 0xA0 else 0x0F))
    form = _SIZED.get(kind) or _NUMBERS[kind]
    (count,) = struct.unpack_from(form, data, at)
    at += struct.calcsize(form)
    if kind in _NUMBERS:
        return count, at
    return (_text if kind < 0xDC else _items if kind < 0xDE else _pairs)(data, at, count)


def _text(data: bytes, at: int, size: int) -> tuple[Any, int]:
    return data[at : at + size].decode(), at + size


def _items(data: bytes, at: int, count: int) -> tuple[Any, int]:
    items = []
    for _ in range(count):
        item, at = _value(data, at)
        items.append(item)
    return items, at


def _pairs(data: bytes, at: int, count: int) -> tuple[Any, int]:
    items, at = _items(data, at, 2 * count)
    return dict(zip(items[::2], items[1::2], strict=True)), at


class Peer:
    """One connection."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.number = 0

    def send(self, value: Any, fds: list[int] | None = None) -> None:
        """Send one frame."""
        payload = pack(value)
        socket.send_fds(self.sock, [struct.pack("<I", len(payload)) + payload], fds or [])

    def receive(self) -> Any:
        """Return the next frame; None at the end."""
        head = self._exactly(4)
        return None if head is None else unpack(self._exactly(struct.unpack("<I", head)[0]) or b"")

    def hello(self, kind: str, fds: list[int] | None = None, /, **body: Any) -> Any:
        """Say hello; return the body of the answer."""
        self.send({"versions": [1], "agent": "wire", "body": {"type": kind, **body}}, fds)
        answer = self.receive()
        return None if answer is None else answer["body"]

    def ask(self, kind: str, /, **body: Any) -> Any:
        """Send a request; return the reply's body, None where the broker hung up instead."""
        self.number += 1
        self.send([0, self.number, {"type": kind, **body}])
        while True:
            frame = self.receive()
            if frame is None or frame[:2] == [1, self.number]:
                return None if frame is None else frame[2]

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                more = self.sock.recv(size - len(data))
            except ConnectionResetError:
                return None
            if not more:
                return None
            data += more
        return data


def main(path: str) -> None:
    """Do what stdin says: `[[hello kind, body, pid of a pidfd or None], [request kind, body]...]` a line of JSON."""
    for line in sys.stdin:
        (kind, body, pid), *requests = json.loads(line)
        with Peer(path) as peer:
            fds = [] if pid is None else [os.pidfd_open(pid)]
            answers = [peer.hello(kind, fds, **body)]
            answers += [peer.ask(request, **fields) for request, fields in requests]
            for fd in fds:
                os.close(fd)
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
