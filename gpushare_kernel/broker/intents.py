"""Which processes stand still on our account, on record *before* each pause (I4).

A file mapped into memory: it outlives every kill -9, costs two stores an entry, and the guardian reads it
when its broker is gone. A broker makes a new file each time, so that the guardian of the one before,
which holds the old one, never sees (and never resumes) what the new broker pauses.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from gpushare_kernel import procfs
from gpushare_kernel.core.errors import DeviceError
from gpushare_kernel.core.values import ProcessKey

ROWS = 4096
RESTARTS = 5
"""How many starts of a broker by its guardian are remembered (CLOCK_MONOTONIC seconds)."""

# Everything is a u64: magic, boot id (2), flags, restarts (5), then rows of pid and start time.
_MAGIC = int.from_bytes(b"gpuint01", "little")
_BOOT, _FLAGS, _RESTART, _FIRST_ROW = 1, 3, 4, 16
_CLEAN_EXIT = 1
_WORDS = _FIRST_ROW + 2 * ROWS
_SIZE = 8 * _WORDS


class IntentTable:
    """The table of one broker. Make one only while holding broker.lock: it replaces the file at `path`.

    Restarts are carried over, and so is whatever is still on record: `resume_all` the old one first.
    """

    def __init__(self, path: Path) -> None:
        before = self.open_existing(path)
        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        self._map(
            os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), size=_SIZE
        )
        self._words[_BOOT], self._words[_BOOT + 1] = _boot()
        if before is not None:
            self._words[_RESTART:_FIRST_ROW] = before._words[_RESTART:_FIRST_ROW]
            for key in before.held():
                self.add(key)
            before.close()
        self._words[0] = _MAGIC
        fresh.rename(path)

    @classmethod
    def open_existing(cls, path: Path) -> Self | None:
        """Return the table that a broker left at `path`; None where there is none of this boot."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        return cls.from_fd(fd)

    @classmethod
    def from_fd(cls, fd: int) -> Self | None:
        """Take over an open table file; None (and it is closed) where it is no table of this boot."""
        if os.fstat(fd).st_size != _SIZE:
            os.close(fd)
            return None
        table = cls.__new__(cls)
        table._map(fd)
        if table._words[0] != _MAGIC or tuple(table._words[_BOOT : _BOOT + 2]) != _boot():
            table.close()
            return None
        return table

    def _map(self, fd: int, size: int = 0) -> None:
        self.fd = fd
        if size:
            os.ftruncate(fd, size)
        self._memory = mmap.mmap(fd, _SIZE)
        self._words = memoryview(self._memory).cast("Q")
        self._rows: dict[ProcessKey, int] = {}
        self._free: list[int] = []
        for row in range(_WORDS - 2, _FIRST_ROW - 2, -2):
            if self._words[row]:
                self._rows[ProcessKey(self._words[row], self._words[row + 1])] = row
            else:
                self._free.append(row)

    def add(self, key: ProcessKey) -> None:
        """Record that `key` is about to be paused. Refuses where the table is full: then nothing may be paused."""
        if key in self._rows:
            return
        if not self._free:
            msg = f"at most {ROWS} processes may stand still at once, and so many do: this one runs on."
            raise DeviceError(msg)
        row = self._rows[key] = self._free.pop()
        # The pid makes the row count, so it comes last: a kill in between leaves a free row.
        self._words[row + 1] = key.start_time
        self._words[row] = key.pid

    def remove(self, key: ProcessKey) -> None:
        """`key` runs again, or is gone."""
        row = self._rows.pop(key, None)
        if row is not None:
            self._words[row] = 0
            self._free.append(row)

    def held(self) -> Sequence[ProcessKey]:
        """Every process on record."""
        return tuple(self._rows)

    @property
    def clean_exit(self) -> bool:
        """Whether the broker went away on purpose."""
        return bool(self._words[_FLAGS] & _CLEAN_EXIT)

    def mark_clean_exit(self) -> None:
        """Tell the guardian that the broker goes away on purpose: it starts no other."""
        self._words[_FLAGS] |= _CLEAN_EXIT

    @property
    def restarts(self) -> Sequence[float]:
        """When guardians last started a broker, newest first (CLOCK_MONOTONIC seconds)."""
        return [stamp / 1000 for stamp in self._words[_RESTART : _RESTART + RESTARTS] if stamp]

    def note_restart(self, now: float) -> None:
        """Remember that a broker is being started at `now`."""
        newest = [int(now * 1000), *self._words[_RESTART : _RESTART + RESTARTS - 1]]
        for offset, stamp in enumerate(newest):
            self._words[_RESTART + offset] = stamp

    def close(self) -> None:
        """Give up the mapping and the descriptor; the file stays."""
        if self.fd >= 0:
            self._words.release()
            self._memory.close()
            os.close(self.fd)
            self.fd = -1


def resume_all(table: IntentTable) -> list[ProcessKey]:
    """Let every process on record run again; return those that were. The broker that paused them must be gone.

    Each row is freed as soon as its process runs, so that a second attempt finds what this one left.
    A process that only reuses a pid is not touched. What we may not signal stays on record.
    """
    resumed = []
    for key in table.held():
        with contextlib.suppress(PermissionError):
            if procfs.send(key, signal.SIGCONT):
                resumed.append(key)
            table.remove(key)
    return resumed


def _boot() -> tuple[int, int]:
    both = uuid.UUID(procfs.boot_id()).int
    return both >> 64, both & (2**64 - 1)
