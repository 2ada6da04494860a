"""A kernel of some user with a lease, in a few lines of the standard library: `python3 arena_user.py SOCKET`, one command a line."""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import struct
import sys
from typing import Any

from wire import Peer, unpack


class Kernel:
    """What it has."""

    def __init__(self, path: str) -> None:
        self.path, self.token = path, ""
        self.line: Peer | None = None
        self.fd, self.map = -1, mmap.mmap(-1, 1)

    def open(self) -> Any:
        """Become a session; return its token."""
        with Peer(self.path) as peer:
            opened = peer.hello("Open", name="theirs.ipynb")
        own = os.pidfd_open(os.getpid())
        with Peer(self.path) as peer:
            peer.hello("Bind", [own], session=opened["session"], token=opened["token"])
        os.close(own)
        self.token = opened["token"]
        return self.token

    def lease(self, token: str, size: int) -> Any:
        """Lease and map; return where it lies, and what values its bytes have."""
        line = Peer(self.path)
        body = {"type": "LeaseArena", "token": token, "size": size}
        line.send({"versions": [2], "agent": "wire", "body": body})
        data, fds, _, _ = socket.recv_fds(line.sock, 65536, 4)
        (length,) = struct.unpack("<I", data[:4])
        answer = unpack(data[4 : 4 + length])["body"]
        if answer["type"] != "ArenaLeased":
            line.close()
            return {"refused": answer["code"], "fds": len(fds)}
        self.line, self.fd = line, fds[0]
        self.map = mmap.mmap(self.fd, answer["size"], offset=answer["offset"])
        return {
            "inode": os.fstat(self.fd).st_ino,
            "fd": self.fd,
            "values": sorted(set(self.map[:])),
        }

    def fill(self, value: int) -> Any:
        """Write one value into all of it."""
        self.map[:] = bytes([value]) * len(self.map)
        return len(self.map)

    def tries(self, path: str) -> Any:
        """Try to open a path; return what comes of it."""
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError as problem:
            return errno.errorcode[problem.errno or 0]
        return "opened"


def main(path: str) -> None:
    """Answer commands."""
    kernel = Kernel(path)
    for line in sys.stdin:
        name, *words = json.loads(line)
        print(json.dumps(getattr(kernel, name)(*words)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
