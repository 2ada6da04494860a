"""A file on a FUSE mount whose owner does not answer: whoever closes it waits until `let_go`. What any user with fusermount has."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from pathlib import Path
from typing import Self

_IN, _OUT = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
_FORGET, _GETATTR, _OPEN, _RELEASE, _FLUSH, _INIT = 2, 3, 14, 18, 25, 26
_ENOSYS, _DETACH = 38, 2
_libc = ctypes.CDLL(None, use_errno=True)


class SlowFile:
    """Mounted over `path` while the block runs. OSError where nobody may mount here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Somebody closes it and waits.
        self.waited_for = threading.Semaphore(0)
        self._held: list[int] = []
        self._lock, self._over = threading.Lock(), False

    def __enter__(self) -> Self:
        self.path.touch()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=100666,user_id=0,group_id=0,allow_other".encode()
        if _libc.mount(b"slow", bytes(self.path), b"fuse", 0, options):
            os.close(self._fd)
            raise OSError(ctypes.get_errno(), "mount")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        _libc.umount2(bytes(self.path), _DETACH)
        self._thread.join(20)
        os.close(self._fd)

    def let_go(self) -> None:
        """Answer everybody who waits, now and later."""
        with self._lock:
            self._over = True
            for unique in self._held:
                self._answer(unique)
            self._held.clear()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # unmounted
            while True:
                self._handle(os.read(self._fd, 2**17))

    def _handle(self, request: bytes) -> None:
        _size, opcode, unique, *_rest = _IN.unpack_from(request)
        if opcode == _INIT:
            self._answer(unique, struct.pack("<IIIIHHII36x", 7, 31, 4096, 0, 12, 9, 4096, 1))
        elif opcode == _GETATTR:
            attributes = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o100666, 1, 0, 0, 0, 4096, 0)  # fmt: skip
            self._answer(unique, struct.pack("<QII", 1, 0, 0) + attributes)
        elif opcode == _OPEN:
            self._answer(unique, bytes(16))
        elif opcode == _FLUSH:
            with self._lock:
                if self._over:
                    self._answer(unique)
                else:
                    self._held.append(unique)
            self.waited_for.release()
        elif opcode == _RELEASE:
            self._answer(unique)
        elif opcode != _FORGET:
            self._answer(unique, error=_ENOSYS)

    def _answer(self, unique: int, body: bytes = b"", *, error: int = 0) -> None:
        with contextlib.suppress(OSError):  # interrupted: nobody waits any more
            os.write(self._fd, _OUT.pack(_OUT.size + len(body), -error, unique) + body)
